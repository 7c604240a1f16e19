package courier

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// This room is about stacks of decorators: which orders make no sense, and
// whether a stack lets calls through at all. A decorator tells what it is and
// what is inside it; a decorator of the user's is seen through where it has an
// Unwrap, and else the view ends at it.

// layer is a decorator of this package.
type layer interface {
	kind() kind
	inside() []layer // what it decorates: one applier, or the branches of a fan-out; nil for one of the user's
	next() []layer   // of these the ones that no decorator of the user's is around
}

// maxUnwraps is more than anybody has decorators: one that returns itself ends there.
const maxUnwraps = 100

// layerOf returns the outermost decorator of this package in a stack, nil where there
// is none to be seen.
func layerOf[T any](applier Applier[T]) layer {
	for range maxUnwraps {
		if l, ok := applier.(layer); ok {
			return l
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
		fault = configErrorOf(field, l)
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
	{timing, breaking}:    "which has to see what times out: put the timeout inside the breaker, or use ResilientApplier with RetryPolicy.AttemptTimeout",
	{timing, parking}:     "so that a record which always times out is never parked: put the timeout inside the queue",
	{parking, parking}:    "so that the outer queue never gets a letter: leave one of the two out",
	{decoding, parking}:   "so that a row which cannot be decoded is never parked, and comes back without end: put the queue around the decoder",
	{resilient, retrying}: "which has a retry of its own: leave the other one out",
	{resilient, parking}:  "which has a dead letter queue of its own: leave the other one out",
}

// misplaced reports an order of decorators that does not do what it looks like. The
// field is what put the outer one there.
func misplaced(field string, outer kind, stack layer) (fault error) {
	within(stack, false, func(l layer, branch bool) bool {
		inner := l.kind()
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
func within(l layer, branch bool, found func(l layer, branch bool) bool) bool {
	if l == nil {
		return false
	}
	if found(l, branch) {
		return true
	}
	for _, inner := range l.inside() {
		if within(inner, branch || l.kind() == branching, found) {
			return true
		}
	}
	return false
}

// exposed reports whether a dead letter queue has neither a retry nor a breaker
// inside. Such a queue takes a record at its first failure, and in an outage it
// takes healthy records.
func exposed(stack layer) bool {
	return within(stack, false, func(l layer, _ bool) bool {
		return l.kind() == parking && !slices.ContainsFunc(l.inside(), func(inner layer) bool {
			return within(inner, false, func(l layer, _ bool) bool { return l.kind() == retrying || l.kind() == breaking })
		})
	})
}

// parker is a decorator that parks records.
type parker interface {
	deadLetters() any
	branchName() string
	ownsQueue() bool
	parksIn(queue any) bool
}

// parkersOf returns those of a stack, fan-outs included.
func parkersOf(stack layer) (found []parker) {
	within(stack, false, func(l layer, _ bool) bool {
		if p, ok := l.(parker); ok {
			found = append(found, p)
		}
		return false
	})
	return found
}

// breakerIn returns the breaker of a decorator, nil when it is none.
func breakerIn(l layer) *Breaker {
	if b, ok := l.(interface{ breakerOf() *Breaker }); ok {
		return b.breakerOf()
	}
	return nil
}

// branchOf returns in which branch of a fan-out a breaker of a stack is, "" if in none.
func branchOf(l layer, b *Breaker) (branch string, found bool) {
	if l == nil {
		return "", false
	}
	if breakerIn(l) == b {
		return "", true
	}
	fan, fans := l.(interface{ branchNames() []string })
	for i, inner := range l.inside() {
		branch, found = branchOf(inner, b)
		switch {
		case !found:
			continue
		case fans:
			branch = joinBranches(fan.branchNames()[i], branch)
		}
		return branch, true
	}
	return "", false
}

// joinBranches names a branch of a fan-out that is in a branch of another one.
func joinBranches(outer, inner string) string {
	if inner == "" {
		return outer
	}
	return outer + "/" + inner
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

// breakersOf returns the breakers that every call through a stack passes.
func breakersOf(l layer) (found []*Breaker) {
	if l == nil {
		return nil
	}
	if b := breakerIn(l); b != nil {
		found = append(found, b)
	}
	passed := l.inside()
	if f, ok := l.(interface{ needed() []layer }); ok {
		passed = f.needed()
	}
	for _, inner := range passed {
		found = append(found, breakersOf(inner)...)
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

func (b *Breaker) gate() gate {
	if b.calm.Load() != 0 {
		return gate{}
	}
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Phase.Passing() {
		return gate{}
	}
	if b.state.Ready(&b.kernel, now) {
		return gate{probe: true}
	}
	return gate{closed: true, until: b.refused().Until, cause: b.refusal}
}
