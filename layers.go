package courier

import (
	"fmt"
	"slices"
	"time"
)

// This room is about stacks of decorators: which orders make no sense, and
// whether a stack lets calls through at all. A decorator tells what it is and
// what is inside it; at an applier of the user's the view ends.

type layer interface {
	inside() any
}

// layersOf returns the decorators of a stack, outermost first.
func layersOf(applier any) (layers []layer) {
	for {
		l, ok := applier.(layer)
		if !ok {
			return layers
		}
		layers = append(layers, l)
		applier = l.inside()
	}
}

// Each kind of decorator has a method of its own, which is how one that decorates
// rows tells another that decorates records apart without naming their types.
type (
	retries  interface{ retries() }
	breakers interface{ breakerOf() *Breaker }
	parking  interface{ parks() }
)

// parker is a decorator that parks records.
type parker interface {
	deadLetters() any
	branchName() string
	parksIn(queue any) bool
}

// parkersOf returns those of a stack, fan-outs included.
func parkersOf(applier any) (found []parker) {
	for {
		if p, ok := applier.(parker); ok {
			found = append(found, p)
		}
		if f, ok := applier.(interface{ parkers() []parker }); ok {
			found = append(found, f.parkers()...)
		}
		l, ok := applier.(layer)
		if !ok {
			return found
		}
		applier = l.inside()
	}
}

// misplaced reports an order of decorators that does not do what it looks like.
func misplaced(outer, inner any) error {
	if b, ok := outer.(breakers); ok && slices.Contains(breakersOf(inner), b.breakerOf()) {
		return &ConfigError{"breaker", "is in the stack twice, and its own probe would find it half-open"}
	}
	for _, l := range layersOf(inner) {
		switch l.(type) {
		case parking:
			switch outer.(type) {
			case retries:
				return &ConfigError{"applier", "has a dead letter queue inside a retry, which never sees a failure then: use ResilientApplier, or put the retry inside"}
			case breakers:
				return &ConfigError{"applier", "has a dead letter queue inside a breaker, which never sees a failure then: use ResilientApplier, or put the breaker inside"}
			}
		case retries:
			if _, ok := outer.(breakers); ok {
				return &ConfigError{"applier", "has a retry inside a breaker, to which several attempts are one call then: use ResilientApplier, or put the breaker inside"}
			}
		}
	}
	return nil
}

// gate is what a stack says before anything is fetched for it.
type gate struct {
	closed bool      // nothing would pass now
	until  time.Time // when it is worth asking again
	probe  bool      // one record would pass, as a probe
	cause  error
}

// breakersOf returns the breakers that every call through a stack passes.
func breakersOf(applier any) (found []*Breaker) {
	for {
		if b, ok := applier.(breakers); ok {
			found = append(found, b.breakerOf())
		}
		if f, ok := applier.(interface{ needed() []any }); ok {
			for _, branch := range f.needed() {
				found = append(found, breakersOf(branch)...)
			}
		}
		l, ok := applier.(layer)
		if !ok {
			return found
		}
		applier = l.inside()
	}
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

func (b *Breaker) gate() gate {
	if b.calm.Load() != 0 {
		return gate{}
	}
	now := b.policy.Clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Phase.Passing() {
		return gate{}
	}
	if b.state.Ready(&b.kernel, now) {
		return gate{probe: true}
	}
	return gate{closed: true, until: b.refusal.Until, cause: fmt.Errorf("breaker %v: %w", b.state.Phase, b.refusal)}
}
