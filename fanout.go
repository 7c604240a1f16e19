package courier

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// FanOutError says which branches of a fan-out failed on a record. Its class is
// by the undone branches: NotAttempted if any of them is, so that the
// coordinator pauses and nothing is parked; else retryable if any is; else
// permanent.
type FanOutError struct {
	Failures []BranchFailure // in the order of the branches
}

// BranchFailure is one branch's error. Branches count from 0, in the order in
// which they were given.
type BranchFailure struct {
	Branch int
	Err    error
}

func (e *FanOutError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "courier: %d of the fan-out's branches failed", len(e.Failures))
	for i, f := range e.Failures {
		fmt.Fprintf(&b, "%c branch %d: %v", ":;"[min(i, 1)], f.Branch, f.Err)
	}
	return b.String()
}

// Unwrap returns the branches' errors.
func (e *FanOutError) Unwrap() []error {
	errs := make([]error, len(e.Failures))
	for i, f := range e.Failures {
		errs[i] = f.Err
	}
	return errs
}

func (e *FanOutError) class(ctx context.Context) Class {
	result := Skipped
	for _, f := range e.Failures {
		switch class := Classify(ctx, f.Err); {
		case class == NotAttempted:
			return NotAttempted
		case class == Retryable || result == Skipped:
			result = class
		}
	}
	return result
}

// NewFanOutApplier applies each record to every branch, at the same time, and
// waits for all of them. A branch that fails stops no other; the record is
// applied once all branches have it, so after a failure the branches that did
// have it get it again: delivery is at least once for each branch. The branches
// get the same value and must not modify it. Give each branch its own retry and
// breaker. A panic in a branch is its failure.
//
// It is as safe for concurrent use as its branches.
func NewFanOutApplier[T any](branches ...Applier[T]) Applier[T] {
	f := &fanOutApplier[T]{branches: make([]stage[T], len(branches))}
	if len(branches) == 0 {
		f.fault = &ConfigError{Field: "branches", Problem: "is empty: pass at least one applier"}
	}
	for i, branch := range branches {
		fault := configErrorOf(fmt.Sprintf("branches[%d]", i), branch)
		if fault != nil && f.fault == nil {
			f.fault = fault
		}
		f.branches[i] = newStage(branch, fault)
		f.batched = f.batched || f.branches[i].batch != nil
	}
	return f
}

type fanOutApplier[T any] struct {
	branches []stage[T]
	batched  bool
	fault    error
}

// Validate reports a fault of the branches.
func (f *fanOutApplier[T]) Validate() error { return f.fault }

func (f *fanOutApplier[T]) batches() bool { return f.batched }

func (f *fanOutApplier[T]) Apply(ctx context.Context, record T) error {
	if f.fault != nil {
		return f.fault
	}
	errs := make([]error, len(f.branches))
	f.each(func(i int) error { return f.branches[i].inner.Apply(ctx, record) }, errs)
	var failed []BranchFailure
	for i, err := range errs {
		if err != nil {
			failed = append(failed, BranchFailure{i, err})
		}
	}
	if failed == nil {
		return nil
	}
	return &FanOutError{failed}
}

func (f *fanOutApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	if f.fault != nil {
		return f.fault
	}
	errs := make([]error, len(f.branches))
	f.each(func(i int) error {
		if b := &f.branches[i]; b.batch != nil {
			return applyIsolated(ctx, b.batch, records)
		}
		return applyEach(ctx, f.branches[i].inner, records)
	}, errs)

	failed := make([]*FanOutError, len(records))
	results := make([]error, len(records))
	perRecord := make([]error, len(records))
	for branch, err := range errs {
		spread(err, perRecord)
		for i, err := range perRecord {
			if err == nil {
				continue
			}
			if failed[i] == nil {
				failed[i] = new(FanOutError)
				results[i] = failed[i]
			}
			failed[i].Failures = append(failed[i].Failures, BranchFailure{branch, err})
		}
	}
	return gather(results)
}

// each runs call for every branch and returns when all have ended. A Goexit
// ends a branch's goroutine, not the caller's.
func (f *fanOutApplier[T]) each(call func(branch int) error, errs []error) {
	if len(f.branches) == 1 {
		guard(&errs[0], func() error { return call(0) })
		return
	}
	var wg sync.WaitGroup
	for i := range f.branches {
		wg.Go(func() {
			guard(&errs[i], func() error { return call(i) })
		})
	}
	wg.Wait()
}
