package sim

import (
	"context"
	"fmt"
	"runtime"

	"github.com/erfanmomeniii/courier"
)

// WrapFetch makes a fetch function part of the world: the seed decides when each call
// happens and whether it fails. The function runs on the caller's goroutine; it may
// block on what is in the bubble, but not on real input and output.
func WrapFetch[T any](w *World, fetch func(ctx context.Context) ([]T, error)) func(ctx context.Context) ([]T, error) {
	return func(ctx context.Context) (records []T, err error) {
		p := processOf(ctx)
		err = p.around(ctx, Fetch, uint64(p.instance), "the source", func() error {
			records, err = fetch(ctx)
			w.fold(uint64(len(records)), 0)
			return err
		})
		if err != nil {
			records = nil
		}
		return records, err
	}
}

// WrapProcess does the same for a process function, or the Apply of an applier.
func WrapProcess[T any](w *World, process func(ctx context.Context, record T) error) func(ctx context.Context, record T) error {
	return func(ctx context.Context, record T) error {
		p, name := processOf(ctx), fmt.Sprint(record)
		return p.around(ctx, Apply, digest(name), name, func() error { return process(ctx, record) })
	}
}

// WrapMark does the same for a mark function.
func WrapMark[T any](w *World, mark func(ctx context.Context, records []T) error) func(ctx context.Context, records []T) error {
	return func(ctx context.Context, records []T) error {
		p := processOf(ctx)
		name := fmt.Sprint(records)
		return p.around(ctx, Mark, digest(name), name, func() error { return mark(ctx, records) })
	}
}

// WrapDLQ does the same for the Send of a dead letter queue.
func WrapDLQ[T any](w *World, queue courier.DLQ[T]) courier.DLQ[T] { return parking[T]{queue} }

type parking[T any] struct{ courier.DLQ[T] }

func (q parking[T]) Send(ctx context.Context, letter courier.DeadLetter[T]) error {
	p, name := processOf(ctx), fmt.Sprint(letter.Record)
	return p.around(ctx, Send, digest(name), name, func() error { return q.DLQ.Send(ctx, letter) })
}

// Call makes a call of the code under test part of the world, such as the write of a
// store inside a source of your own: the seed decides when it happens, and whether it
// fails before or after its effect, takes long, or hangs until ctx ends. It does not
// happen at all if the process has crashed by then. name tells it from other calls. ctx is
// that of the method that makes the call, or of the function given to [World.Run].
func (w *World) Call(ctx context.Context, name string, do func() error) error {
	return processOf(ctx).around(ctx, Call, digest(name), name, do)
}

// around makes a call whose effect a function of the user's has: it parks before
// and after. What an injected panic ends is the caller's goroutine.
func (p *Process) around(ctx context.Context, kind Kind, id uint64, name string, effect func() error) error {
	c := p.do(ctx, kind, id, name, nil, nil)
	if c.err != nil {
		fault, err := c.fault, c.err
		var value any
		if fault == Panic {
			value = c.thrown()
		}
		p.done(c)
		switch fault {
		case Panic:
			panic(value)
		case Goexit:
			runtime.Goexit()
		case LeaseLost:
			return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: err}}}
		}
		return err
	}
	err := effect()
	if c.fault == Lost && err == nil {
		err = c.fail("lost, after it had its effect")
	}
	c.err = err
	p.close(c)
	if c.err == nil && p.dead {
		c.err = errCrashed
	}
	err = c.err
	p.done(c)
	return err
}
