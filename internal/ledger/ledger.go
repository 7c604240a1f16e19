// Package ledger keeps account of a batch of records by index: what became of
// each, and which of them may be marked.
package ledger

// State is what became of a record.
type State uint8

// The states.
const (
	Pending State = iota // not attempted
	Settled              // applied, parked or skipped: to be marked
	Failed               // attempted in vain
)

// Ledger is the account of one batch. It is reused from batch to batch. The
// records are the caller's and never modified.
type Ledger[T any] struct {
	Records []T
	states  []State
	errs    []error // parallel to Records once a record has an error
}

// Reset begins a new batch, with every record pending.
func (l *Ledger[T]) Reset(records []T) {
	l.Records = records
	l.states = resize(l.states, len(records))
	clear(l.errs) // for the garbage collector
	l.errs = l.errs[:0]
}

// Settle notes that record i may be marked.
func (l *Ledger[T]) Settle(i int) { l.states[i] = Settled }

// SettleRun notes that the records from one to before another may be marked.
func (l *Ledger[T]) SettleRun(from, to int) {
	run := l.states[from:to]
	for i := range run {
		run[i] = Settled
	}
}

// Fail notes that record i failed.
func (l *Ledger[T]) Fail(i int, err error) {
	l.states[i] = Failed
	l.setErr(i, err)
}

// Leave notes why record i stays pending.
func (l *Ledger[T]) Leave(i int, err error) { l.setErr(i, err) }

func (l *Ledger[T]) setErr(i int, err error) {
	if len(l.errs) == 0 {
		l.errs = resize(l.errs, len(l.Records))
	}
	l.errs[i] = err
}

// Run returns how many records from one to before another may be marked, up to
// the first that may not.
func (l *Ledger[T]) Run(from, to int) int {
	for i := from; i < to; i++ {
		if l.states[i] != Settled {
			return i - from
		}
	}
	return to - from
}

// Noted reports whether any record has an error.
func (l *Ledger[T]) Noted() bool { return len(l.errs) > 0 }

// State returns what became of record i.
func (l *Ledger[T]) State(i int) State { return l.states[i] }

// Err returns the error of record i, if it has one.
func (l *Ledger[T]) Err(i int) error {
	if len(l.errs) == 0 {
		return nil
	}
	return l.errs[i]
}

// In returns the records in a state, in order: Records itself when all of them
// are, else a new slice.
func (l *Ledger[T]) In(state State) []T {
	n := 0
	for _, s := range l.states {
		if s == state {
			n++
		}
	}
	switch n {
	case 0:
		return nil
	case len(l.states):
		return l.Records
	}
	in := make([]T, 0, n)
	for i, s := range l.states {
		if s == state {
			in = append(in, l.Records[i])
		}
	}
	return in
}

// resize returns a zeroed slice of length n, in the same memory if it fits.
func resize[E any](s []E, n int) []E {
	if cap(s) < n {
		return make([]E, n)
	}
	s = s[:n]
	clear(s)
	return s
}
