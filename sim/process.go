package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// Process is one life of a pipeline: what the function given to [World.Run] is
// called for. A crash or a stop ends it, and another begins.
type Process struct {
	w        *World
	run      func(ctx context.Context) error
	instance int // which of several pipelines
	number   int // of all processes of the world
	clock    Clock
	ctx      context.Context
	cancel   context.CancelFunc
	down     time.Duration // before the next one begins

	dead      bool // what it does has no effect
	stopping  bool
	ended     bool
	askedAt   int64 // to stop
	stoppedAt int64 // likewise, or when it stood still no more
	still     int64 // until when it stands still
	stood     int64 // for how long it has stood still, and will, in all
	err       error
	open      int           // calls that have no reply yet
	threw     atomic.Uint64 // what the last call was about that did not return
	calls     int
	began     int64
}

type processKey struct{}

// processOf returns the process that a call is made by.
func processOf(ctx context.Context) *Process {
	p, _ := ctx.Value(processKey{}).(*Process)
	if p == nil {
		panic("sim: the context does not come from the function that was given to World.Run: pass that one on to Start")
	}
	return p
}

// start begins a process.
func (w *World) start(instance int, run func(ctx context.Context) error) {
	p := &Process{w: w, run: run, instance: instance, number: len(w.processes), began: w.now.Load()}
	p.clock.p = p
	p.clock.skew.Store(int64(w.skew))
	p.ctx, p.cancel = context.WithCancel(context.WithValue(context.Background(), processKey{}, p))
	w.processes = append(w.processes, p)
	w.living++
	w.note(entry{p: p, text: "begins"})
	if w.begins != nil {
		w.begins(p)
	}
	go func() {
		err := p.run(p.ctx)
		w.mu.Lock()
		w.returned = append(w.returned, returned{p, err})
		w.mu.Unlock()
	}()
}

// again is the error of a process that has ended as it should, and that begins anew
// after a while.
type again time.Duration

func (a again) Error() string { return fmt.Sprintf("once more in %v", time.Duration(a)) }

type returned struct {
	p   *Process
	err error
}

// suffer has a fault happen to a process. It reports whether goroutines may run
// because of it.
func (p *Process) suffer(f Fault) (woke bool) {
	w := p.w
	if p.ended || p.dead || p.stopping && f.What != Crash {
		return false
	}
	w.note(entry{p: p, fault: f.What, text: f.String()})
	w.fold(uint64(f.What), uint64(p.number))
	w.Sometimes(f.What.String())
	p.down = f.For
	switch f.What {
	case Crash:
		p.die()
	case Stop:
		p.stop()
	case Pause:
		p.still = max(p.still, w.now.Load()) + int64(f.For)
		p.stood += int64(f.For)
		w.postpone(p, int64(f.For))
		return false
	case Step:
		w.skew += f.For
		p.clock.skew.Store(int64(w.skew))
		w.stepped += f.For.Abs()
		return false
	}
	return true
}

func (p *Process) stop() {
	p.askedAt = p.w.now.Load()
	p.stopping, p.stoppedAt = true, max(p.still, p.w.now.Load())
	if len(p.w.parked) > 0 {
		p.w.Sometimes("stop in mid-work")
	}
	p.cancel()
}

// die has no effect of the process happen from here on. Its calls return soon,
// with an error.
func (p *Process) die() {
	p.dead = true
	if p.w.dies != nil {
		p.w.dies(p)
	}
	p.cancel()
	for _, c := range p.w.parked {
		if c.p == p {
			c.err, c.fault, c.gone = errCrashed, None, true
			p.w.resume(p.w.now.Load()+1, c)
		}
	}
}

// end takes in that the function of a process has returned.
func (p *Process) end(err error) {
	w := p.w
	after, asIntended := err.(again)
	if asIntended {
		p.down, err = time.Duration(after), nil
	}
	p.ended, p.err = true, err
	p.cancel()
	w.living--
	w.note(entry{p: p, text: fmt.Sprintf("has ended: %v", err)})
	w.fold(uint64(p.number), uint64(p.open))
	if p.open > 0 {
		w.Fail("D8: process %d has returned with %d calls under way", p.number, p.open)
	}
	switch {
	case p.dead:
	case asIntended:
	case !p.stopping:
		w.Fail("process %d has ended by itself: %v", p.number, err)
	case w.options.StopWithin > 0 && w.now.Load()-p.stoppedAt > int64(w.options.StopWithin):
		w.Fail("D8: process %d took %v to stop, more than %v", p.number, time.Duration(w.now.Load()-p.stoppedAt), w.options.StopWithin)
	}
	if w.ends != nil {
		w.ends(p)
	}
	if !w.aborting && !w.finishing {
		w.at(int64(p.down), p, func() bool {
			if w.finishing || w.aborting {
				return false
			}
			w.start(p.instance, p.run)
			return true
		})
	}
}

// Clock returns the virtual clock of the process that ctx belongs to: the one
// that was given to the function of [World.Run], or one derived from it.
func (w *World) Clock(ctx context.Context) *Clock { return &processOf(ctx).clock }

// Random returns a source of random numbers that go by the seed, for the process
// that ctx belongs to.
func (w *World) Random(ctx context.Context) func() float64 { return processOf(ctx).random }

// Observe returns an observer that lets workers that begin with their records at
// the same time come to it in an order drawn by the seed.
func (w *World) Observe(ctx context.Context) courier.Observer {
	p := processOf(ctx)
	return courier.Observer{RecordStarted: func(ctx context.Context, e courier.RecordEvent) {
		p.done(p.doFor(ctx, e.Number, Begin, digest(e.Record), e.Record, nil, func(*call) {}))
	}}
}

// Retry completes a policy with the clock and the random numbers of the
// simulation, and has each retry come in an order drawn by the seed.
func (w *World) Retry(ctx context.Context, policy courier.RetryPolicy) courier.RetryPolicy {
	p := processOf(ctx)
	policy.Clock, policy.Random = &p.clock, p.random
	given, retried := policy.OnGiveUp, policy.OnRetry
	policy.OnGiveUp = func(ctx context.Context, err *courier.RetryError) {
		p.done(p.do(ctx, Hook, p.blamed(err), "a give-up", nil, func(*call) {}))
		if given != nil {
			given(ctx, err)
		}
	}
	policy.OnRetry = func(ctx context.Context, e courier.RetryEvent) {
		p.done(p.do(ctx, Hook, p.blamed(e.Err), "a retry", nil, func(*call) {}))
		if retried != nil {
			retried(ctx, e)
		}
	}
	return policy
}

// Options returns what makes a coordinator of the process that ctx belongs to
// part of the simulation, and a batch size and a drain timeout drawn by the seed.
func (w *World) Options(ctx context.Context) []courier.Option {
	return []courier.Option{
		courier.WithClock(w.Clock(ctx)), courier.WithRandom(w.Random(ctx)),
		courier.WithLogger(slog.New(slog.DiscardHandler)), courier.WithObserver(w.Observe(ctx)),
		courier.WithBatchSize(1 + w.Pick("batch size", 20)), courier.WithDrainTimeout(5 * time.Second),
	}
}

// blamed returns the record that an error is about, 0 if none. A panic and a Goexit
// need not tell: it is the call that just ended so, for one goroutine goes on at a time.
func (p *Process) blamed(err error) (id uint64) {
	var panicked *courier.PanicError
	if errors.As(err, &panicked) {
		return p.threw.Load()
	}
	return blamed(err)
}

// postponed returns for how long an error of the simulation asks with courier.Later, 0
// if it does not.
func postponed(err error) (after time.Duration) {
	switch e := err.(type) {
	case *callError:
		after = e.after
	case interface{ Unwrap() error }:
		after = postponed(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			after = max(after, postponed(one))
		}
	}
	return after
}

// blamed returns the record that an error of the simulation is about, 0 if none.
func blamed(err error) (id uint64) {
	defer func() { _ = recover() }() // a nil pointer in the tree, which tells nothing
	var found *callError
	if errors.As(err, &found) {
		return found.id
	}
	return 0
}
