// Package courierkafka delivers records to Kafka, and consumes them, with franz-go.
//
// A [Sink] is an applier and a batch applier. It hands the records of a call to the
// client in their order, waits once for the brokers' answers, and reports each record
// by itself. It goes where every applier goes, inside the decorators:
//
//	DLQ( Retry( Breaker( Sink )))
//
// A [DLQ] sends dead letters to a topic. A [Source] hands out the records of a consumer
// group.
//
// # The guarantee
//
// At least once: a record counts as applied only when all in-sync replicas have it.
// The client is idempotent, so that its own retries store a record once, and it tries
// until it knows. Where Apply returns before that, because its context or the delivery
// timeout has ended, the record stays with the client. The next Apply of the same record
// takes the client's answer to the first one, and sends no copy, if the record has an
// id ([Message], [IDHeader]). Duplicates are left for when the process dies, when the
// brokers have lost data ([Sink.DataLoss]), and for records without an id. With several
// workers there is one more: brokers may refuse a batch, because of a record that is too
// large for the topic, in which there is a part of another call, and store the rest of that
// call, which is then stored again behind its first part, for the order of its keys.
//
// # Order
//
// Records of one Kafka key are stored in the order of the calls, and within a call in
// the order of the slice: the sink is a [courier.OrderedBatcher]. With
// [courier.WithOrderKey], all records of an order key must have the same Kafka key, as
// no order holds between partitions. Records without a Kafka key are in no order.
package courierkafka

import (
	"context"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Sink produces records to Kafka. It implements [courier.BatchApplier],
// [courier.OrderedBatcher] and [courier.Validator], and is made by [NewSink]; the zero
// Sink applies nothing. It is safe for concurrent use.
type Sink[T any] struct {
	producer producer
	message  func(T) (*kgo.Record, error)
	fault    error
}

// NewSink makes a sink that produces the Kafka record that message makes of a record.
// The client stays the caller's to close, when the coordinator has ended. Make it with
// [ClientOptions], and let nothing but sinks and DLQs of this package produce with it.
// [Message] makes the Kafka record of an outbox row.
//
// message is called once for each attempt, from the goroutine that applies. An error
// of it is permanent, unless it is a [courier.Skip]. The Kafka record belongs to the
// sink from then on, its key, value and headers included: the client may send it after
// Apply has returned. A Context of the record is used for its values alone.
//
// If the arguments or the client's options are wrong, Validate, Apply and ApplyBatch
// return a [*courier.ConfigError], and so does the coordinator before it fetches.
func NewSink[T any](client *kgo.Client, message func(T) (*kgo.Record, error), opts ...Option) *Sink[T] {
	s := &Sink[T]{message: message}
	s.producer, s.fault = newProducer(client, opts)
	if s.fault == nil && message == nil {
		s.fault = &courier.ConfigError{Field: "message", Problem: "is nil: pass the function that makes a Kafka record of a record"}
	}
	return s
}

// Apply produces one record and blocks until the brokers have answered, the delivery
// timeout has passed, or ctx has ended. It returns the error that ApplyBatch lists for
// a record.
func (s *Sink[T]) Apply(ctx context.Context, record T) error {
	err := s.ApplyBatch(ctx, []T{record})
	if listed, ok := err.(*courier.BatchError); ok {
		return listed.Failures[0].Err
	}
	return err
}

// ApplyBatch produces the records in their order and blocks until each one is stored
// or has failed. It returns nil, a [*courier.BatchError] that lists the records that
// failed, or another error when nothing was produced: ctx has ended, no broker can be
// reached, the sink is misconfigured, or the client is closed ([ErrClosed]).
//
// Permanent are the errors of the message function, an invalid topic, and a record that
// is larger than the client or the topic allows. The call ends at a record that cannot
// be sent, and lists the later ones with [courier.ErrBehindFailed]. When a broker
// refuses a whole batch because of one record in it, the sink sends the records of that
// batch again in smaller parts, until it has found the one to blame.
//
// Not attempted are records that brokers have not taken within the delivery timeout,
// because they do not answer or a partition has no leader. While any broker answers, such
// a record asks to be applied again in a second ([courier.Later]), and the others go on.
// If none does, the error has a method RetryAt that makes a coordinator pause for a
// second, and is [courier.ErrOpen]. Not attempted are also the records that the client gave up because it was
// closed, and those of a topic that was deleted and made again: the next attempt sends
// them to the new one.
//
// A partition of which a call has waited in vain for the delivery timeout is overdue until
// a broker answers for it: later calls wait a hundredth of that for its records, so that
// they hold up no others. Records without an id are waited for each time.
//
// Any other failure is retryable, such as an unknown topic or a missing permission.
//
// If ctx ends first, the error is its cause. The client goes on with the records that it
// has, and the next Apply of one finds out what became of it.
func (s *Sink[T]) ApplyBatch(ctx context.Context, records []T) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(records) == 0 {
		return nil
	}
	if err := s.producer.link.reach(ctx, &s.producer); err != nil {
		return err
	}
	c := newCall(&s.producer, len(records))
	c.run(ctx, func(i int) (*kgo.Record, error) { return s.message(records[i]) })
	return c.outcome(ctx)
}

// OrderedBatches returns true.
func (s *Sink[T]) OrderedBatches() bool { return true }

// DataLoss returns how often the client found that a partition had lost records which
// were acknowledged. It then goes on with a new producer epoch, so that records of that
// time may be stored twice. The count is the client's, of all its sinks.
func (s *Sink[T]) DataLoss() uint64 {
	if s.producer.link == nil {
		return 0
	}
	return s.producer.link.losses.Load()
}

// Validate reports a misconfiguration of the sink or the client, or [ErrClosed].
func (s *Sink[T]) Validate() error {
	switch {
	case s.fault != nil:
		return s.fault
	case s.producer.client == nil:
		return &courier.ConfigError{Field: "Sink", Problem: "is the zero value: make it with NewSink"}
	case s.producer.client.Context().Err() != nil:
		return errClientClosed
	}
	return nil
}
