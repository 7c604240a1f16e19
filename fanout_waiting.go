package courier

import (
	"context"
	"time"
)

// This file is about a fan-out of which a branch waits for its next attempt. What the
// other branches have answered stays with the record in hand, so that none of them is
// asked again in the same delivery, whether or not the record has a name.

// answer is what a branch has said of a record.
type answer struct {
	given bool
	err   error // nil when the branch has the record
}

// answersTo returns, for each of n records, what was answered before in its delivery
// and still holds, nil where nothing was. A branch whose next attempt is due has not
// answered, and neither has one that could not be attempted.
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
		now := watch.clock.Now()
		for b, a := range before {
			if due, waits := waitOf(a.err); waits && now.Before(due) || !waits && (a.err == nil || classify(ctx, a.err) != NotAttempted) {
				told[i][b] = a
			}
		}
	}
	return told
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
// ends for a pause.
func (f *fanOutApplier[T]) unfinished(ctx context.Context, i int, past history, errs [][]error, verdict error) error {
	watch := passageOf(ctx).watch
	if !watch.holds(f) || pauses(ctx, verdict) {
		return nil
	}
	var first time.Time
	waits, asked := false, true
	undone := new(FanOutError)
	answers := make([]answer, len(f.branches))
	for b := range f.branches {
		answers[b].given = true
		if errs[b] == nil || errs[b][i] == nil {
			continue
		}
		err := timed(errs[b][i], watch.clock.Now())
		if used := past.of(f.branches[b].retries); used != nil && historyOf(err) == nil && classify(ctx, err) == NotAttempted && refusedOutside(err) {
			err = &notCalledError{err, used} // its retry was not
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
	case verdict != nil && classify(ctx, verdict) == NotAttempted:
		if e, ok := verdict.(*FanOutError); ok {
			undone.short = e.short
			verdict = undone
		}
		return &pendingError{verdict, told}
	}
	return nil
}
