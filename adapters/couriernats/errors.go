package couriernats

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	var strange *strangeError
	switch {
	case errors.As(err, &strange) && strange.by.stream != "":
		return ": is the stream of WithExpectStream the one that takes this subject?"
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return ": no stream takes this subject; create one, or add the subject to a stream; or JetStream is off there, as while a server shuts down"
	case errors.Is(err, errReserved):
		return "; if such messages are meant, see WithReservedSubjects"
	case errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), "Subscription"):
		return ": the acks come to an inbox that this user may not subscribe to; grant it, or set nats.CustomInboxPrefix"
	case errors.Is(err, nats.ErrPermissionViolation):
		return ": this user may not publish there; grant it"
	case errors.Is(err, nats.ErrMaxSubscriptionsExceeded):
		return ": the acks come to an inbox that the server does not let this user subscribe to, for the number of its subscriptions: raise the limit; the message may have been stored"
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		return ": the message may have been stored; is the server overloaded, or the stream one that does not ack (NoAck), or the subject one that no stream takes and somebody else subscribes to?"
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

// unsendable is the error of a record of which no message can be made, or sent. No
// server was asked, so that it is no answer: to a breaker it says as little as a record
// that cannot be decoded.
type unsendable struct{ error }

func (e unsendable) Unwrap() error        { return e.error }
func (e unsendable) Is(target error) bool { return target == courier.ErrDecode }

// headerTooLarge is the server's answer to a header of more than 64 KiB. The
// client has no name for it.
var headerTooLarge = &jetstream.APIError{ErrorCode: 10097}

// errMute is a connection that was thrown away.
var errMute = fmt.Errorf("%w: nothing came from the server, not even the answer to a ping; the client was told to reconnect", nats.ErrDisconnected)

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

// noRoom are the answers of a server that can store nothing for now, whatever is in the
// message: of the stream or the account that is full, of JetStream without disk,
// memory or a leader, or of one that is switched off.
var noRoom = [...]jetstream.ErrorCode{
	10002, // resource limits exceeded for account
	10008, // JetStream system temporarily unavailable
	10023, // insufficient resources
	10028, // insufficient memory resources
	10039, // JetStream not enabled for account
	10047, // insufficient storage resources
	10076, // JetStream not enabled
	10077, // maximum messages or bytes exceeded, and what the disk says
	10109, // sealed stream
	10118, // stream is offline
	10158, // a message with this id is being stored: by an earlier attempt of ours
	10167, // too many requests
	10194, // stream is offline, with a reason
}

// got is what a call has got through.
type got struct {
	subjects map[string]bool // some of them, where there are many
	subject  string          // the last one added
	last     int             // the index of the last record, -1 if there is none
}

func (g *got) add(index int, subject string) {
	g.last = max(g.last, index)
	if subject == g.subject || len(g.subjects) >= 64 {
		return
	}
	if g.subjects == nil {
		g.subjects = make(map[string]bool)
	}
	g.subject, g.subjects[subject] = subject, true
}

// blameless says that a failure tells of the server and nothing of the record. To
// the breaker a call is a success that settled anything, and a record whose attempts
// it counted would be given up before the breaker opens. So an outage that begins or
// ends within a call is held against no record: one that begins leaves the last ones
// behind, and any that got through shows that its subject is well. Where only later
// ones of other subjects got through it is the record's own matter: its subject may
// have no stream, or be full for good.
func blameless(f courier.BatchFailure, success bool, others got) bool {
	var said *jetstream.APIError
	outage := success && (others.last < f.Index || others.subjects[subjectOf(f.Err)])
	switch {
	case errors.Is(f.Err, nats.ErrDisconnected), errors.Is(f.Err, nats.ErrConnectionClosed):
		return success
	case errors.As(f.Err, &said):
		full := slices.Contains(noRoom[:], said.ErrorCode)
		return full && (outage || !success || !strings.Contains(said.Description, "per subject"))
	case unanswered(f.Err), errors.Is(f.Err, jetstream.ErrNoStreamResponse):
		return outage
	}
	return false
}

func subjectOf(err error) string {
	var failed *publishError
	if errors.As(err, &failed) {
		return failed.subject
	}
	return ""
}

// restFor is how long the sink asks not to be called after a server had no room.
const restFor = time.Second

// restError is the error of a record that nothing is held against. It makes a
// coordinator pause.
type restError struct {
	err   error
	until time.Time
}

func (e *restError) Error() string      { return e.err.Error() }
func (e *restError) Unwrap() error      { return e.err }
func (e *restError) NotAttempted() bool { return true }
func (e *restError) RetryAt() time.Time { return e.until }

// Is reports true for courier.ErrOpen: to those who ask whether the destination is down, the
// sink is a breaker.
func (e *restError) Is(target error) bool { return target == courier.ErrOpen }

// unanswered says that an error tells of the server's silence, not of an
// answer that it gave to the message.
func unanswered(err error) bool {
	return errors.Is(err, jetstream.ErrAsyncPublishTimeout) || errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrPermissionViolation)
}

// answered is what another than the stream said of a message.
type answered struct {
	stream string // another stream, "" where it is none
	said   string
}

// strangeError is the error of a message that only others than the stream have
// answered.
type strangeError struct {
	err error
	by  answered
}

func (e *strangeError) Error() string {
	if e.by.stream != "" {
		return fmt.Sprintf("%v; another stream than the expected one, %q, answered %s", e.err, e.by.stream, e.by.said)
	}
	return fmt.Sprintf("%v; a subscriber that is no stream answered %q, which was passed over", e.err, e.by.said)
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
