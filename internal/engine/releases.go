package engine

import "time"

// Releases is the records that are to be given back to the source, in groups: those that
// go back for the same time go together. The zero value has none.
type Releases[T any] struct {
	groups []release[T]
	at     map[time.Duration]int // the groups by their time, counted from the first there ever was
	taken  int                   // groups
}

type release[T any] struct {
	records []T
	after   time.Duration
}

// Add has a record given back for some time.
func (r *Releases[T]) Add(record T, after time.Duration) {
	i, ok := r.at[after]
	if !ok {
		if r.at == nil {
			r.at = make(map[time.Duration]int)
		}
		i = r.taken + len(r.groups)
		r.at[after] = i
		r.groups = append(r.groups, release[T]{after: after})
	}
	group := &r.groups[i-r.taken]
	group.records = append(group.records, record)
}

// Some reports whether there are any.
func (r *Releases[T]) Some() bool { return len(r.groups) > 0 }

// All returns all records, group by group.
func (r *Releases[T]) All() (records []T) {
	for _, group := range r.groups {
		records = append(records, group.records...)
	}
	return records
}

// Take removes the first group.
func (r *Releases[T]) Take() (records []T, after time.Duration) {
	first := r.groups[0]
	r.groups[0] = release[T]{}
	r.groups = r.groups[1:]
	r.taken++
	delete(r.at, first.after)
	return first.records, first.after
}
