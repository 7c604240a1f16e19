// Package couriernats delivers records to NATS JetStream.
//
// A [Sink] is an applier and a batch applier: it publishes a batch
// asynchronously, waits once for the acks, and reports each record by itself.
// It goes where every applier goes, inside the decorators:
//
//	DLQ( Retry( Breaker( Sink )))
//
// # The guarantee
//
// At least once: a record counts as applied only when the server has sent an
// ack for its own message. A record whose ack got lost is published again, and
// within the stream's duplicate window (StreamConfig.Duplicates, two minutes
// unless set) the server recognises it by its message id and stores it once ([NewMsg]);
// after that it is stored twice.
//
// An ack is as durable as the stream. JetStream writes a message to its file
// before it acks, but by default leaves the fsync to a timer (sync_interval,
// two minutes): a crash of the process loses nothing, a power cut on the only
// replica can lose messages that were acked. Use three replicas, or set
// sync_interval to always, at a fraction of the throughput.
//
// Messages are sent in the order of the records. Where one fails, those after
// it may already be stored, as all of a call are on their way before the first ack.
// So the sink is no [courier.OrderedBatcher], and with courier.WithOrderKey no two
// records of a key are in one call.
package couriernats

import (
	"context"
	"sync/atomic"

	"github.com/erfanmomeniii/courier"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Sink publishes records to JetStream. It implements [courier.BatchApplier]
// and is made by [NewSink]; the zero Sink applies nothing. It is safe for
// concurrent use.
type Sink[T any] struct {
	link       *link
	message    func(T) (*nats.Msg, error)
	config     config
	fault      error
	duplicates atomic.Uint64
}

// NewSink makes a sink that publishes what message makes of a record over the
// connection of js, which stays the caller's to close. Make it with [ConnOptions].
// Where the client closes it for good, the sink goes on over a connection of its
// own ([WithConnect], [Sink.Close]). [NewMsg] makes the message of an outbox row.
//
// message is called once for each attempt, from the goroutine that applies. An
// error of it is permanent, unless it is a [courier.Skip]. The message belongs
// to the sink from then on, its header and data included: they may be sent
// again after Apply has returned.
//
// The sink waits for its acks apart from those of js, so that neither takes
// the other's place among the pending ones; the handlers for asynchronous
// publishes that js was made with do not see the sink's. Each call subscribes to
// an inbox of its own, of the connection's prefix, for as long as it lasts.
//
// What is wrong with the arguments is a [*courier.ConfigError], which Validate,
// Apply and ApplyBatch return, and so the coordinator before it fetches.
func NewSink[T any](js jetstream.JetStream, message func(T) (*nats.Msg, error), opts ...Option) *Sink[T] {
	s := &Sink[T]{message: message, config: newConfig(opts)}
	switch {
	case js == nil || js.Conn() == nil:
		s.fault = &courier.ConfigError{Field: "js", Problem: "is nil or without a connection: pass the result of jetstream.New"}
	case message == nil:
		s.fault = &courier.ConfigError{Field: "message", Problem: "is nil: pass the function that makes a message of a record"}
	case s.config.fault != nil:
		s.fault = s.config.fault
	default:
		s.config.inboxes = js.Conn().Opts.InboxPrefix
		s.link = newLink(js.Conn(), s.config)
	}
	return s
}

// Apply publishes one record and blocks until its ack, an error, the ack
// timeout or the end of ctx. Its errors are those that ApplyBatch lists for a
// record.
func (s *Sink[T]) Apply(ctx context.Context, record T) error {
	err := s.ApplyBatch(ctx, []T{record})
	if listed, ok := err.(*courier.BatchError); ok {
		return listed.Failures[0].Err
	}
	return err
}

// ApplyBatch publishes the records in their order and blocks until each is
// acked or has failed. It returns nil, a [*courier.BatchError] that lists the
// records which have no ack, or another error when nothing was published:
// there is no connection, ctx has ended, the sink is misconfigured, or nothing can
// be published any more ([ErrClosed]).
//
// Permanent are the errors of the message function and failures that no retry
// can mend: a subject that is not valid, is reserved ([WithReservedSubjects]), has
// a wildcard or is longer than 2,000 bytes, a header with a line break or of more than
// 64 KiB, a message larger than the connection's server takes at the time. The sink does
// not send such a message, and a breaker ignores its error, in which errors.Is finds
// [courier.ErrDecode]. A message larger than the stream takes is permanent too.
//
// Not attempted, with a method RetryAt that makes a coordinator pause for a second,
// are messages that a server has no room for, which says nothing of the record: the
// stream or the account is full, or JetStream has no disk or leader. So is what an
// outage took of a call that settled other records, by an ack or as permanent: a lost
// connection, and a silence, a missing stream or a denied publish after which nothing
// got through, or of whose subject another record did. A full subject is retryable
// where only later records of others get through.
//
// Any other failure of a published message is retryable: no stream for the subject,
// a timeout, a lost connection. When the server has fallen silent or has no room
// for a whole part ([WithMaxPending]), or the connection is down, the records not
// yet published are not attempted.
//
// Where ctx ends first, the error is its cause: the record may have been
// stored. A write that the network does not take blocks for up to
// nats.FlusherTimeout of the connection, ctx and ack timeout notwithstanding.
func (s *Sink[T]) ApplyBatch(ctx context.Context, records []T) error {
	conn, err := s.open(ctx)
	if err != nil || len(records) == 0 {
		return err
	}
	before := conn.LastError()
	in, err := openInbox(conn, min(len(records), s.config.maxPending), s.config.stream)
	if err != nil {
		return err
	}
	defer in.close()
	b := batch[T]{sink: s, conn: conn, inbox: in, before: before, got: got{last: -1}}
	for b.done < len(records) {
		b.apply(ctx, records[b.done:])
	}
	return b.outcome()
}

// Duplicates returns how many messages the server has acked as stored before:
// deliveries that were repeated, or ids that are not unique.
func (s *Sink[T]) Duplicates() uint64 { return s.duplicates.Load() }

// Validate reports what the sink was misconfigured with, or [ErrClosed].
func (s *Sink[T]) Validate() error {
	switch {
	case s.fault != nil:
		return s.fault
	case s.link == nil:
		return &courier.ConfigError{Field: "Sink", Problem: "is the zero value: make it with NewSink"}
	}
	return s.link.ended()
}

// Close ends the sink: Apply and ApplyBatch return [ErrClosed] from then on, and
// the connection that the sink has made itself is closed, if there is one. The
// connection that [NewSink] was given stays open. Close the sink when its
// coordinator has ended: records that are being applied fail. It does not block,
// and may be called more than once.
func (s *Sink[T]) Close() {
	if s.link != nil {
		s.link.close()
	}
}

// open returns the connection to publish over, or says why there is no point in
// publishing anything.
func (s *Sink[T]) open(ctx context.Context) (*nats.Conn, error) {
	switch err := s.Validate(); {
	case err != nil:
		return nil, err
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return s.link.open(ctx)
}
