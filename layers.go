package courier

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// This file is about what a stack of decorators tells of itself, and which orders of them
// make no sense. A decorator of the user's is seen through where it has an Unwrap, and else
// the view ends at it.

// layer describes a decorator of this package.
type layer struct {
	kind    kind
	fault   error // of the decorator, or of what is inside it
	of      any   // the decorator, where somebody has to know it again
	inside  []insideLayer
	batches bool                    // there is a batch applier inside
	clock   *steady                 // by which it decides when it takes records again; nil where it does not
	breaker *Breaker                // of a breaker
	keyed   func() []BreakerMetrics // of a keyed breaker: those of the breakers that are not closed
	parks   *parker                 // of a dead letter queue
}

// insideLayer is what a decorator is around: one applier, or each branch of a fan-out.
type insideLayer struct {
	*layer        // nil for one of the user's
	branch string // of a fan-out
	direct bool   // no decorator of the user's is between
	needed bool   // no record gets through the decorator without it
}

// parker is how a decorator parks records.
type parker struct {
	queue  any
	branch string
	own    bool                 // the queue is a MemoryDLQ that nobody has asked for
	same   func(other any) bool // queue keeps its letters in the same place
}

// described is a decorator of this package.
type described interface{ describe() *layer }

// isOurs reports whether an applier is a decorator of this package, and no type of the
// user's that embeds one.
func isOurs(applier any) bool {
	d, is := applier.(described)
	if !is {
		return false
	}
	of := d.describe().of
	return of == nil || of == applier
}

// maxUnwraps is more than anybody has decorators: one that returns itself ends there.
const maxUnwraps = 100

// layerOf returns the outermost decorator of this package in a stack, nil where there
// is none to be seen.
func layerOf[T any](applier Applier[T]) *layer {
	for range maxUnwraps {
		if d, ok := applier.(described); ok {
			return d.describe()
		}
		outer, ok := applier.(interface{ Unwrap() Applier[T] })
		if !ok {
			return nil
		}
		applier = nil
		var ignored error // whatever is wrong with it, Apply will tell
		isolate(&ignored, func() error { applier = outer.Unwrap(); return nil })
	}
	return nil
}

// applierFault returns what is wrong with an applier, or with what it decorates.
func applierFault[T any](field string, applier Applier[T]) error {
	fault := configErrorOf(field, applier)
	if l := layerOf(applier); fault == nil && l != nil {
		fault = l.fault
	}
	return fault
}

type kind int

const (
	retrying kind = iota
	breaking
	timing
	parking
	branching
	decoding
	cloning
	wrapping
	resilient // all that ResilientApplier puts around an applier
)

func (k kind) String() string {
	return [...]string{"a retry", "a breaker", "an attempt timeout", "a dead letter queue", "a fan-out", "a decoder", "a clone", "a decorator", "ResilientApplier"}[k]
}

// catches reports whether a decorator turns a panic of what is inside it into an
// error.
func (k kind) catches() bool { return k != timing && k != decoding && k != cloning && k != wrapping }

// misplacements says of two decorators, the second anywhere inside the first, why
// they do not do what they look like, and what does. All other orders are allowed.
var misplacements = map[[2]kind]string{
	{retrying, retrying}:  "which multiplies the attempts: leave one of the two out",
	{retrying, parking}:   "so that the retry sees no failure: put the retry inside the queue, or use ResilientApplier",
	{breaking, retrying}:  "to which all attempts on a record are one call: put the retry around the breaker, or use ResilientApplier",
	{breaking, parking}:   "so that the breaker sees no failure: put the breaker inside the queue, or use ResilientApplier",
	{timing, retrying}:    "which would end all attempts together, and no record would be given up: put the timeout inside the retry, and bound all attempts by RetryPolicy.MaxElapsed",
	{timing, breaking}:    "which has to see what times out: put the timeout inside the breaker, or use ResilientApplier with ResilientConfig.AttemptTimeout",
	{timing, parking}:     "so that a record which always times out is never parked: put the timeout inside the queue",
	{parking, parking}:    "so that the outer queue never gets a letter: leave one of the two out",
	{decoding, parking}:   "so that a row which cannot be decoded is never parked, and comes back without end: put the queue around the decoder",
	{resilient, retrying}: "which has a retry of its own: leave the other one out",
	{resilient, parking}:  "which has a dead letter queue of its own: leave the other one out",
}

// misplaced reports an order of decorators that does not do what it looks like. The
// field is what put the outer one there.
func misplaced(field string, outer kind, stack *layer) (fault error) {
	within(stack, false, func(l *layer, branch bool) bool {
		inner := l.kind
		why := misplacements[[2]kind{outer, inner}]
		if why == "" || branch && outer == parking && inner == parking { // it gets what the branches do not park
			return false
		}
		problem := fmt.Sprintf("has %v inside %v, %s", inner, outer, why)
		if field != "applier" {
			problem = fmt.Sprintf("is around %v, %s", inner, why)
		}
		if branch {
			problem += " (it is in a branch of a fan-out, which goes around all else, with a stack for each branch)"
		}
		fault = &ConfigError{field, problem}
		return true
	})
	return fault
}

// within shows every decorator of a stack, outermost first, and whether it is in a
// branch, until it is the one looked for.
func within(l *layer, branch bool, found func(l *layer, branch bool) bool) bool {
	if l == nil {
		return false
	}
	if found(l, branch) {
		return true
	}
	for _, inner := range l.inside {
		if within(inner.layer, branch || l.kind == branching, found) {
			return true
		}
	}
	return false
}

// exposed reports whether a dead letter queue has neither a retry nor a breaker
// inside. Such a queue takes a record at its first failure, and in an outage it
// takes healthy records.
func exposed(stack *layer) bool {
	return within(stack, false, func(l *layer, _ bool) bool {
		return l.kind == parking && !slices.ContainsFunc(l.inside, func(inner insideLayer) bool {
			return within(inner.layer, false, func(l *layer, _ bool) bool { return l.kind == retrying || l.kind == breaking })
		})
	})
}

// parkersOf returns what parks records in a stack, fan-outs included.
func parkersOf(stack *layer) (found []*parker) {
	within(stack, false, func(l *layer, _ bool) bool {
		if l.parks != nil {
			found = append(found, l.parks)
		}
		return false
	})
	return found
}

// branchOf returns in which branch of a fan-out a breaker of a stack is, "" if in none.
func branchOf(l *layer, b *Breaker) (branch string, found bool) {
	if l == nil {
		return "", false
	}
	if l.breaker == b {
		return "", true
	}
	for _, inner := range l.inside {
		if branch, found = branchOf(inner.layer, b); found {
			return inner.named(branch), true
		}
	}
	return "", false
}

// named returns the name of a branch inside, with the branch that it is in.
func (i *insideLayer) named(branch string) string {
	if i.branch == "" {
		return branch
	}
	return joinBranches(i.branch, branch)
}

// joinBranches names a branch of a fan-out that is in a branch of another one.
func joinBranches(outer, inner string) string {
	if inner == "" {
		return outer
	}
	return outer + "/" + inner
}

// keyedIn returns the keyed breaker that every record of a stack passes, nil if there is
// none.
func keyedIn[T any](stack *layer) (found *KeyedBreaker[T]) {
	within(stack, false, func(l *layer, branch bool) bool {
		if a, ok := l.of.(*KeyedBreaker[T]); ok && !branch {
			found = a
		}
		return found != nil
	})
	return found
}

// keyedStats returns the metrics of the keyed breakers of a stack.
func keyedStats(l *layer, branch string) (found []BreakerStats) {
	if l == nil {
		return nil
	}
	if l.keyed != nil {
		for _, m := range l.keyed() {
			found = append(found, BreakerStats{branch, m})
		}
	}
	for _, inner := range l.inside {
		in := branch
		if inner.branch != "" {
			in = strings.TrimPrefix(joinBranches(branch, inner.branch), "/")
		}
		found = append(found, keyedStats(inner.layer, in)...)
	}
	return found
}

// keyedFanOuts returns the fan-outs of a stack with a keyed breaker in a branch, whose
// records wait in the hand of any coordinator.
func keyedFanOuts(stack any) []any {
	return held(stack, func(l *layer) bool {
		return l.kind == branching && within(l, false, func(l *layer, _ bool) bool { return l.keyed != nil })
	})
}

// pausedBy returns which branch, and which breaker, an error over which the intake
// stops is of.
func pausedBy(err error) (branch string, open *OpenError) {
	var fan *FanOutError
	if !errors.As(err, &fan) {
		errors.As(err, &open)
		return "", open
	}
	for _, f := range fan.Failures {
		if _, paused := pauseOf(f.Err); paused {
			inner, open := pausedBy(f.Err)
			return joinBranches(f.Branch, inner), open
		}
	}
	return "", nil
}

// gate is what a stack says before anything is fetched for it.
type gate struct {
	closed bool      // nothing would pass now
	until  time.Time // when it is worth asking again
	probe  bool      // one record would pass, as a probe
	cause  error
}

// passing reports whether every call would pass.
func (g *gate) passing() bool { return !g.closed && !g.probe }

// breakersOf returns the breakers that every call through a stack passes.
func breakersOf(l *layer) (found []*Breaker) {
	if l == nil {
		return nil
	}
	if l.breaker != nil {
		found = append(found, l.breaker)
	}
	for _, inner := range l.inside {
		if inner.needed {
			found = append(found, breakersOf(inner.layer)...)
		}
	}
	return found
}

// gateOf asks the breakers of a stack, without taking a permit. All must let a
// call through.
func gateOf(stack []*Breaker) (all gate) {
	for _, b := range stack {
		g := b.gate()
		if g.closed && (!all.closed || g.until.After(all.until)) {
			all.closed, all.until, all.cause = true, g.until, g.cause
		}
		all.probe = all.probe || g.probe
	}
	return all
}

// passing reports whether every breaker of a stack lets all calls through.
func passing(stack []*Breaker) bool {
	return !slices.ContainsFunc(stack, func(b *Breaker) bool { return !b.passing() })
}

// retryOwnersOf returns the retries of a stack, those of all branches of a fan-out
// included.
func retryOwnersOf(stack *layer) (found []any) {
	within(stack, false, func(l *layer, _ bool) bool {
		if l.kind == retrying {
			found = append(found, l.of)
		}
		return false
	})
	return found
}

// heldRetries returns the retries of a stack whose waits a coordinator may keep, and the
// fan-outs that they are in. One inside a decorator of the user's is not among them: that
// takes what it gets for the end of the retries.
func heldRetries(stack any) []any {
	return held(stack, func(l *layer) bool { return l.kind == retrying || l.kind == branching })
}

// held returns the decorators of a stack that are wanted, down to those of the user's.
func held(stack any, wanted func(l *layer) bool) (found []any) {
	var down func(l *layer)
	down = func(l *layer) {
		if l == nil {
			return
		}
		if wanted(l) {
			found = append(found, l.of)
		}
		for _, inner := range l.inside {
			if inner.direct {
				down(inner.layer)
			}
		}
	}
	if d, ours := stack.(described); ours {
		down(d.describe())
	}
	return found
}
