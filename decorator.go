package courier

import (
	"context"
	"sync"
)

// This file is about what decorators are made of, and about a call that ends the goroutine
// in the middle of a stack.

// stage is what every decorator is made of: the applier inside it, the batch
// form of that where there is one, and what is wrong with the configuration.
type stage[T any] struct {
	tells *layer
	inner Applier[T]
	batch BatchApplier[T]
	order bool // that keeps the order inside a call
	fault error
	ours  bool // what is inside is a decorator, whose errors are sound
	safe  bool // and lets no panic through
}

func newStage[T any](what kind, inner Applier[T], fault error) stage[T] {
	below := layerOf(inner)
	fault = firstFault(applierFault("applier", inner), fault, misplaced("applier", what, below))
	s := stage[T]{inner: inner, fault: fault}
	if inner != nil {
		s.batch, s.order = asBatch(inner), isOrdered(inner)
		s.ours = isOurs(inner)
		s.safe = s.ours && below.kind.catches()
	}
	s.tells = &layer{kind: what, fault: fault, inside: []insideLayer{{layer: below, direct: s.ours, needed: true}}, batches: s.batch != nil}
	return s
}

// Validate reports a fault of the decorator or of what it decorates.
func (s *stage[T]) Validate() error { return s.fault }

// OrderedBatches reports whether what is inside keeps the order.
func (s *stage[T]) OrderedBatches() bool { return s.order }

// Unwrap returns what the decorator is around.
func (s *stage[T]) Unwrap() Applier[T] { return s.inner }

func (s *stage[T]) describe() *layer { return s.tells }

// refuse returns why there is no call to be made: there is a fault, or ctx is nil or
// has ended.
func (s *stage[T]) refuse(ctx context.Context) error {
	switch {
	case s.fault != nil:
		return s.fault
	case ctx == nil:
		return errNoContext
	}
	return unattempted(causeOf(ctx))
}

// attempt is apply with a panic as an error.
func (s *stage[T]) attempt(ctx context.Context, record T) error {
	if s.safe {
		return s.sound(s.inner.Apply(ctx, record))
	}
	return s.shielded(ctx, record)
}

// shielded is guard without a closure, on the path of every record.
func (s *stage[T]) shielded(ctx context.Context, record T) (err error) {
	returned := false
	defer func() {
		if !returned {
			err = newPanicError(recover())
		}
	}()
	err = s.inner.Apply(ctx, record)
	returned = true
	return s.sound(err)
}

func (s *stage[T]) apply(ctx context.Context, record T) error {
	return s.sound(s.inner.Apply(ctx, record))
}

func (s *stage[T]) applyBatch(ctx context.Context, records []T) verdicts {
	return applyMany(ctx, s.batch, records)
}

// attemptBatch is applyBatch with a panic, or a Goexit, as an error of the whole
// batch.
func (s *stage[T]) attemptBatch(ctx context.Context, records []T) (v verdicts) {
	if s.safe {
		return s.applyBatch(ctx, records)
	}
	return isolated(ctx, s.batch, records)
}

// sound makes an error of what is inside one that can be looked into.
func (s *stage[T]) sound(err error) error {
	if err == nil || s.ours {
		return err
	}
	return tested(err)
}

// A function of the user's that calls runtime.Goexit ends the goroutine, and with
// it every call that is under way there, so that no decorator can return what it
// made of that. What follows is how the attempt counts as a failed one all the same:
// a decorator leaves its verdict in the context of the worker, and whoever waits
// for the goroutine calls afterExit, in which the decorators around it go on from
// there on another goroutine.

// exits holds the verdicts that decorators left when a call ended their goroutine,
// by decorator. A worker has one.
type exits struct {
	mu   sync.Mutex
	left map[any]error
	inCall
}

type exitsKey struct{}

// withExits lets the decorators that are called with the context leave verdicts in
// it. It keeps those of a context that has a place for them.
func withExits(ctx context.Context) context.Context {
	if exitsIn(ctx) != nil {
		return ctx
	}
	return context.WithValue(ctx, exitsKey{}, new(exits))
}

func exitsIn(ctx context.Context) *exits {
	e, _ := ctx.Value(exitsKey{}).(*exits)
	return e
}

// leaveVerdict is called by a decorator whose goroutine is ending.
func leaveVerdict(ctx context.Context, decorator any, err error) {
	e := exitsIn(ctx)
	if e == nil {
		return // nobody waits for the goroutine
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left == nil {
		e.left = make(map[any]error)
	}
	e.left[decorator] = err
}

// takeVerdict returns the verdict that a decorator left.
func takeVerdict(ctx context.Context, decorator any) (err error, left bool) {
	e := exitsIn(ctx)
	if e == nil {
		return nil, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	err, left = e.left[decorator]
	delete(e.left, decorator)
	return err, left
}

// resumer is a decorator that can go on with a record after the call inside it
// ended the goroutine. exit is the *PanicError of that.
type resumer[T any] interface {
	resume(ctx context.Context, record T, exit error) error
}

// resumed returns what Apply of an applier would have returned if the call that
// ended its goroutine had returned exit.
func resumed[T any](ctx context.Context, applier Applier[T], record T, exit error) error {
	r, ok := applier.(resumer[T])
	if !ok { // the user's own
		return exit
	}
	if err, left := takeVerdict(ctx, applier); left {
		return err
	}
	return r.resume(ctx, record, exit)
}

// afterExit calls resumed for a call whose goroutine has ended. A later attempt may
// end the next goroutine too, at each decorator once.
func afterExit[T any](ctx context.Context, applier Applier[T], record T, exit error) (err error) {
	returned := false
	for tries := 0; !returned && tries < maxExits; tries++ {
		isolate(&err, func() error {
			verdict := resumed(ctx, applier, record, exit)
			returned = true
			return verdict
		})
	}
	return err
}

// maxExits is more than a stack has decorators: a function that ends every
// goroutine in which it is called does not keep a worker busy.
const maxExits = 10

// isExit reports whether an error is a call of runtime.Goexit.
func isExit(err error) bool {
	p, ok := err.(*PanicError)
	return ok && p.Goexit()
}
