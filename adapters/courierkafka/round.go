package courierkafka

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// round is some records on their way to the brokers. The client's answers may come
// after the call has returned: the round belongs to whoever comes last.
type round struct {
	p      *producer
	ctx    context.Context // the client's, which never ends
	failed atomic.Bool     // a record has failed

	mu      sync.Mutex
	results []result        // nil once nobody waits for answers any more
	placed  int             // where the next record is that the client has a partition for
	waiting int             // records without an answer
	awaited int             // those of them that are not overdue
	sealed  bool            // no more records are sent
	over    chan struct{}   // is closed when all answers are there
	enough  chan struct{}   // is closed when all are that are awaited
	late    map[int]*answer // where those go that come after that
}

type result struct {
	record  *kgo.Record
	at      partition // the number is -1 until the client has chosen one
	overdue bool      // is not waited for
	known   bool      // there is an answer
	err     error
	joined  *answer // to an earlier copy
}

// roundKey is the key of the round in the context of a record.
type roundKey struct{}

// newRound makes a round for n records. The client never gives a record up because a
// context has ended. It would take others along that are in the same batch; and it takes
// a batch for not stored when any request with it was answered, though the answer to an
// earlier one may have been lost.
func newRound(ctx context.Context, p *producer, n int) *round {
	r := &round{p: p, results: make([]result, n), over: make(chan struct{}), enough: make(chan struct{})}
	r.ctx = r.with(ctx)
	return r
}

// with returns a context that does not end, and tells the hooks of the client the round.
func (r *round) with(ctx context.Context) context.Context {
	return context.WithValue(context.WithoutCancel(ctx), roundKey{}, r)
}

// send hands a record to the client, or joins an earlier copy of it that has no answer
// yet.
func (r *round) send(i int, record *kgo.Record) {
	r.mu.Lock()
	r.results[i].record, r.results[i].at = record, partition{record.Topic, -1}
	r.placed = i
	r.waiting++
	r.awaited++
	r.mu.Unlock()
	if r.p.link.unanswered.count.Load() > 0 {
		if joined := r.p.link.unanswered.join(record, waiter{r, i}); joined != nil {
			r.mu.Lock()
			r.results[i].joined = joined
			r.place(i, joined.at)
			r.mu.Unlock()
			return
		}
	}
	if record.Context != nil {
		record.Context = r.with(record.Context)
	}
	r.p.client.Produce(r.ctx, record, func(answered *kgo.Record, err error) {
		r.p.link.overdue.answered(partition{answered.Topic, answered.Partition}, partition{answered.Topic, -1})
		r.settle(i, err)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.place(i, r.results[i].at)
}

// partitioned notes the partition of a record. The client chooses it as the record is
// sent, or in the same order once it knows the topic.
func (r *round) partitioned(record *kgo.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.results {
		if i := (r.placed + n) % len(r.results); r.results[i].record == record {
			r.place(i, partition{record.Topic, record.Partition})
			r.placed = i + 1
			return
		}
	}
}

// place sets the partition of a record. If that is overdue the record is not waited for,
// unless it has no id, by which the next attempt finds the answer.
func (r *round) place(i int, at partition) {
	e := &r.results[i]
	if e.at = at; !e.known && !e.overdue && r.p.link.overdue.has(at) && RecordID(e.record) != "" {
		e.overdue = true
		r.awaited--
		r.end()
	}
}

// settle notes the answer to a record, and reports whether somebody waits for it.
func (r *round) settle(i int, err error) bool {
	if err != nil {
		r.failed.Store(true)
	}
	r.mu.Lock()
	left, late := r.results == nil, r.late[i]
	if !left {
		e := &r.results[i]
		e.known, e.err = true, err
		r.waiting--
		if !e.overdue {
			r.awaited--
		}
		r.end()
	}
	r.mu.Unlock()
	if late != nil {
		r.p.link.unanswered.settle(late, err)
	}
	return !left
}

// end closes the channels when there is nothing more to wait for.
func (r *round) end() {
	if r.sealed && r.awaited == 0 {
		select {
		case <-r.enough:
		default:
			close(r.enough)
		}
	}
	if r.sealed && r.waiting == 0 {
		close(r.over)
	}
}

// wait returns the results when all records have an answer, limited has ended, or only
// those have none that are overdue: these get a moment. limited is ctx with the delivery
// timeout. What has no answer by then is remembered, for the next attempt, and nothing
// else: the client keeps the round for as long as a record has none.
func (r *round) wait(ctx, limited context.Context) []result {
	r.mu.Lock()
	r.sealed = true
	r.end()
	r.mu.Unlock()
	select {
	case <-r.enough:
		select {
		case <-r.over:
		case <-time.After(r.p.config.deliveryTimeout / 100):
		case <-limited.Done():
		}
	case <-limited.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	results := r.results
	r.results = nil
	timedOut := limited.Err() != nil && ctx.Err() == nil
	for i := range results {
		e := &results[i]
		if e.record == nil || e.known {
			continue
		}
		if timedOut {
			r.p.link.overdue.add(e.at)
		}
		if e.joined != nil {
			r.p.link.unanswered.leave(e.joined, waiter{r, i})
		} else if late := r.p.link.unanswered.add(e.record, e.at); late != nil {
			if r.late == nil {
				r.late = make(map[int]*answer)
			}
			r.late[i] = late
		}
	}
	return results
}

// verdict returns the error of a record that was sent, nil when it is stored. It is called
// after wait, with the caller's context.
func (e *result) verdict(ctx context.Context) error {
	switch {
	case !e.known && ctx.Err() != nil:
		return context.Cause(ctx)
	case !e.known:
		return errNoAnswer
	case errors.Is(e.err, kgo.ErrMaxBuffered), errors.Is(e.err, kgo.ErrAborting), errors.Is(e.err, kgo.ErrClientClosed):
		return &unsentError{e.err}
	}
	return e.err
}
