package courier

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ErrDrainTimeout is the cause of a context that was cancelled because work or
// marks did not end within the drain timeout after a stop.
var ErrDrainTimeout = errors.New("courier: the drain timeout passed before the work in flight ended")

// lifecycle is the two phases of a stop (D8), as contexts. Once stop has ended
// nothing is fetched or begun. Work in flight has until the drain timeout, and
// its marks and releases as long again from when it ended: they begin under a
// live context, even behind an apply that did not heed its own.
type lifecycle struct {
	stop   context.Context // the caller's
	work   context.Context // what user code applies under
	settle context.Context // what is marked and released under

	cancelWork, cancelSettle context.CancelCauseFunc
	applied, finished        chan struct{}
	once                     sync.Once // closes applied
	applying                 atomic.Bool
	watcher                  sync.WaitGroup
}

func beginLifecycle(ctx context.Context, w *watch, clock Clock, drain time.Duration) *lifecycle {
	l := &lifecycle{stop: ctx, applied: make(chan struct{}), finished: make(chan struct{})}
	detached := withPassage(context.WithoutCancel(ctx), &passage{stop: ctx, watch: w})
	l.work, l.cancelWork = context.WithCancelCause(detached)
	l.settle, l.cancelSettle = context.WithCancelCause(detached)
	l.watcher.Go(func() {
		select {
		case <-ctx.Done():
		case <-l.finished:
			return
		}
		if !l.applying.Load() {
			l.lastApplied()
		}
		select {
		case <-clock.After(drain):
			l.cancelWork(ErrDrainTimeout)
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
		select {
		case <-clock.After(drain):
			l.cancelSettle(ErrDrainTimeout)
		case <-l.finished:
		}
	})
	return l
}

// lastApplied says, after a stop, that no apply is in flight or will be: from
// here on the time for marks and releases runs.
func (l *lifecycle) lastApplied() { l.once.Do(func() { close(l.applied) }) }

// endApply says that the applies of a batch have ended. Either it sees the stop,
// or the watcher, which looks after the stop, sees what is stored here.
func (l *lifecycle) endApply() {
	l.applying.Store(false)
	if l.stop.Err() != nil {
		l.lastApplied()
	}
}

// end is called when all work has ended.
func (l *lifecycle) end() {
	close(l.finished)
	l.watcher.Wait()
	l.cancelWork(ErrStopped)
	l.cancelSettle(ErrStopped)
}

// sleep waits on the clock, or until ctx ends.
func sleep(ctx context.Context, clock Clock, d time.Duration) {
	if d <= 0 || ctx.Err() != nil {
		return
	}
	select {
	case <-clock.After(d):
	case <-ctx.Done():
	}
}
