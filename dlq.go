package courier

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// DeadLetter is a record that was given up, and what is known of it.
type DeadLetter[T any] struct {
	ID       string // given by the queue, unique within it
	Record   T      // as the source handed it out
	Error    error  // the last attempt's, with its wrappers
	Reason   Reason // Exhausted or PermanentFailure
	Attempts int
	FailedAt time.Time // of the last attempt
}

// DLQ is a dead letter queue: where records wait that were given up.
//
// Send takes a record over. Once it has returned nil the record is marked at
// its source, so it must be as durable as the record deserves. A queue that
// cannot take it returns an error, and the record stays pending. The same
// record may come twice, when the process died between Send and the mark.
//
// Receive returns up to max of the oldest entries, which stay in the queue
// until they are deleted, and blocks for none. Delete removes entries by ID and
// ignores unknown ones. All three must be safe for concurrent use.
type DLQ[T any] interface {
	Send(ctx context.Context, letter DeadLetter[T]) error
	Receive(ctx context.Context, max int) ([]DeadLetter[T], error)
	Delete(ctx context.Context, ids ...string) error
}

// ErrDLQFull is what a full queue refuses with.
var ErrDLQFull = errors.New("courier: the dead letter queue is full")

// DefaultDLQCapacity is how many records a [MemoryDLQ] takes by default.
const DefaultDLQCapacity = 10_000

// MemoryDLQ is a bounded queue in memory, safe for concurrent use. What is in
// it is lost when the process ends, while its records are marked at their
// source: keep it for records whose loss after a logged failure is acceptable,
// and use a durable [DLQ] otherwise.
type MemoryDLQ[T any] struct {
	capacity int
	mu       sync.Mutex
	letters  []DeadLetter[T]
	sent     uint64
}

// NewMemoryDLQ returns a queue for up to capacity records, of which 0 or less
// is [DefaultDLQCapacity].
func NewMemoryDLQ[T any](capacity int) *MemoryDLQ[T] {
	if capacity <= 0 {
		capacity = DefaultDLQCapacity
	}
	return &MemoryDLQ[T]{capacity: capacity}
}

// Send takes a record over, or returns [ErrDLQFull].
func (q *MemoryDLQ[T]) Send(_ context.Context, letter DeadLetter[T]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.letters) >= or(q.capacity, DefaultDLQCapacity) {
		return ErrDLQFull
	}
	q.sent++
	letter.ID = strconv.FormatUint(q.sent, 10)
	q.letters = append(q.letters, letter)
	return nil
}

// Receive returns up to max of the oldest entries, in a slice of the caller's
// own, and does not remove them. The error is always nil.
func (q *MemoryDLQ[T]) Receive(_ context.Context, max int) ([]DeadLetter[T], error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(max, len(q.letters))
	if n <= 0 {
		return nil, nil
	}
	return append([]DeadLetter[T](nil), q.letters[:n]...), nil
}

// Delete removes entries by ID. The error is always nil.
func (q *MemoryDLQ[T]) Delete(_ context.Context, ids ...string) error {
	gone := make(map[string]bool, len(ids))
	for _, id := range ids {
		gone[id] = true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	kept := q.letters[:0]
	for _, letter := range q.letters {
		if !gone[letter.ID] {
			kept = append(kept, letter)
		}
	}
	clear(q.letters[len(kept):])
	q.letters = kept
	return nil
}

// Len returns how many records are parked.
func (q *MemoryDLQ[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.letters)
}

// ErrPark is what every [*ParkError] is, to errors.Is.
var ErrPark = errors.New("courier: the dead letter queue did not take a record")

// ParkError says that a record failed for good and that the dead letter queue
// refused it. Its class is NotAttempted: the record stays pending, and its
// coordinator backs off.
type ParkError struct {
	Err   error // the record's
	Store error // the queue's
}

func (e *ParkError) Error() string {
	return fmt.Sprintf("courier: the dead letter queue did not take a record (%v), which stays pending; the record's error: %v", e.Store, e.Err)
}

// Is reports whether err is [ErrPark].
func (e *ParkError) Is(err error) bool { return err == ErrPark }

// Unwrap returns both errors.
func (e *ParkError) Unwrap() []error { return []error{e.Err, e.Store} }

// NotAttempted reports true.
func (e *ParkError) NotAttempted() bool { return true }

// sendTimeout bounds a hand-over to the dead letter queue, which does not end
// with the context of the apply: a stop must not lose it half done.
const sendTimeout = 10 * time.Second

// WithDLQ parks the records that an applier fails, in a [MemoryDLQ] of the
// default capacity. What the applier returns is final here: put retries inside,
// as [ResilientApplier] does.
func WithDLQ[T any](applier Applier[T]) (Applier[T], DLQ[T]) {
	queue := NewMemoryDLQ[T](0)
	return NewDLQApplier(applier, DLQ[T](queue)), queue
}

// NewDLQApplier parks the records that an applier fails in a queue. Apply
// returns nil when the record is applied or parked, so that it is marked, and a
// [*ParkError] when the queue did not take it. What is NotAttempted is never
// parked and returned as it came. A panic of the applier is a failure as any
// other. The result is as safe for concurrent use as the applier.
func NewDLQApplier[T any](applier Applier[T], queue DLQ[T]) Applier[T] {
	return newDLQApplier(applier, queue, nil)
}

func newDLQApplier[T any](applier Applier[T], queue DLQ[T], clock Clock) Applier[T] {
	fault := configErrorOf("dlq", queue)
	if clock == nil {
		clock = systemClock{}
	}
	return &dlqApplier[T]{newStage(applier, fault), queue, clock}
}

type dlqApplier[T any] struct {
	stage[T]
	queue DLQ[T]
	clock Clock
}

func (*dlqApplier[T]) parks() {}

func (d *dlqApplier[T]) Apply(ctx context.Context, record T) error {
	if d.fault != nil {
		return d.fault
	}
	err := d.attempt(ctx, record)
	if err == nil {
		return nil
	}
	return d.settle(ctx, record, err)
}

// attempt is guard without a closure: it is on the path of every record.
func (d *dlqApplier[T]) attempt(ctx context.Context, record T) (err error) {
	returned := false
	defer func() {
		if !returned {
			err = newPanicError(recover())
		}
	}()
	err = d.apply(ctx, record)
	returned = true
	return err
}

func (d *dlqApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	if d.fault != nil {
		return d.fault
	}
	if d.batch == nil {
		return applyEach(ctx, Applier[T](d), records)
	}
	err := applyIsolated(ctx, d.batch, records)
	if err == nil {
		return nil
	}
	errs := make([]error, len(records))
	spread(err, errs)
	hung := error(nil)
	for i, err := range errs {
		switch {
		case err == nil:
		case hung != nil && parks(ctx, err):
			errs[i] = &ParkError{Err: err, Store: hung}
		default:
			errs[i] = d.settle(ctx, records[i], err)
			// A queue that does not answer is not asked once more for every
			// record: a stop could not wait for that.
			if refused, ok := errs[i].(*ParkError); ok && errors.Is(refused.Store, context.DeadlineExceeded) {
				hung = refused.Store
			}
		}
	}
	return gather(errs)
}

// parks reports whether a failed record is the queue's.
func parks(ctx context.Context, err error) bool {
	class := Classify(ctx, err)
	return class == Retryable || class == PermanentClass
}

// settle parks a failed record, or says why it stays pending.
func (d *dlqApplier[T]) settle(ctx context.Context, record T, err error) error {
	if !parks(ctx, err) {
		return err
	}
	letter := DeadLetter[T]{Record: record, Error: err, Reason: Exhausted, Attempts: 1, FailedAt: d.clock.Now()}
	if Classify(ctx, err) == PermanentClass {
		letter.Reason = PermanentFailure
	}
	var retried *RetryError
	if errors.As(err, &retried) {
		letter.Attempts = retried.Attempts
	}
	ctx, cancel := withTimeout(context.WithoutCancel(ctx), d.clock, sendTimeout)
	defer cancel()
	var refusal error
	isolate(&refusal, func() error { return d.queue.Send(ctx, letter) })
	if refusal != nil {
		return &ParkError{Err: err, Store: refusal}
	}
	return nil
}

// withTimeout is context.WithTimeout on a Clock. It waits for nothing: the
// goroutine ends with the cancel function.
func withTimeout(ctx context.Context, clock Clock, d time.Duration) (context.Context, context.CancelFunc) {
	if _, system := clock.(systemClock); system {
		return context.WithTimeout(ctx, d)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	expired := clock.After(d)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-expired:
			cancel(context.DeadlineExceeded)
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel(context.Canceled)
		watcher.Wait()
	}
}
