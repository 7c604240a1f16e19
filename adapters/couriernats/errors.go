package couriernats

import (
	"errors"
	"fmt"
	"strings"

	"github.com/erfanmomeniii/courier"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// publishError names the message that failed. Its text is made when it is
// asked for: in an outage there is one for each record.
type publishError struct {
	subject, id string
	err         error
}

func (e *publishError) Error() string {
	return fmt.Sprintf("couriernats: publish to %q (message id %q): %v%s", clip(e.subject), clip(e.id), e.err, advice(e.err))
}

// clip shortens a record's own text for an error, which is logged.
func clip(text string) string {
	const enough = 200
	if len(text) <= enough {
		return text
	}
	return text[:enough] + "…"
}

func (e *publishError) Unwrap() error { return e.err }

func advice(err error) string {
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return ": no stream takes this subject; create one, or add the subject to a stream"
	case errors.Is(err, errReserved):
		return "; if such messages are meant, see WithReservedSubjects"
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		return ": the message may have been stored; is the server overloaded, the subject one that no stream takes, or the inbox of the acks one that this user may not subscribe to?"
	}
	return ""
}

// publishFailure puts an error of the client or the server in its class.
func publishFailure(m *nats.Msg, err error) error {
	failure := &publishError{m.Subject, strings.TrimPrefix(m.Header.Get(jetstream.MsgIDHeader), m.Subject+" "), err}
	if permanent(err) {
		return courier.Permanent(failure)
	}
	return failure
}

// headerTooLarge is the server's answer to a header of more than 64 KiB. The
// client has no name for it.
var headerTooLarge = &jetstream.APIError{ErrorCode: 10097}

var errReserved = errors.New("the subject is reserved for the servers and the answers of the client")

// errLine is a subject that is too long for the one server that there is.
var errLine = errors.New("the server ended the connection over it: the subject is too long (max_control_line)")

var errHeaderTooLarge = errors.New("the header is too large")

func permanent(err error) bool {
	for _, target := range [...]error{
		nats.ErrMaxPayload,
		nats.ErrBadSubject,
		nats.ErrBadHeaderMsg,
		errReserved,
		errLine,
		errLineBreak,
		errHeaderTooLarge,
		jetstream.ErrAsyncPublishReplySubjectSet,
		jetstream.ErrStreamMessageExceedsMaximum,
		headerTooLarge,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// unanswered says that an error tells of the server's silence, not of an
// answer that it gave.
func unanswered(err error) bool {
	return errors.Is(err, jetstream.ErrAsyncPublishTimeout) || errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrConnectionClosed)
}

// strangeError is the error of a message that only others than JetStream have
// answered.
type strangeError struct {
	err  error
	said string
}

func (e *strangeError) Error() string {
	return fmt.Sprintf("%v; a subscriber that is no stream answered %q, which was passed over", e.err, e.said)
}
func (e *strangeError) Unwrap() error { return e.err }

// messageError is a record that no message could be made of.
type messageError struct{ err error }

var errNilMessage = errors.New("it returned neither a message nor an error")

func (e *messageError) Error() string { return "couriernats: the message function: " + e.err.Error() }
func (e *messageError) Unwrap() error { return e.err }

// unpublishedError is the error of a record that was not sent after what
// happened to those before it.
type unpublishedError struct{ err error }

func (e *unpublishedError) Error() string      { return "couriernats: not published: " + e.err.Error() }
func (e *unpublishedError) Unwrap() error      { return e.err }
func (e *unpublishedError) NotAttempted() bool { return true }
