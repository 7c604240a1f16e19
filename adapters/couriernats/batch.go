package couriernats

import (
	"context"
	"slices"

	"github.com/erfanmomeniii/courier"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// batch is one call of ApplyBatch, worked off in chunks of at most maxPending
// records.
type batch[T any] struct {
	sink   *Sink[T]
	done   int // records of the chunks before this one
	stop   error
	failed courier.BatchError
	acks   []jetstream.PubAckFuture // of this chunk; nil where nothing was sent
}

// apply publishes a chunk and settles it. A server that answered nothing of a
// chunk is not sent another one: it would cost the ack timeout once more.
func (b *batch[T]) apply(ctx context.Context, chunk []T) {
	b.acks = slices.Grow(b.acks[:0], len(chunk))[:len(chunk)]
	clear(b.acks)
	listed := len(b.failed.Failures)
	for i, record := range chunk {
		b.acks[i] = b.publish(ctx, b.done+i, record)
	}
	b.settle(ctx)
	// Publishing and settling each list in order; together they do not.
	slices.SortFunc(b.failed.Failures[listed:], func(x, y courier.Failure) int { return x.Index - y.Index })
	b.done += len(chunk)
}

// publish sends a record, or lists it as failed and returns nil.
func (b *batch[T]) publish(ctx context.Context, index int, record T) jetstream.PubAckFuture {
	s := b.sink
	if b.stop == nil && ctx.Err() != nil {
		b.stop = context.Cause(ctx)
	}
	if b.stop == nil {
		// While it reconnects the client would take messages into a buffer
		// and send them long after they were given up.
		b.stop = disconnected(s.js.Conn())
	}
	if b.stop != nil {
		b.failed.Add(index, &unpublishedError{b.stop})
		return nil
	}
	m, err := s.prepare(record)
	if err != nil {
		if courier.Classify(ctx, err) == courier.Retryable {
			err = courier.Permanent(err)
		}
		b.failed.Add(index, err)
		return nil
	}
	ack, err := s.js.PublishMsgAsync(m)
	if err == nil {
		return ack
	}
	err = publishFailure(m, err)
	b.failed.Add(index, err)
	if courier.Classify(ctx, err) != courier.PermanentClass {
		b.stop = err
	}
	return nil
}

// prepare makes the message of a record.
func (s *Sink[T]) prepare(record T) (*nats.Msg, error) {
	m, err := s.message(record)
	if err != nil {
		return nil, &messageError{err}
	}
	if m == nil {
		return nil, &messageError{errNilMessage}
	}
	if err := validSubject(m.Subject); err != nil {
		return nil, &publishError{m.Subject, m.Header.Get(jetstream.MsgIDHeader), err}
	}
	if s.config.stream != "" {
		if m.Header == nil {
			m.Header = nats.Header{}
		}
		m.Header.Set(jetstream.ExpectedStreamHeader, s.config.stream)
	}
	return m, nil
}

// settle waits for what was sent of a chunk.
func (b *batch[T]) settle(ctx context.Context) {
	var answered bool
	var silence error
	for i, ack := range b.acks {
		if ack == nil {
			continue
		}
		err := b.sink.await(ctx, ack)
		if err == nil {
			answered = true
			continue
		}
		failure := publishFailure(ack.Msg(), err)
		b.failed.Add(b.done+i, failure)
		if unanswered(err) {
			silence = failure
		} else {
			answered = true
		}
	}
	if b.stop == nil && !answered {
		b.stop = silence
	}
}

// await returns nil once a message is acked. An ack that has arrived counts
// even when ctx has ended. The client resolves every future, at the latest at
// the ack timeout.
func (s *Sink[T]) await(ctx context.Context, f jetstream.PubAckFuture) error {
	select {
	case ack := <-f.Ok():
		return s.acked(ack)
	case err := <-f.Err():
		return err
	case <-ctx.Done():
	}
	select {
	case ack := <-f.Ok():
		return s.acked(ack)
	case err := <-f.Err():
		return err
	default:
		return context.Cause(ctx)
	}
}

func (s *Sink[T]) acked(ack *jetstream.PubAck) error {
	if ack.Duplicate {
		s.duplicates.Add(1)
	}
	return nil
}
