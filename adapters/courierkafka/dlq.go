package courierkafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DLQ sends dead letters to a topic. It implements [courier.DeadLetterSink]; read the
// letters with a consumer. It is no [courier.KeyedDLQ]. To list and redrive letters, use
// the queue of couriersql. Make one with [NewDLQ]. It is safe for concurrent use.
type DLQ[T any] struct {
	sink  *Sink[courier.DeadLetter[T]]
	topic string
}

// NewDLQ makes a queue that sends letters to a topic. message makes the Kafka record of
// a letter's record: its key, value and headers are kept, and its topic is noted as the
// original one. Let message succeed for every record, also for one of which a sink's
// message function cannot make a record, as a letter without a Kafka record is refused
// and its record stays pending. The topic must take larger records than the others, or
// those that were too large for them cannot be parked either.
//
// The failure is described by headers of the letter: "courier-error",
// "courier-error-type", "courier-reason", "courier-attempts", "courier-first-failed-at",
// "courier-failed-at" and "courier-original-topic" as text, "courier-branch",
// "courier-key" and "courier-redriven" where there is something to tell. If T is
// *kgo.Record, as for records that were consumed, "courier-original-partition",
// "courier-original-offset" and "courier-original-timestamp" are added. Tools find the
// same under "x-original-topic" and the "kafka_dlt-" names of Spring. Headers of these
// names that the record has already are replaced, or left out where this letter has
// nothing to tell.
//
// The timestamp of a letter is the time when it is sent, from which the retention of
// the topic counts. A record may have two letters when the process dies between Send and
// the mark, or when Send returned before the brokers had answered.
//
// client and opts are those of [NewSink]. Misconfiguration is a [*courier.ConfigError]
// of Validate and Send.
func NewDLQ[T any](client *kgo.Client, topic string, message func(T) (*kgo.Record, error), opts ...Option) *DLQ[T] {
	d := &DLQ[T]{topic: topic}
	var record func(courier.DeadLetter[T]) (*kgo.Record, error)
	if message != nil {
		record = func(l courier.DeadLetter[T]) (*kgo.Record, error) {
			r, err := message(l.Record)
			if err != nil || r == nil {
				return nil, err
			}
			return letterRecord(l, r, topic), nil
		}
	}
	d.sink = NewSink(client, record, opts...)
	if err := validTopic(topic); err != nil && d.sink.fault == nil {
		d.sink.fault = &courier.ConfigError{Field: "topic", Problem: err.Error()}
	}
	return d
}

// Send sends a letter and blocks until the brokers have it. Its errors are those of
// [Sink.Apply].
func (d *DLQ[T]) Send(ctx context.Context, letter courier.DeadLetter[T]) error {
	if err := d.Validate(); err != nil {
		return err
	}
	return d.sink.Apply(ctx, letter)
}

// Validate reports a misconfiguration of the queue or the client, or [ErrClosed].
func (d *DLQ[T]) Validate() error {
	if d.sink == nil {
		return &courier.ConfigError{Field: "DLQ", Problem: "is the zero value: make it with NewDLQ"}
	}
	return d.sink.Validate()
}

// Count returns how many letters the topic has, by its offsets: those that the
// retention has deleted are not counted, and those that a consumer has read are.
func (d *DLQ[T]) Count(ctx context.Context) (int, error) {
	if err := d.Validate(); err != nil {
		return 0, err
	}
	client := d.sink.producer.client
	request := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &d.topic
	request.Topics = append(request.Topics, topic)
	found, err := request.RequestWith(ctx, client)
	if err == nil && len(found.Topics) == 1 {
		err = kerr.ErrorForCode(found.Topics[0].ErrorCode)
	}
	if err != nil {
		return 0, fmt.Errorf("courierkafka: counting the letters of %q: %w%s", d.topic, err, advice(err))
	}
	const first, end = -2, -1
	count := 0
	for _, bound := range [...]struct {
		at   int64
		sign int
	}{{end, 1}, {first, -1}} {
		offsets, err := sumOffsets(ctx, client, found.Topics[0], bound.at)
		if err != nil {
			return 0, fmt.Errorf("courierkafka: counting the letters of %q: %w", d.topic, err)
		}
		count += bound.sign * offsets
	}
	return count, nil
}

// sumOffsets adds the first offsets of a topic's partitions up, or the ends.
func sumOffsets(ctx context.Context, client *kgo.Client, topic kmsg.MetadataResponseTopic, at int64) (sum int, err error) {
	request := kmsg.NewPtrListOffsetsRequest()
	request.ReplicaID = -1
	asked := kmsg.NewListOffsetsRequestTopic()
	asked.Topic = *topic.Topic
	for _, p := range topic.Partitions {
		partition := kmsg.NewListOffsetsRequestTopicPartition()
		partition.Partition, partition.Timestamp = p.Partition, at
		asked.Partitions = append(asked.Partitions, partition)
	}
	request.Topics = append(request.Topics, asked)
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return 0, err
	}
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return 0, err
			}
			sum += int(p.Offset)
		}
	}
	return sum, nil
}

// maxErrorText bounds what a letter tells of its error.
const maxErrorText = 4096

// letterRecord makes the Kafka record of a letter from that of its record.
func letterRecord[T any](l courier.DeadLetter[T], r *kgo.Record, topic string) *kgo.Record {
	h := make(letterHeaders, 0, len(r.Headers)+16)
	for _, kept := range r.Headers {
		if !isLetterHeader(kept.Key) {
			h = append(h, kept)
		}
	}
	if l.Error != nil {
		text := l.Error.Error()
		text = strings.ToValidUTF8(text[:min(len(text), maxErrorText)], "")
		h.add("courier-error", text)
		h.add("courier-error-type", typeOf(l.Error))
		h.add("kafka_dlt-exception-message", text)
		h.add("kafka_dlt-exception-fqcn", typeOf(l.Error))
	}
	h.add("courier-reason", string(l.Reason))
	h.add("courier-attempts", strconv.Itoa(l.Attempts))
	h.add("courier-first-failed-at", l.FirstFailedAt.UTC().Format(time.RFC3339Nano))
	h.add("courier-failed-at", l.FailedAt.UTC().Format(time.RFC3339Nano))
	if l.Branch != "" {
		h.add("courier-branch", l.Branch)
	}
	if l.Key != "" {
		h.add("courier-key", l.Key)
	}
	if l.FailedRedrives > 0 {
		h.add("courier-redriven", strconv.Itoa(l.FailedRedrives))
	}
	original := r.Topic
	if consumed, ok := any(l.Record).(*kgo.Record); ok && consumed != nil {
		original = consumed.Topic
		h.add("courier-original-partition", strconv.Itoa(int(consumed.Partition)))
		h.add("courier-original-offset", strconv.FormatInt(consumed.Offset, 10))
		h.add("courier-original-timestamp", consumed.Timestamp.UTC().Format(time.RFC3339Nano))
		h.add("kafka_dlt-original-partition", string(binary.BigEndian.AppendUint32(nil, uint32(consumed.Partition))))
		h.add("kafka_dlt-original-offset", string(binary.BigEndian.AppendUint64(nil, uint64(consumed.Offset))))
		h.add("kafka_dlt-original-timestamp", string(binary.BigEndian.AppendUint64(nil, uint64(consumed.Timestamp.UnixMilli()))))
	}
	for _, key := range [...]string{"courier-original-topic", "kafka_dlt-original-topic", "x-original-topic"} {
		h.add(key, original)
	}
	return &kgo.Record{Topic: topic, Key: r.Key, Value: r.Value, Headers: slices.Clip(h), Context: r.Context}
}

type letterHeaders []kgo.RecordHeader

func (h *letterHeaders) add(key, value string) {
	*h = append(*h, kgo.RecordHeader{Key: key, Value: []byte(value)})
}

// isLetterHeader reports whether a header may be one of an earlier letter.
func isLetterHeader(key string) bool {
	switch key {
	case "courier-error", "courier-error-type", "courier-reason", "courier-attempts", "courier-first-failed-at", "courier-failed-at",
		"courier-branch", "courier-key", "courier-redriven",
		"courier-original-topic", "courier-original-partition", "courier-original-offset", "courier-original-timestamp",
		"kafka_dlt-exception-message", "kafka_dlt-exception-fqcn",
		"kafka_dlt-original-topic", "kafka_dlt-original-partition", "kafka_dlt-original-offset", "kafka_dlt-original-timestamp",
		"x-original-topic":
		return true
	}
	return false
}

// typeOf returns the type of the innermost error, which the others only wrap. Of several in
// one it goes by the first.
func typeOf(err error) string {
	for {
		inner := errors.Unwrap(err)
		if several, ok := err.(interface{ Unwrap() []error }); ok {
			if all := several.Unwrap(); len(all) > 0 {
				inner = all[0]
			}
		}
		if inner == nil {
			return fmt.Sprintf("%T", err)
		}
		err = inner
	}
}
