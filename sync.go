package courier

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/ledger"
)

// Sync returns a coordinator that fetches records, processes each and marks
// those that were processed, again and again: every interval (5 seconds by
// default), and at once while the source has more. Nothing happens before
// Start.
//
// The records of a batch are processed one after the other in the order
// fetched, and marked in one call. A record whose process returns an error is
// not marked, so that fetch returns it again; the others of its batch go on. A
// record that never succeeds comes back for ever, and a batch full of such
// records hides those behind it: for those there is a dead letter queue, see
// [ResilientApplier]. The three functions follow the rules of [Source] and
// [Applier].
func Sync[T any](
	fetch func(ctx context.Context) ([]T, error),
	process func(ctx context.Context, record T) error,
	mark func(ctx context.Context, records []T) error,
	opts ...Option,
) *PollingCoordinator[T] {
	return NewPollingCoordinator(BatchSourceFunc[T]{fetch, mark}, ProcessFunc(process), opts...)
}

// SyncWithRetry is [Sync] with up to maxAttempts attempts for each record,
// with exponential backoff and jitter between them as in the default
// [RetryPolicy], at each delivery. There is no dead letter queue in it: a record
// that was given up comes back with a later fetch.
func SyncWithRetry[T any](
	fetch func(ctx context.Context) ([]T, error),
	process func(ctx context.Context, record T) error,
	mark func(ctx context.Context, records []T) error,
	maxAttempts int,
	opts ...Option,
) *PollingCoordinator[T] {
	c := newConfig(opts)
	applier := NewRetryableApplier(ProcessFunc(process), RetryPolicy{MaxAttempts: max(maxAttempts, 1), Clock: c.clock, Random: c.random})
	coordinator := NewPollingCoordinator(BatchSourceFunc[T]{fetch, mark}, applier, opts...)
	if maxAttempts < 1 && coordinator.fault == nil {
		coordinator.fault = &ConfigError{"maxAttempts", fmt.Sprintf("is %d: want at least 1", maxAttempts)}
	}
	return coordinator
}

// RunOnce makes one pass and returns: one fetch, of which every record is
// processed and marked as in [Sync]. It is meant for cron jobs. Options that
// set a pace have no effect.
//
// The error is nil when every record fetched was processed and marked. Else
// errors.Is and errors.As see the errors of the records (a [*BatchError] with
// the indices in the order fetched), of the fetch, and of the mark (a
// [*MarkError], after several tries). When ctx ends, the record in work is
// finished and what was processed is marked, within the drain timeout, and the
// error is the cause of ctx.
func RunOnce[T any](
	ctx context.Context,
	fetch func(ctx context.Context) ([]T, error),
	process func(ctx context.Context, record T) error,
	mark func(ctx context.Context, records []T) error,
	opts ...Option,
) error {
	return NewPollingCoordinator(BatchSourceFunc[T]{fetch, mark}, ProcessFunc(process), opts...).RunOnce(ctx)
}

// work is the engine: records in hand, one after the other through the
// applier, and what became of each. It has no goroutine of its own. When user
// code ends the goroutine that called run (runtime.Goexit), run is called again
// on another and goes on behind the record that did it.
type work[T any] struct {
	applier Applier[T]
	batch   BatchApplier[T] // nil unless the applier is better at batches

	ledger ledger.Ledger[T]
	past   []history // attempts used before, parallel to the records; nil when none were

	at      int  // the record in work; those before it have their verdict
	tried   bool // as a batch
	partly  bool // and only records with a history are left to do
	calling bool // user code runs
	halted  halt
}

// halt is why a batch was left before its end.
type halt struct {
	err   error     // nil when it was not
	at    int       // the record over which
	until time.Time // when it is worth going on
	fatal bool      // never: the pipeline is misconfigured
}

func (w *work[T]) reset(records []T, past []history) {
	w.ledger.Reset(records)
	w.past, w.at, w.tried, w.partly, w.calling, w.halted = past, 0, false, false, false, halt{}
}

// run applies the records until all have a verdict, stop has ended, or the
// destination takes nothing for now. What it leaves is pending.
func (w *work[T]) run(stop, ctx context.Context) {
	if w.batch != nil && !w.tried && len(w.ledger.Records) > 0 && stop.Err() == nil {
		w.applyBatch(ctx)
	}
	for w.at < len(w.ledger.Records) && w.halted.err == nil && stop.Err() == nil {
		w.applySome(stop, ctx)
	}
}

// applySome applies records until one panics. One deferred call for all of
// them is what makes a panic cost nothing to those that do not.
func (w *work[T]) applySome(stop, ctx context.Context) {
	defer func() {
		if w.calling {
			w.calling = false
			w.note(ctx, w.at, newPanicError(recover()))
			w.at++
		}
	}()
	one := ctx
	for w.at < len(w.ledger.Records) && w.halted.err == nil && stop.Err() == nil {
		if w.past != nil {
			if w.partly && w.past[w.at] == nil {
				w.at++
				continue
			}
			one = withHistories(ctx, w.past[w.at:w.at+1])
		}
		w.calling = true
		err := w.applier.Apply(one, w.ledger.Records[w.at])
		w.calling = false
		if err == nil {
			w.ledger.Settle(w.at)
		} else {
			w.note(ctx, w.at, sound(err))
		}
		w.at++
	}
}

// applyBatch applies as one batch the records that have no attempts behind
// them. One that has may be poison, and goes alone rather than fail the batch
// for all. After a batch that failed as one, all go alone.
func (w *work[T]) applyBatch(ctx context.Context) {
	w.tried = true
	records := w.ledger.Records
	var index []int
	if w.past != nil {
		records = nil
		for i, past := range w.past {
			if past == nil {
				index = append(index, i)
				records = append(records, w.ledger.Records[i])
			}
		}
		if len(records) == 0 {
			return
		}
	}
	var err error
	guard(&err, func() error { return w.batch.ApplyBatch(ctx, records) })

	errs := make([]error, len(records))
	if whole := spread(err, errs); whole && len(records) > 1 && Classify(ctx, err) != NotAttempted {
		return
	}
	for i, err := range errs {
		if index != nil {
			i = index[i]
		}
		if err == nil {
			w.ledger.Settle(i)
		} else {
			w.note(ctx, i, err)
		}
	}
	if w.partly = index != nil; !w.partly {
		w.at = len(records)
	}
}

// note enters the verdict of a record that returned an error.
func (w *work[T]) note(ctx context.Context, i int, err error) {
	switch Classify(ctx, err) {
	case Skipped:
		w.ledger.Settle(i)
	case NotAttempted:
		w.ledger.Leave(i, err)
		if w.halted.err != nil {
			return
		}
		if until, paused := pauseOf(err); paused {
			w.halted = halt{err: err, at: i, until: until}
		} else if errors.Is(err, ErrConfig) {
			w.halted = halt{err: err, at: i, fatal: true}
		}
	default:
		w.ledger.Fail(i, err)
	}
}

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

func beginLifecycle(ctx context.Context, clock Clock, drain time.Duration) *lifecycle {
	l := &lifecycle{stop: ctx, applied: make(chan struct{}), finished: make(chan struct{})}
	detached := context.WithoutCancel(ctx)
	l.work, l.cancelWork = context.WithCancelCause(withStop(detached, ctx))
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

// ErrMark is what every [*MarkError] is, to errors.Is.
var ErrMark = errors.New("courier: records were applied but not marked")

// MarkError says that records were applied and could not be marked before the
// coordinator had to end. They are still pending at the source, and will be
// applied once more.
type MarkError struct {
	Records int // how many
	Err     error
}

func (e *MarkError) Error() string {
	return fmt.Sprintf("courier: %d records were applied but not marked, and will be applied again: %v", e.Records, e.Err)
}

// Is reports whether err is [ErrMark].
func (e *MarkError) Is(err error) bool { return err == ErrMark }

// Unwrap returns Err.
func (e *MarkError) Unwrap() error { return e.Err }
