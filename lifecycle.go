package courier

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// ErrDrainTimeout is the cause of a context that was cancelled because work or
// marks did not end within the drain timeout after a stop.
var ErrDrainTimeout = errors.New("courier: the drain timeout passed before the work in flight ended")

// lifecycle has the two phases of a stop (D8), as contexts. Once stop has ended, nothing
// is fetched or begun. In-flight work gets the drain timeout. Marks and releases then get
// another one, or what is left of two, but never less than half of one, measured from the
// end of the last apply: so an apply that ignores its context cannot consume their time.
type lifecycle struct {
	stop   context.Context // the caller's
	work   context.Context // what user code applies under
	settle context.Context // what is marked and released under

	clock  Clock
	drain  time.Duration
	values context.Context                 // the caller's, without its end
	late   atomic.Pointer[context.Context] // see overtime

	drainOver func() (tell func()) // is called when the drain timeout passes, and what it returns after that; nil for nothing

	cancelWork, cancelSettle context.CancelCauseFunc
	applied, finished        chan struct{}
	once                     sync.Once // closes applied
	applying                 atomic.Bool
	watcher                  sync.WaitGroup
}

func beginLifecycle(ctx context.Context, w *watch, clock Clock, drain time.Duration, drainOver func() func()) *lifecycle {
	l := &lifecycle{stop: ctx, clock: clock, drain: drain, drainOver: drainOver, applied: make(chan struct{}), finished: make(chan struct{})}
	l.values = withPassage(context.WithoutCancel(ctx), &passage{stop: ctx, watch: w, life: l})
	l.work, l.cancelWork = context.WithCancelCause(l.values)
	l.settle, l.cancelSettle = context.WithCancelCause(l.values)
	l.watcher.Go(l.loop)
	return l
}

func (l *lifecycle) loop() {
	select {
	case <-l.stop.Done():
	case <-l.finished:
		return
	}
	if !l.applying.Load() {
		l.lastApplied()
	}
	once, twice := l.clock.After(l.drain), l.clock.After(2*min(l.drain, math.MaxInt64/2))
	select {
	case <-once:
		tell := func() {}
		if l.drainOver != nil { // which looks before the work is told to end
			tell = l.drainOver()
		}
		l.cancelWork(ErrDrainTimeout)
		l.watcher.Go(tell) // apart: a log may take its time
	case <-l.applied:
		l.cancelWork(ErrStopped)
	case <-l.finished:
		return
	}
	select {
	case <-l.applied:
	case <-l.finished:
		return
	}
	whole, half := l.clock.After(l.drain), l.clock.After(l.drain/2)
	for left := 2; left > 0; left-- { // both have to pass, or the whole
		select {
		case <-whole:
			left = 0
		case <-twice:
			twice = nil
		case <-half:
			half = nil
		case <-l.finished:
			return
		}
	}
	l.cancelSettle(ErrDrainTimeout)
}

// overtime is the context of what has to be done after all for work that ended
// after the drain timeout: half a drain timeout, which all that begins within it
// shares.
func (l *lifecycle) overtime() context.Context {
	late := l.late.Load()
	if late != nil && (*late).Err() == nil {
		return *late
	}
	ctx, cancel := context.WithCancelCause(l.values)
	over := l.clock.After(l.drain / 2)
	if !l.late.CompareAndSwap(late, &ctx) { // another call has begun it
		cancel(nil)
		return *l.late.Load()
	}
	l.watcher.Go(func() {
		select {
		case <-over:
		case <-l.finished:
		}
		cancel(ErrDrainTimeout)
	})
	return ctx
}

// lastApplied says, after a stop, that no apply is in flight or will be: from
// here on the time for marks and releases runs.
func (l *lifecycle) lastApplied() { l.once.Do(func() { close(l.applied) }) }

// endApply says that the applies of a batch, or a fetch, have ended. Either it
// sees the stop, or the watcher, which looks after the stop, sees what is stored
// here.
func (l *lifecycle) endApply() {
	l.applying.Store(false)
	if l.stop.Err() != nil {
		l.lastApplied()
	}
}

// drainTimedOut reports whether the drain timeout has ended the work.
func (l *lifecycle) drainTimedOut() bool {
	return errors.Is(context.Cause(l.work), ErrDrainTimeout)
}

// end is called when all work has ended.
func (l *lifecycle) end() {
	close(l.finished)
	l.watcher.Wait()
	passageOf(l.values).owed.payBack()
	l.cancelWork(ErrStopped)
	l.cancelSettle(ErrStopped)
}

// What follows is about goroutines that call user code, and go on when that ends them
// (runtime.Goexit).

// supervise runs a loop on a goroutine of its own until it returns. When user
// code ends the goroutine, the loop is called again, on another, and goes on
// from what it has noted.
func supervise(loop func()) {
	for returned := false; !returned; {
		var wg sync.WaitGroup
		wg.Go(func() {
			loop()
			returned = true
		})
		wg.Wait()
	}
}

// serve handles what comes on a channel, one after the other, until that is closed. When
// user code ends the goroutine, the same is handled again, on another, and again is true.
func serve[Q any](asked <-chan Q, handle func(q Q, again bool)) {
	var q Q
	busy, again := false, false
	supervise(func() {
		for {
			if !busy {
				next, ok := <-asked
				if !ok {
					return
				}
				q, busy, again = next, true, false
			}
			before := again
			again = true
			handle(q, before)
			var none Q // for the garbage collector
			q, busy = none, false
		}
	})
}

// task is what a worker is handed. It notes how far it is before user code is called.
type task interface {
	run(stop, ctx context.Context)
	done() // by the worker, which is free again
}

// work is the goroutine of a worker.
func work[H task](stop, ctx context.Context, todo <-chan H) {
	ctx = withExits(ctx)
	serve(todo, func(t H, _ bool) {
		t.run(stop, ctx)
		t.done()
	})
}
