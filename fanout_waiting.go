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

// later returns the error of a record for which a branch waits, nil where none does.
func (f *fanOutApplier[T]) later(ctx context.Context, i int, errs [][]error) error {
	if !passageOf(ctx).watch.holds(f) {
		return nil
	}
	var first time.Time
	some, asked := false, true
	for b := range f.branches {
		if errs[b] == nil {
			continue
		}
		errs[b][i] = timed(errs[b][i], passageOf(ctx).watch.clock.Now())
		due, waits := waitOf(errs[b][i])
		if !waits {
			continue
		}
		if !some || due.Before(first) {
			first = due
		}
		some, asked = true, asked && ownWait(errs[b][i])
	}
	if !some {
		return nil
	}
	undone := new(FanOutError)
	answers := make([]answer, len(f.branches))
	for b := range f.branches {
		answers[b].given = true
		if errs[b] != nil && errs[b][i] != nil {
			answers[b].err = errs[b][i]
			undone.Failures = append(undone.Failures, BranchFailure{f.branches[b].name, errs[b][i]})
		}
	}
	return &laterError{undone, first, usage{owner: f, answers: answers}, asked}
}
