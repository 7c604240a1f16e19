package courierkafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	errRevoked        = fmt.Errorf("courierkafka: its partition goes to another member of the group: %w", courier.ErrRevoked)
	errLost           = errors.New("courierkafka: its partition is not this member's any more: who has it delivers the record again")
	errFenced         = errors.New("courierkafka: a partition is another member's by now")
	errTooLong        = errors.New("courierkafka: the brokers take no metadata of this length")
	errNoTopics       = errors.New("no topic that exists is to be consumed")
	errNotJoined      = errors.New("the brokers answer: the group is rebalancing, or its coordinator is silent")
	errNoCommitAnswer = errors.New("the answer leaves a partition out")
)

// isGone reports whether the brokers know no such topic, or another one of its name.
func isGone(err error) bool {
	return errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID)
}

// goneError is a topic that was deleted while it was consumed.
type goneError struct{ topic string }

func (e *goneError) Error() string {
	return fmt.Sprintf("courierkafka: the topic %q was deleted: its records in hand are dropped, and the source goes on without it; if it is created again, it is consumed from its beginning", clip(e.topic))
}

// deletedError is offsets of a partition, without the end, that the brokers deleted too early.
type deletedError struct {
	partition  partition
	first, end int64
}

func (e *deletedError) Error() string {
	return fmt.Sprintf("courierkafka: the brokers have deleted the offsets %d to %d of %v before they were read: the source goes on after them; the topic's retention is too short for how far the group is behind", e.first, e.end-1, e.partition)
}

// interrupted reports whether a poll ended because it was called back.
func interrupted(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// fetchFault makes the error of a Fetch.
func fetchFault(p partition, err error) error {
	var loss *kgo.ErrDataLoss
	var group *kgo.ErrGroupSession
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		return errClientClosed
	case errors.As(err, &loss):
		return fmt.Errorf("courierkafka: the brokers have lost records of %v; the source goes on at offset %d: %w", p, loss.ResetTo, err)
	case errors.As(err, &group):
		return &groupError{group.Err}
	case p.topic == "":
		return fmt.Errorf("courierkafka: fetch: %w%s", err, sourceAdvice(err))
	}
	return fmt.Errorf("courierkafka: fetch %v: %w%s", p, err, sourceAdvice(err))
}

func sourceAdvice(err error) string {
	switch {
	case isGone(err):
		return ": the topic does not exist; create it"
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return ": this user may not read there; grant it"
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		return ": this user may not use the consumer group; grant it"
	case errors.Is(err, kerr.RebalanceInProgress), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.UnknownMemberID):
		return ": the group is rebalancing; the commit is repeated unless the partitions go to another member"
	case errors.Is(err, context.DeadlineExceeded):
		return ": the group's coordinator has not answered in time, or the group is rebalancing; the commit is repeated"
	}
	return ""
}

// groupError is a failure to join the group, or to stay in it.
type groupError struct{ err error }

func (e *groupError) Error() string {
	return fmt.Sprintf("courierkafka: the client is not in its consumer group, and tries to join: %v%s", e.err, sourceAdvice(e.err))
}
func (e *groupError) Unwrap() error { return e.err }

// commitError is a failed commit of offsets.
type commitError struct{ err error }

func (e *commitError) Error() string {
	return fmt.Sprintf("courierkafka: commit offsets: %v%s", e.err, sourceAdvice(e.err))
}
func (e *commitError) Unwrap() error { return e.err }

// revokeError is a commit that failed when a partition was given back.
type revokeError struct {
	partition partition
	err       error
}

func (e *revokeError) Error() string {
	return fmt.Sprintf("courierkafka: %v went to another member, which delivers again what was not committed: %v", e.partition, e.err)
}
func (e *revokeError) Unwrap() error { return e.err }
