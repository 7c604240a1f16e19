package courier

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// This file is about a fan-out while the breaker of a branch refuses calls, or is
// due for a probe. If all branches were called then, the healthy ones would get a
// record once more with every probe of the one that is down.

// gates asks the breakers of the required branches. It returns nil while these let
// every call through, which is all that a success pays.
func (f *fanOutApplier[T]) gates() []gate {
	for b := range f.branches {
		for _, breaker := range f.branches[b].breakers {
			if !breaker.passing() {
				return f.ask()
			}
		}
	}
	return nil
}

func (f *fanOutApplier[T]) ask() []gate {
	gates := make([]gate, len(f.branches))
	for b := range f.branches {
		gates[b] = gateOf(f.branches[b].breakers)
	}
	return gates
}

// turn is when a delivery calls a branch with a record.
type turn uint8

const (
	never  turn = iota // not in this delivery
	done               // not again: the branch has the record, or has answered
	notYet             // the branch waits for its next attempt, and its breaker does not let every call through
	first              // at once
	second             // once the branches have answered that are due for a probe
)

// turnsOf returns the turn of each branch with a record, of which has tells who
// has it or has answered, and told what the answers were. A record that can become
// applied by branches whose breakers let every call through goes to all branches at
// once.
func (f *fanOutApplier[T]) turnsOf(has []bool, told []answer, gates []gate) []turn {
	turns := make([]turn, len(f.branches))
	calm, able := 0, 0 // required branches that are sure to be called, and that may be
	for b := range f.branches {
		known := has != nil && has[b]
		switch {
		case !known:
		case told != nil && told[b].waits() && !gates[b].passing():
			turns[b] = notYet
			continue
		default:
			turns[b] = done
		}
		if !f.branches[b].optional && (known || !gates[b].closed) {
			able++
			if known || !gates[b].probe {
				calm++
			}
		}
	}
	for b := range turns {
		switch {
		case turns[b] != never || able < f.quorum:
		case calm >= f.quorum || gates[b].probe && !gates[b].closed:
			turns[b] = first
		default:
			turns[b] = second
		}
	}
	return turns
}

// applyInTurn is a delivery while a breaker does not let every call through.
func (f *fanOutApplier[T]) applyInTurn(ctx context.Context, records []T, names []string, known [][]bool, told [][]answer, gates []gate, call callOf[T]) []error {
	turns := make([][]turn, len(records))
	for i := range records {
		var has []bool
		if known != nil {
			has = known[i]
		}
		var answers []answer
		if told != nil {
			answers = told[i]
		}
		turns[i] = f.turnsOf(has, answers, gates)
	}
	errs := make([][]error, len(f.branches))
	for b := range errs {
		errs[b] = make([]error, len(records))
	}
	f.applyTurn(ctx, first, records, turns, errs, call)
	for i := range records {
		f.answered(ctx, i, turns[i], gates, errs)
	}
	f.applyTurn(ctx, second, records, turns, errs, call)
	f.recollect(told, errs)
	past := historiesIn(ctx, len(records))
	for i := range records {
		var used history
		if past != nil {
			used = past[i].attempts()
		}
		f.excuse(ctx, i, turns[i], gates, used, errs)
	}
	return f.settle(ctx, records, names, errs)
}

// applyTurn calls each branch with the records for which it is its turn.
func (f *fanOutApplier[T]) applyTurn(ctx context.Context, now turn, records []T, turns [][]turn, errs [][]error, call callOf[T]) {
	skip, shares := make([]bool, len(f.branches)), make([][]int, len(f.branches))
	for b := range f.branches {
		for i := range records {
			if turns[i][b] == now {
				shares[b] = append(shares[b], i)
			}
		}
		skip[b] = len(shares[b]) == 0
	}
	results := f.eachOf(ctx, skip, func(b int, exit error) verdicts {
		ctx, some := shareOf(ctx, records, shares[b])
		return call(ctx, b, some, exit)
	})
	for b, v := range results {
		if !v.ok() {
			v.scatter(shares[b], errs[b])
		}
	}
}

// answered takes the second turn of a record away that cannot become applied
// because a branch that it needs refuses it. A branch that failed it otherwise
// has answered: the others run as in any delivery (F-1).
func (f *fanOutApplier[T]) answered(ctx context.Context, i int, turns []turn, gates []gate, errs [][]error) {
	able := 0
	for b := range f.branches {
		switch err := errs[b][i]; {
		case f.branches[b].optional:
		case turns[b] == done, turns[b] == second && !gates[b].closed, turns[b] == first && (err == nil || classify(ctx, err) != ClassNotAttempted):
			able++
		}
	}
	for b := range turns {
		if turns[b] == second && able < f.quorum {
			turns[b] = never
		}
	}
}

// excuse sets the errors of the branches that were not called with a record.
func (f *fanOutApplier[T]) excuse(ctx context.Context, i int, turns []turn, gates []gate, used history, errs [][]error) {
	if !slices.Contains(turns, never) {
		return
	}
	var waits []string // for these branches
	for b := range f.branches {
		if turns[b] != never {
			// What their retries have used they have told, or it is over.
			used = slices.DeleteFunc(slices.Clone(used), func(u usage) bool { return slices.Contains(f.branches[b].retries, u.owner) })
		}
		if gates[b].closed && turns[b] == never || errs[b][i] != nil && classify(ctx, errs[b][i]) == ClassNotAttempted {
			waits = append(waits, f.branches[b].name)
		}
	}
	other := fmt.Errorf("the fan-out waits for branch %s", strings.Join(waits, " and "))
	for b := range f.branches {
		if turns[b] != never {
			continue
		}
		cause := other
		if gates[b].closed {
			cause = gates[b].cause
		}
		errs[b][i] = &notCalledError{cause, used}
	}
}

// notCalledError is the error of a branch that was not called with a record.
type notCalledError struct {
	err  error
	past history // what the retries of the branches that were not called have used on the record
}

func (e *notCalledError) Error() string      { return "not called: " + e.err.Error() }
func (e *notCalledError) Unwrap() error      { return e.err }
func (e *notCalledError) NotAttempted() bool { return true }

func notCalled(err error) bool {
	_, is := err.(*notCalledError)
	return is
}
