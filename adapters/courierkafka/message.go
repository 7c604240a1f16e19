package courierkafka

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kgo"
)

// IDHeader is the header that names a record for good: consumers take two records with
// one id for the same, and by it a [Sink] knows a record again. It is the one that the
// outbox event router of Debezium writes.
const IDHeader = "id"

// Message is an outbox row. Its fields are those of couriersql.Message, so that one
// converts to the other.
type Message struct {
	ID             string // is required, and the same at each attempt
	Topic          string
	Key            string // "" is no key
	Payload        []byte // nil is an empty value
	Headers, Trace map[string]string
	CreatedAt      time.Time // becomes the timestamp; zero is the time when it is sent
	NotBefore      time.Time // is for the outbox, which has waited for it; it is not sent
}

// Record makes the Kafka record of a message. Trace and Headers become headers, sorted
// by their keys; of two with one key the one in Trace counts. The payload is not
// copied. A nil payload does not become a tombstone, which would delete the key: make
// that by hand, with a nil Value.
//
// It is an error, and so a permanent one of the row, when the ID is empty or a header
// has the key [IDHeader].
func (m Message) Record() (*kgo.Record, error) {
	if m.ID == "" {
		return nil, fmt.Errorf("message for %q: it has no id, by which consumers tell a second delivery", clip(m.Topic))
	}
	headers := make([]kgo.RecordHeader, 1, 1+len(m.Headers)+len(m.Trace))
	headers[0] = kgo.RecordHeader{Key: IDHeader, Value: []byte(m.ID)}
	carried := m.Headers
	if len(m.Trace) > 0 {
		carried = maps.Clone(m.Headers)
		if carried == nil {
			carried = make(map[string]string, len(m.Trace))
		}
		maps.Copy(carried, m.Trace)
	}
	if _, taken := carried[IDHeader]; taken {
		return nil, fmt.Errorf("message %q for %q: a header has the key %q, which is that of the message's id", clip(m.ID), clip(m.Topic), IDHeader)
	}
	if len(carried) > 0 { // to sort none costs as much as the rest of a record
		for _, key := range slices.Sorted(maps.Keys(carried)) {
			headers = append(headers, kgo.RecordHeader{Key: key, Value: []byte(carried[key])})
		}
	}
	r := &kgo.Record{Topic: m.Topic, Value: m.Payload, Headers: headers, Timestamp: m.CreatedAt}
	if m.Key != "" {
		r.Key = []byte(m.Key)
	}
	if r.Value == nil {
		r.Value = []byte{}
	}
	return r, nil
}

// RecordID returns the id of a record from its header, "" if it has none.
func RecordID(r *kgo.Record) string {
	for _, h := range r.Headers {
		if h.Key == IDHeader {
			return string(h.Value)
		}
	}
	return ""
}

var errNilRecord = errors.New("it returned neither a record nor an error")

// prepare returns why a record cannot be sent. The client would find out too, but
// after it has taken later records.
func (p *producer) prepare(r *kgo.Record, err error) error {
	switch {
	case err != nil:
		return &messageError{err}
	case r == nil:
		return &messageError{errNilRecord}
	case r.Topic == "" || p.alwaysTopic:
		r.Topic = p.topic
	}
	err = validTopic(r.Topic)
	if err == nil {
		err = p.fits(r)
	}
	if err != nil {
		return &produceError{r.Topic, RecordID(r), err}
	}
	return nil
}

// validTopic is the brokers' rule.
func validTopic(topic string) error {
	const most = 249
	switch {
	case topic == "":
		return fmt.Errorf("%w: it is empty, and the client has no default", errTopic)
	case len(topic) > most:
		return fmt.Errorf("%w: it has %d bytes, and %d are the most", errTopic, len(topic), most)
	case topic == "." || topic == "..":
		return fmt.Errorf("%w: it is a name of a folder", errTopic)
	}
	for i := range len(topic) {
		if c := topic[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return fmt.Errorf("%w: it may hold letters, digits, dots, dashes and underscores only", errTopic)
		}
	}
	return nil
}

// fits says whether the client takes a record, as [kgo.Client] computes it.
func (p *producer) fits(r *kgo.Record) error {
	data := dataOf(r)
	size := 1 + 1 + 1 + varintLen(len(r.Key)) + varintLen(len(r.Value)) + varintLen(len(r.Headers)) + data
	for _, h := range r.Headers {
		size += varintLen(len(h.Key)) + varintLen(len(h.Value))
	}
	const emptyBatch = 65 // at most, by the version of the protocol
	size += varintLen(size) + emptyBatch
	most := int(p.batchMax(r.Topic))
	if p.bufferBytes > 0 && int64(data) > p.bufferBytes {
		return fmt.Errorf("%w: it has %d bytes, and the client buffers %d (MaxBufferedBytes)", errTooLarge, data, p.bufferBytes)
	}
	if size > most {
		return fmt.Errorf("%w: it has %d bytes, and the client sends %d (ProducerBatchMaxBytes)", errTooLarge, size, most)
	}
	return nil
}

// dataOf returns how many bytes a record takes of the client's buffer.
func dataOf(r *kgo.Record) int {
	data := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		data += len(h.Key) + len(h.Value)
	}
	return data
}

func varintLen(n int) int { return kbin.VarintLen(int32(n)) }
