package courierkafka

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// call is one call of ApplyBatch.
type call struct {
	*producer
	records []*kgo.Record // by index; nil where none was made
	errs    []error       // nil where the record is stored
	heard   uint64        // the link's, when the call began
	purges  uint64        // likewise
}

func newCall(p *producer, n int) *call {
	return &call{producer: p, records: make([]*kgo.Record, n), errs: make([]error, n), heard: p.link.heard.Load(), purges: p.link.purges.Load()}
}

// run makes Kafka records of the records, produces them, and finds out what became of
// each.
func (c *call) run(ctx context.Context, message func(i int) (*kgo.Record, error)) {
	c.produceAll(ctx, c.makeAll(ctx, message))
	lanes, again := c.refused(), c.madeAgain()
	if len(lanes) == 0 && len(again) == 0 {
		return
	}
	// Alone, so that no record of another call is in the batch that a broker refuses, or
	// of the topic that the client forgets.
	if err := c.link.turns.enter(ctx, true); err != nil {
		for _, lane := range lanes {
			c.fail(lane, err)
		}
		return
	}
	defer c.link.turns.leave()
	if len(again) > 0 && c.link.purges.Load() == c.purges { // else another call has done it
		c.client.PurgeTopicsFromProducing(again...)
		c.link.purges.Add(1)
	}
	for _, lane := range lanes {
		c.isolate(ctx, lane)
	}
}

// makeAll makes the Kafka records, up to the first one that cannot be sent: later ones
// may be of its key. It returns the indices of those that can.
func (c *call) makeAll(ctx context.Context, message func(i int) (*kgo.Record, error)) []int {
	made := make([]int, 0, len(c.records))
	for i := range c.records {
		r, err := message(i)
		if err = c.prepare(r, err); err == nil {
			c.records[i] = r
			made = append(made, i)
			continue
		}
		switch courier.Classify(ctx, err) {
		case courier.ClassSkipped:
			c.errs[i] = err
			continue
		case courier.ClassRetryable:
			err = courier.Permanent(err)
		}
		c.errs[i] = unsendable{err}
		for later := i + 1; later < len(c.errs); later++ {
			c.errs[later] = courier.ErrBehindFailed
		}
		break
	}
	return made
}

func (c *call) produceAll(ctx context.Context, indices []int) {
	if err := c.link.turns.enter(ctx, false); err != nil {
		c.fail(indices, &unsentError{err})
		return
	}
	defer c.link.turns.leave()
	c.produce(ctx, indices)
}

// fail sets the error of records.
func (c *call) fail(indices []int, err error) {
	for _, i := range indices {
		c.errs[i] = err
	}
}

// produce sends records, waits for the answers, and sets the errors.
func (c *call) produce(ctx context.Context, indices []int) {
	limited, cancel := context.WithTimeout(ctx, c.config.deliveryTimeout)
	defer cancel()
	if err := c.link.identify(limited, c.client); err != nil {
		if ctx.Err() != nil {
			err = &unsentError{context.Cause(ctx)}
		}
		c.fail(indices, err)
		return
	}
	r := newRound(ctx, c.producer, len(indices))
	sent := c.send(limited, r, indices)
	for _, i := range indices[sent:] {
		switch {
		case r.failed.Load():
			c.errs[i] = courier.ErrBehindFailed
		case ctx.Err() != nil:
			c.errs[i] = &unsentError{context.Cause(ctx)}
		default:
			c.errs[i] = &unsentError{errNoRoom}
		}
	}
	c.collect(ctx, r.wait(ctx, limited), indices[:sent])
}

// send hands records to the client until one is known to have failed or ctx has ended,
// and returns how many. One call at a time does: the client sends nothing before it has
// all records of the call, if they fit into one batch for each partition, and so takes
// none of them after an earlier one has failed.
func (c *call) send(ctx context.Context, r *round, indices []int) (sent int) {
	select {
	case c.link.sending <- struct{}{}:
		defer func() { <-c.link.sending }()
	case <-ctx.Done():
		return 0
	}
	for ; sent < len(indices) && ctx.Err() == nil && !r.failed.Load(); sent++ {
		record := c.records[indices[sent]]
		if !c.room(ctx, record) {
			break
		}
		r.send(sent, record)
	}
	_ = c.client.Flush(ended) // sends what lingers, and does not wait
	return sent
}

// room waits until the client's buffer has room for a record, and reports whether it has.
// Produce would wait too, but to end that its context must end, and with it the records
// that the client has already.
func (c *call) room(ctx context.Context, r *kgo.Record) bool {
	for c.client.BufferedProduceRecords() >= c.bufferRecords || c.bufferBytes > 0 && c.client.BufferedProduceBytes()+int64(dataOf(r)) > c.bufferBytes {
		_ = c.client.Flush(ended)
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// ended is a context that has ended.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// collect sets the errors of the records that a round has sent. A record that was
// stored although an earlier one of its key was not goes again after that: the client
// may buffer it just when the earlier one has failed. But one that was sent by another
// call, and has no answer yet, has not failed: then it was sent after the later one.
func (c *call) collect(ctx context.Context, results []result, indices []int) {
	type key struct{ topic, key string }
	var behind map[key]bool
	for at, i := range indices {
		e := &results[at]
		record, err := e.record, e.verdict(ctx)
		underWay := e.joined != nil && !e.known
		if err != nil && !underWay || behind != nil && record.Key != nil {
			k := key{record.Topic, string(record.Key)}
			if err == nil && behind[k] {
				err = courier.ErrBehindFailed
			}
			if behind == nil {
				behind = make(map[key]bool)
			}
			behind[k] = behind[k] || err != nil && !underWay
		}
		c.errs[i] = err
	}
}

// refused returns the records that brokers refused as a batch, by partition and in
// order.
func (c *call) refused() (lanes [][]int) {
	var known map[partition]int
	for i, err := range c.errs {
		if c.records[i] == nil || err == nil || !batchRefused(err) {
			continue
		}
		if known == nil {
			known = make(map[partition]int)
		}
		p := partition{c.records[i].Topic, c.records[i].Partition}
		at, ok := known[p]
		if !ok {
			at = len(lanes)
			known[p] = at
			lanes = append(lanes, nil)
		}
		lanes[at] = append(lanes[at], i)
	}
	return lanes
}

// madeAgain returns the topics that were deleted and made again. The client sends nothing
// to one until it has forgotten the first.
func (c *call) madeAgain() (topics []string) {
	for i, err := range c.errs {
		if c.records[i] != nil && errors.Is(err, kerr.UnknownTopicID) && !slices.Contains(topics, c.records[i].Topic) {
			topics = append(topics, c.records[i].Topic)
		}
	}
	return topics
}

// isolate sends records of a refused batch again, in order and in smaller parts, until
// it finds the one that brokers refuse by itself. Records after that one are not sent.
// It reports whether all were stored.
func (c *call) isolate(ctx context.Context, part []int) bool {
	produced, idle := c.link.produced.Load(), c.link.underWay.Load() == 0
	for _, i := range part {
		c.records[i] = again(c.records[i])
	}
	c.produce(ctx, part)
	alone := len(part) == 1 && idle && c.link.produced.Load() == produced+1

	var rest []int
	for _, i := range part {
		if c.errs[i] != nil {
			rest = append(rest, i)
		}
	}
	switch {
	case len(rest) == 0:
		return true
	case !batchRefused(c.errs[rest[0]]):
		return false
	case len(rest) < len(part):
		return c.isolate(ctx, rest)
	case len(part) == 1:
		if alone { // what else was in the batch could be to blame
			c.errs[part[0]] = courier.Permanent(c.errs[part[0]])
		}
		return false
	}
	half := len(part) / 2
	c.fail(part[half:], courier.ErrBehindFailed)
	return c.isolate(ctx, part[:half]) && c.isolate(ctx, part[half:])
}

// again returns a copy of a record that the client is done with.
func again(r *kgo.Record) *kgo.Record {
	return &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}
}

// outcome returns the result of the call. An error that tells of the cluster is held
// against no record. While any broker answers this one waits by itself, otherwise the
// coordinator pauses.
func (c *call) outcome(ctx context.Context) error {
	var failed courier.BatchError
	asked, until := false, time.Time{}
	for i, err := range c.errs {
		if err == nil {
			continue
		}
		var unsent *unsentError
		if r := c.records[i]; r != nil && err != courier.ErrBehindFailed && !errors.As(err, &unsent) {
			err = &produceError{r.Topic, RecordID(r), err}
		}
		if c.records[i] != nil && ofCluster(err) {
			if !asked && !c.answered(ctx) {
				until = time.Now().Add(restFor)
			}
			asked = true
			if until.IsZero() {
				err = courier.Later(err, restFor)
			} else {
				err = &restError{err, until}
			}
		}
		failed.Add(i, err)
	}
	return failed.ErrorOrNil()
}

// answered reports whether any broker has answered anything since the call began, or does
// now: a client that waits for one broker has no reason to ask another.
func (c *call) answered(ctx context.Context) bool {
	return c.link.heard.Load() != c.heard || reachable(ctx, c.client, c.config.deliveryTimeout/10)
}
