package courier

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// doneMemory is what a fan-out knows of records that are to be delivered again:
// which branches have them. A record is in it from a delivery that failed until
// one that did not. It is bounded, and a record that it has lost is applied by
// all branches once more; that it never is by mistake is what the names are for.
type doneMemory struct {
	limit int // of records
	among int // a record not met among so many others is forgotten

	size   atomic.Int64 // of byName, to be read without the lock
	mu     sync.Mutex   // held across no user code
	met    int          // how many records were looked for
	byName map[string]*list.Element
	order  list.List // of *partlyDone, the one not met for the longest first
}

// partlyDone is a record that some branches have.
type partlyDone struct {
	name string
	has  []bool // by branch; never modified
	met  int    // doneMemory.met when it was last met
}

// recall returns what is known of each record, nil if nothing is of any. The
// result's slices must not be modified.
func (m *doneMemory) recall(names []string) (done [][]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.met += len(names)
	for i, name := range names {
		e := m.byName[name]
		if e == nil {
			continue
		}
		if done == nil {
			done = make([][]bool, len(names))
		}
		entry := e.Value.(*partlyDone)
		done[i] = entry.has
		m.meet(e, entry)
	}
	for e := m.order.Front(); e != nil && m.met-e.Value.(*partlyDone).met > m.among; e = m.order.Front() {
		m.remove(e)
	}
	return done
}

// note enters which branches have the records, beside those already known to,
// and forgets the records that are listed without any.
func (m *doneMemory) note(names []string, has [][]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, name := range names {
		e := m.byName[name]
		switch {
		case name == "":
		case has[i] == nil && e != nil:
			m.remove(e)
		case has[i] == nil:
		case e != nil:
			entry := e.Value.(*partlyDone)
			entry.has = union(entry.has, has[i])
			m.meet(e, entry)
		default:
			m.add(&partlyDone{name, has[i], m.met})
		}
	}
}

// forget drops records that are applied.
func (m *doneMemory) forget(names []string) {
	if len(names) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if e := m.byName[name]; e != nil {
			m.remove(e)
		}
	}
}

func (m *doneMemory) meet(e *list.Element, entry *partlyDone) {
	entry.met = m.met
	m.order.MoveToBack(e)
}

func (m *doneMemory) add(entry *partlyDone) {
	if m.order.Len() >= m.limit {
		m.remove(m.order.Front())
	}
	if m.byName == nil {
		m.byName = map[string]*list.Element{}
	}
	m.byName[entry.name] = m.order.PushBack(entry)
	m.size.Store(int64(len(m.byName)))
}

func (m *doneMemory) remove(e *list.Element) {
	delete(m.byName, e.Value.(*partlyDone).name)
	m.order.Remove(e)
	m.size.Store(int64(len(m.byName)))
}

func union(a, b []bool) []bool {
	both := make([]bool, len(a))
	for i := range both {
		both[i] = a[i] || b[i]
	}
	return both
}

// remembers reports whether there is a record to know again. That is all that
// a success pays for the memory while nothing waits for another delivery.
func (f *fanOutApplier[T]) remembers() bool { return f.memory.size.Load() > 0 }

// name asks for the records' names, or for those which only lists. A record
// over which Identity panics has none.
func (f *fanOutApplier[T]) name(records []T, only [][]bool) []string {
	names := make([]string, len(records))
	next := 0
	supervise(func() {
		for next < len(records) {
			i := next
			next++
			if only != nil && only[i] == nil {
				continue
			}
			var nameless error
			guard(&nameless, func() error {
				names[i] = f.identity(records[i])
				return nil
			})
		}
	})
	return names
}

// shares returns which branches have all records of a batch, and of each of the
// others the indices of the records it lacks, nil where that is all of them.
func (f *fanOutApplier[T]) shares(done [][]bool) (skip []bool, shares [][]int) {
	if done == nil {
		return nil, nil
	}
	skip, shares = make([]bool, len(f.branches)), make([][]int, len(f.branches))
	for b := range f.branches {
		lacks := make([]int, 0, len(done))
		for i, has := range done {
			if has == nil || !has[b] {
				lacks = append(lacks, i)
			}
		}
		if skip[b] = len(lacks) == 0; len(lacks) < len(done) {
			shares[b] = lacks
		}
	}
	return skip, shares
}
