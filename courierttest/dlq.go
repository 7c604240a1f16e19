package courierttest

import (
	"context"
	"math"

	"github.com/erfanmomeniii/courier"
)

// DLQ is a dead letter queue in memory that keeps one letter of a record for each branch,
// by the record's name. It records parked letters, and fails on demand. [Recorder.DLQ]
// makes it. It is safe for concurrent use.
type DLQ[T any] struct {
	*courier.MemoryDLQ[T]

	// SendFaults apply to Send, and may be set at any time. With Lost the record is
	// parked.
	SendFaults Injector

	recorder *Recorder[T]
}

// DLQ returns a queue for up to capacity records; 0 is
// [courier.DefaultDLQCapacity].
func (r *Recorder[T]) DLQ(capacity int) *DLQ[T] {
	return &DLQ[T]{MemoryDLQ: &courier.MemoryDLQ[T]{Capacity: capacity, Identity: r.name}, recorder: r}
}

// Send parks a record, or fails as the faults say.
func (q *DLQ[T]) Send(ctx context.Context, letter courier.DeadLetter[T]) error {
	clock := q.recorder.clock()
	verdicts, err := q.SendFaults.next(clock.Now(), q.recorder.name(letter.Record))
	if err != nil {
		return err
	}
	v := verdicts[0]
	pause(ctx, clock, v.delay)
	err = v.interrupt(ctx)
	if err == nil && (v.effect == OK || v.effect == Lost) {
		if err = context.Cause(ctx); err == nil {
			err = q.MemoryDLQ.Send(ctx, letter)
		}
	}
	if err == nil {
		err = v.err()
	}
	if err != nil {
		q.recorder.note(ParkFailed, err, letter.Record)
		return err
	}
	q.recorder.note(Parked, letter.Error, letter.Record)
	return nil
}

// SameQueue reports whether another queue keeps its letters in the same place.
func (q *DLQ[T]) SameQueue(other courier.DeadLetterSink[T]) bool {
	o, ok := other.(*DLQ[T])
	return ok && o != nil && o.MemoryDLQ == q.MemoryDLQ
}

// Letters returns all letters, oldest first.
func (q *DLQ[T]) Letters() []courier.DeadLetter[T] {
	letters, _ := q.List(context.Background(), "", math.MaxInt) // its error is always nil
	return letters
}

// Validate reports a fault that makes no sense.
func (q *DLQ[T]) Validate() error { return q.SendFaults.Validate() }

var (
	_ courier.DLQ[int]       = (*DLQ[int])(nil)
	_ courier.KeyedDLQ       = (*DLQ[int])(nil)
	_ courier.SharedDLQ[int] = (*DLQ[int])(nil)
	_ courier.Validator      = (*DLQ[int])(nil)
)
