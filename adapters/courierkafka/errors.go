package courierkafka

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrClosed is returned by Apply and ApplyBatch once the program has closed the client.
// It is a [*courier.ConfigError] too. The records stay pending, the coordinator backs
// off, and its Ready returns the error.
var ErrClosed = errors.New("courierkafka: the client is closed")

var errClientClosed = fmt.Errorf("%w: %w", ErrClosed, &courier.ConfigError{
	Field: "client", Problem: "was closed: stop the coordinator before that",
})

var (
	errTopic        = errors.New("the topic is invalid")
	errTooLarge     = errors.New("the record is too large")
	errNoAnswer     = errors.New("the brokers have not answered within the delivery timeout; the client tries on, and the next attempt finds its answer")
	errNoProducerID = errors.New("the brokers have not given the client a producer id within the delivery timeout")
	errNoRoom       = errors.New("the client's buffer is full of records that the brokers have not taken")
)

// produceError names the record that failed. Its text is made when it is asked for: in
// an outage there is one for each record.
type produceError struct {
	topic, id string
	err       error
}

func (e *produceError) Error() string {
	return fmt.Sprintf("courierkafka: produce to %q (id %q): %v%s", clip(e.topic), clip(e.id), e.err, advice(e.err))
}

func (e *produceError) Unwrap() error { return e.err }

// clip shortens a record's own text for an error, which is logged.
func clip(text string) string {
	const enough = 200
	if len(text) <= enough {
		return text
	}
	return text[:enough] + "…"
}

func advice(err error) string {
	switch {
	case errors.Is(err, kerr.UnknownTopicID):
		return ": the topic was deleted and made again; the next attempt sends to the new one"
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return ": the topic does not exist; create it"
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return ": this user may not write there; grant it"
	case errors.Is(err, kerr.MessageTooLarge):
		return ": raise max.message.bytes of the topic if such records are meant"
	}
	return ""
}

// batchRefused reports whether a broker refused a batch for what is in it. Its answer
// does not tell which record is to blame.
func batchRefused(err error) bool {
	for _, target := range [...]error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// ofCluster reports whether an error tells of brokers or partitions that cannot be
// reached, or that the client has yet to learn, and so of no record.
func ofCluster(err error) bool {
	var network *net.OpError
	switch {
	case errors.Is(err, errNoAnswer), errors.Is(err, errNoProducerID), errors.Is(err, errNoRoom), kgo.IsRetryableBrokerErr(err), errors.As(err, &network):
		return true
	}
	return kerr.IsRetriable(err) && !errors.Is(err, kerr.UnknownTopicOrPartition) && !errors.Is(err, kerr.CorruptMessage)
}

// unsendable is the error of a record that was not sent, because of what it is. No
// broker was asked, so it is no answer: to a breaker it says as little as a record that
// cannot be decoded.
type unsendable struct{ error }

func (e unsendable) Unwrap() error        { return e.error }
func (e unsendable) Is(target error) bool { return target == courier.ErrDecode }

// messageError is the error of the message function.
type messageError struct{ err error }

func (e *messageError) Error() string { return "courierkafka: the message function: " + e.err.Error() }
func (e *messageError) Unwrap() error { return e.err }

// unsentError is the error of a record that no broker was sent, for a reason that is not
// the record's.
type unsentError struct{ err error }

func (e *unsentError) Error() string      { return "courierkafka: not sent: " + e.err.Error() }
func (e *unsentError) Unwrap() error      { return e.err }
func (e *unsentError) NotAttempted() bool { return true }

// restFor is how long to wait before brokers that do not answer are tried again.
const restFor = time.Second

// restError is the error of a record or call while the brokers take nothing. It makes a
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
