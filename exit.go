package courier

import (
	"context"
	"sync"
)

// A function of the user's that calls runtime.Goexit ends the goroutine, and with
// it every call that is under way there, so that no decorator can return what it
// made of that. This file is how the attempt counts as a failed one all the same:
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
