package couriernats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// batch is one call of ApplyBatch, worked off in chunks of at most maxPending
// records and maxBytes.
type batch[T any] struct {
	sink    *Sink[T]
	conn    *nats.Conn
	inbox   *inbox
	done    int // records of the chunks before this one
	got     got
	stop    error
	failed  courier.BatchError
	next    *nats.Msg        // was made, and did not go into the chunk before
	header  int              // how many bytes the header of the message made last has
	subject string           // the last one that was found valid
	sent    []*nats.Msg      // of this chunk; nil where no answer is waited for
	waiting int              // for so many
	silent  bool             // nothing of this chunk was answered
	heard   bool             // something was, since it was last asked
	before  error            // the connection's last error when the call began
	strange map[int]answered // by index of this chunk, what somebody else answered
}

// apply publishes a chunk from the beginning of the records and settles it. A
// server that answered nothing of a chunk is not sent another one: it would cost the
// ack timeout once more.
func (b *batch[T]) apply(ctx context.Context, records []T) {
	n := min(len(records), b.sink.config.maxPending)
	b.sent = slices.Grow(b.sent[:0], n)[:n]
	clear(b.sent)
	clear(b.strange)
	b.silent = true
	for len(b.inbox.broken) > 0 { // that was before
		<-b.inbox.broken
	}
	listed := len(b.failed.Failures)
	i, size := 0, 0
	for ; i < n; i++ {
		m := b.make(ctx, b.done+i, records[i])
		if m == nil {
			continue
		}
		if size += len(m.Subject) + b.header + len(m.Data); size > b.sink.config.maxBytes && b.waiting > 0 {
			b.next = m
			break
		}
		b.publish(ctx, i, m)
		if len(b.inbox.answers) > cap(b.inbox.answers)/2 { // beyond its room they are lost
			b.receiveAll()
		}
	}
	b.sent = b.sent[:i]
	b.settle(ctx)
	b.giveWay(b.failed.Failures[listed:])
	// Publishing and settling each list in the order of events.
	slices.SortFunc(b.failed.Failures[listed:], func(x, y courier.BatchFailure) int { return x.Index - y.Index })
	b.done += i
}

// make returns the message of a record, or lists the record as failed and returns
// nil.
func (b *batch[T]) make(ctx context.Context, index int, record T) *nats.Msg {
	m := b.next
	b.next = nil
	if b.stop == nil && ctx.Err() != nil {
		b.stop = context.Cause(ctx)
	}
	if b.stop == nil {
		// While it reconnects the client would take messages into a buffer
		// and send them long after they were given up.
		b.stop = disconnected(b.conn)
	}
	if b.stop != nil {
		b.failed.Add(index, &unpublishedError{b.stop})
		return nil
	}
	if m != nil {
		return m
	}
	m, err := b.prepare(record)
	if err != nil {
		if courier.Classify(ctx, err) == courier.ClassRetryable {
			err = courier.Permanent(err)
		}
		b.failed.Add(index, unsendable{err})
		return nil
	}
	return m
}

// publish sends the message of a record of the chunk, or lists it as failed.
func (b *batch[T]) publish(ctx context.Context, i int, m *nats.Msg) {
	err := b.inbox.send(m, b.done+i)
	if err == nil {
		b.sent[i] = m
		b.waiting++
		return
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		err = fmt.Errorf("%w: it has %d bytes, and the server takes %d", err, len(m.Data)+b.header, b.conn.MaxPayload())
	}
	if permanent(err) {
		b.failed.Add(b.done+i, unsendable{publishFailure(m, err)})
		return
	}
	// The client could not take it: it has no server, or no longer.
	b.stop = publishFailure(m, fmt.Errorf("%w: %w", nats.ErrDisconnected, err))
	b.failed.Add(b.done+i, b.stop)
}

// prepare makes the message of a record.
func (b *batch[T]) prepare(record T) (*nats.Msg, error) {
	c := &b.sink.config
	m, err := b.sink.message(record)
	if err != nil {
		return nil, &messageError{err}
	}
	if m == nil {
		return nil, &messageError{errNilMessage}
	}
	if m.Reply != "" {
		return nil, publishFailure(m, jetstream.ErrAsyncPublishReplySubjectSet)
	}
	if m.Subject == "" || m.Subject != b.subject {
		if err := validSubject(m.Subject); err != nil {
			return nil, publishFailure(m, err)
		}
		if c.reserved(m.Subject) {
			return nil, publishFailure(m, errReserved)
		}
		b.subject = m.Subject
	}
	if c.stream != "" {
		if m.Header == nil {
			m.Header = nats.Header{}
		}
		m.Header.Set(jetstream.ExpectedStreamHeader, c.stream)
	}
	if b.header, err = validHeaders(m.Header); err != nil {
		return nil, publishFailure(m, err)
	}
	return m, nil
}

// settle waits for the answers to what was sent of a chunk. When they take long it
// asks the server for a sign of life: a pong comes after what the server had to say
// about the messages, so that a refusal is known before the ack timeout.
func (b *batch[T]) settle(ctx context.Context) {
	if b.waiting == 0 {
		return
	}
	sent := time.Now()
	deadline := sent.Add(b.sink.config.ackTimeout)
	timeout := time.NewTimer(min(b.sink.config.ackTimeout/5, time.Second))
	defer timeout.Stop()
	for asked := false; b.waiting > 0; {
		select {
		case m := <-b.inbox.answers:
			b.receive(m)
			b.receiveAll() // to wait for each by a select would cost as much as all else here
		case <-b.inbox.broken:
			b.giveUp(lostTo(b.conn))
		case <-timeout.C:
			if asked {
				b.giveUp(b.timeout())
				break
			}
			asked = true
			b.ask(ctx, sent, deadline)
			timeout.Reset(time.Until(deadline))
		case <-ctx.Done():
			b.giveUp(context.Cause(ctx))
		}
	}
	if b.heard {
		b.sink.link.heard()
	}
}

// ask waits for the server's pong. A connection on which nothing at all comes is
// dead, whatever the operating system thinks of it, and thrown away.
func (b *batch[T]) ask(ctx context.Context, sent, deadline time.Time) {
	b.receiveAll()
	b.heard = false
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	err := b.conn.FlushWithContext(waiting)
	b.receiveAll()
	switch {
	case err == nil:
		b.heard = true
		b.refused()
	case b.heard, ctx.Err() != nil, !errors.Is(err, context.DeadlineExceeded):
	case b.sink.link.dead(sent):
		_ = b.conn.ForceReconnect() // fails where it is closed
		b.giveUp(errMute)
	}
}

// refused fails the messages that the server says the user may not publish. It says
// so to the connection, not to the message.
func (b *batch[T]) refused() {
	said := b.conn.LastError()
	if said == b.before || !errors.Is(said, nats.ErrPermissionViolation) {
		return
	}
	text := said.Error()
	if strings.Contains(text, b.inbox.prefix) {
		b.giveUp(said)
		return
	}
	for i, m := range b.sent {
		if m == nil || !strings.Contains(text, "Publish to "+strconv.Quote(m.Subject)) {
			continue
		}
		failure := publishFailure(m, said)
		b.failed.Add(b.done+i, failure)
		b.sent[i] = nil
		if b.waiting--; b.waiting == 0 && b.silent && b.stop == nil {
			b.stop = failure
		}
	}
}

// timeout is the error of what went unanswered. What else the server said to the
// connection meanwhile may be the reason. That there are too many subscriptions is one
// and the same error each time.
func (b *batch[T]) timeout() error {
	if said := b.conn.LastError(); said != nil && (said != b.before || errors.Is(said, nats.ErrMaxSubscriptionsExceeded)) {
		return fmt.Errorf("%w; the connection's last error is: %w", jetstream.ErrAsyncPublishTimeout, said)
	}
	return jetstream.ErrAsyncPublishTimeout
}

// receive settles the record that was answered. A late answer, to a message
// that was given up, is none.
func (b *batch[T]) receive(m *nats.Msg) {
	b.heard = true
	answer, ok := b.inbox.read(m)
	i := answer.number - b.done
	if i < 0 || i >= len(b.sent) || b.sent[i] == nil {
		return
	}
	if !ok {
		if b.strange == nil {
			b.strange = make(map[int]answered)
		}
		b.strange[i] = answered{answer.stream, clip(string(m.Data))}
		return
	}
	if answer.duplicate {
		b.sink.duplicates.Add(1)
	}
	if answer.err != nil {
		b.failed.Add(answer.number, publishFailure(b.sent[i], answer.err))
	} else {
		b.got.add(answer.number, b.sent[i].Subject)
	}
	b.sent[i], b.silent = nil, false
	b.waiting--
}

// receiveAll receives what has arrived.
func (b *batch[T]) receiveAll() {
	for range len(b.inbox.answers) {
		b.receive(<-b.inbox.answers)
	}
}

// giveUp waits no longer. An ack that has arrived counts.
func (b *batch[T]) giveUp(err error) {
	b.receiveAll()
	tooLong := b.tooLong(err)
	for i, m := range b.sent {
		if m == nil {
			continue
		}
		cause := err
		if by, ok := b.strange[i]; ok {
			cause = &strangeError{err, by}
		}
		if i == tooLong {
			cause = errLine
		}
		failure := publishFailure(m, cause)
		b.failed.Add(b.done+i, failure)
		if b.silent && b.stop == nil && unanswered(err) {
			b.stop = failure
		}
	}
	b.waiting = 0
}

// giveWay stops the call when a server had no room for anything of a chunk.
func (b *batch[T]) giveWay(failures []courier.BatchFailure) {
	if b.stop != nil || len(failures) < len(b.sent) {
		return
	}
	for _, f := range failures {
		if !blameless(f, false, got{}) {
			return
		}
	}
	b.stop = failures[0].Err
}

// outcome is the result of the call. What a breaker takes for a success is anything
// that was settled.
func (b *batch[T]) outcome() error {
	settled := func(err error) bool {
		class := courier.Classify(context.Background(), err)
		return class == courier.ClassPermanent || class == courier.ClassSkipped
	}
	success := b.got.last >= 0 || slices.ContainsFunc(b.failed.Failures, func(f courier.BatchFailure) bool { return settled(f.Err) })
	var until time.Time
	for i := range b.failed.Failures {
		f := &b.failed.Failures[i]
		if settled(f.Err) || !blameless(*f, success, b.got) {
			continue
		}
		if until.IsZero() {
			until = time.Now().Add(restFor)
		}
		f.Err = &restError{f.Err, until}
	}
	return b.failed.ErrorOrNil()
}

// tooLong returns which message the server has ended the connection over, -1 if
// none: no server tells how long a line of protocol may be, and some take less
// than a usual one. It is the longest of those that wait, because the culprit is
// among them and no longer than that. A line that every server takes was not the
// reason: the connection may be others' too.
func (b *batch[T]) tooLong(err error) (index int) {
	index = -1
	if !errors.Is(err, nats.ErrConnectionClosed) || !strings.Contains(err.Error(), "maximum control line") {
		return index
	}
	longest := 256
	for i, m := range b.sent {
		if m == nil {
			continue
		}
		header, _ := validHeaders(m.Header)
		numbers := strconv.Itoa(b.done+i) + strconv.Itoa(header) + strconv.Itoa(header+len(m.Data))
		if line := len(m.Subject) + len(numbers); line > longest {
			index, longest = i, line
		}
	}
	return index
}
