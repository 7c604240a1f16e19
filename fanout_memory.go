package courier

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// This file is about what a fan-out knows of records that come to it again: which branches
// have them, from one delivery to the next, and what branches have answered in a delivery
// that goes on in hand.

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

// What follows is about a fan-out of which a branch waits for its next attempt. What the
// other branches have answered stays with the record in hand, so that none of them is
// asked again in the same delivery, whether or not the record has a name.

// answer is what a branch has said of a record.
type answer struct {
	given bool
	err   error // nil when the branch has the record
}

// waits reports whether the branch waits for its next attempt.
func (a answer) waits() bool {
	_, waits := waitOf(a.err)
	return waits
}

// answersTo returns, for each of n records, what was answered before in its delivery
// and still holds, nil where nothing was. A branch whose next attempt is due has not
// answered, and neither has one that could not be attempted. One whose retries ended
// without a verdict has, for as long as others wait: it would begin with all its attempts
// anew, and they would wait for it in their turn.
func (f *fanOutApplier[T]) answersTo(ctx context.Context, n int) (told [][]answer) {
	watch := passageOf(ctx).watch
	if !watch.holds(f) {
		return nil
	}
	past := historiesIn(ctx, n)
	for i := range past {
		before := past[i].by(f).answers
		if before == nil {
			continue
		}
		if told == nil {
			told = make([][]answer, n)
		}
		told[i] = make([]answer, len(before))
		now, goesOn := watch.clock.Now(), slices.ContainsFunc(before, answer.waits)
		for b, a := range before {
			due, waits := waitOf(a.err)
			if waits && now.Before(due) || !waits && (a.err == nil || classify(ctx, a.err) != ClassNotAttempted || goesOn && gaveUp(a.err)) {
				told[i][b] = a
			}
		}
	}
	return told
}

// gaveUp reports whether the attempts of a branch are over, of an error of class
// ClassNotAttempted: its queue did not take the record, or its retries were cut short.
func gaveUp(err error) bool {
	var cut *RetryError
	return errors.Is(err, ErrPark) || errors.As(err, &cut)
}

// known adds the branches that have answered to those that have a record.
func (f *fanOutApplier[T]) known(memory [][]bool, told [][]answer) [][]bool {
	if told == nil {
		return memory
	}
	known := make([][]bool, len(told))
	for i := range told {
		if told[i] == nil {
			if memory != nil {
				known[i] = memory[i]
			}
			continue
		}
		known[i] = make([]bool, len(f.branches))
		for b := range known[i] {
			known[i][b] = told[i][b].given || memory != nil && memory[i] != nil && memory[i][b]
		}
	}
	return known
}

// recollect enters what the branches have answered before into the errors of a delivery,
// by branch and record.
func (f *fanOutApplier[T]) recollect(told [][]answer, errs [][]error) {
	for i := range told {
		for b, a := range told[i] {
			if !a.given || a.err == nil {
				continue
			}
			if errs[b] == nil {
				errs[b] = make([]error, len(told))
			}
			errs[b][i] = a.err
		}
	}
}

// unfinished returns the error of a record for which a branch waits, or was refused
// while others have answered, with the answers so far; nil where the delivery is over, or
// ends for a pause. A record waits for the retries of branches that it does not need, but not
// for as long as one of them asks, with Later or by the breaker of a key.
func (f *fanOutApplier[T]) unfinished(ctx context.Context, i int, past history, errs [][]error, verdict error) error {
	watch := passageOf(ctx).watch
	if !watch.holds(f) || pauses(ctx, verdict) {
		return nil
	}
	var first time.Time
	waits, asked := false, true
	lacks := verdict != nil && classify(ctx, verdict) != ClassSkipped
	undone := new(FanOutError)
	answers := make([]answer, len(f.branches))
	for b := range f.branches {
		answers[b].given = true
		if errs[b] == nil || errs[b][i] == nil {
			continue
		}
		err := timed(errs[b][i], watch.clock.Now())
		if used := past.of(f.branches[b].retries); used != nil && historyOf(err) == nil && classify(ctx, err) == ClassNotAttempted && refusedOutside(err) {
			err = &notCalledError{err, used} // its retry was not
		}
		if ownWait(err) && (f.branches[b].optional || !lacks) { // it is asked again when the record comes again
			answers[b] = answer{}
			continue
		}
		answers[b].err = err
		undone.Failures = append(undone.Failures, BranchFailure{f.branches[b].name, err})
		if due, later := waitOf(err); later {
			if !waits || due.Before(first) {
				first = due
			}
			waits, asked = true, asked && ownWait(err)
		}
	}
	told := usage{owner: f, answers: answers}
	switch {
	case waits:
		return &laterError{undone, first, told, asked}
	case verdict != nil && classify(ctx, verdict) == ClassNotAttempted:
		if e, ok := verdict.(*FanOutError); ok {
			undone.short = e.short
			verdict = undone
		}
		return &pendingError{verdict, told}
	}
	return nil
}
