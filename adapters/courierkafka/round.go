package courierkafka

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// round is some records on their way to the brokers. The client's answers may come
// after the call has returned: the round belongs to whoever comes last.
type round struct {
	p      *producer
	ctx    context.Context // the client's, which never ends
	failed atomic.Bool     // a record has failed

	mu      sync.Mutex
	results []result
	waiting int           // records without an answer
	sealed  bool          // no more records are sent
	over    chan struct{} // is closed when all answers are there
	left    bool          // nobody waits for answers any more
}

type result struct {
	record *kgo.Record
	known  bool // there is an answer
	err    error
	late   *answer // where the answer goes once nobody waits for it here
}

// newRound makes a round for n records. The client never gives a record up because a
// context has ended. It would take others along that are in the same batch; and it takes
// a batch for not stored when any request with it was answered, though the answer to an
// earlier one may have been lost.
func newRound(ctx context.Context, p *producer, n int) *round {
	return &round{p: p, ctx: context.WithoutCancel(ctx), results: make([]result, n), over: make(chan struct{})}
}

// send hands a record to the client, or joins an earlier copy of it that has no answer
// yet.
func (r *round) send(i int, record *kgo.Record) {
	r.mu.Lock()
	r.results[i].record = record
	r.waiting++
	r.mu.Unlock()
	unanswered := r.p.link.unanswered
	if unanswered.count.Load() > 0 && unanswered.join(record, func(err error) bool { return r.settle(i, err) }) {
		return
	}
	if record.Context != nil {
		record.Context = context.WithoutCancel(record.Context)
	}
	r.p.client.Produce(r.ctx, record, func(_ *kgo.Record, err error) { r.settle(i, err) })
}

// settle notes the answer to a record, and reports whether somebody waits for it.
func (r *round) settle(i int, err error) bool {
	if err != nil {
		r.failed.Store(true)
	}
	r.mu.Lock()
	left, late := r.left, r.results[i].late
	if !left {
		r.results[i].known, r.results[i].err = true, err
	}
	r.waiting--
	r.end()
	r.mu.Unlock()
	if late != nil {
		r.p.link.unanswered.settle(late, err)
	}
	return !left
}

// end closes over when nothing is to come any more.
func (r *round) end() {
	if r.sealed && r.waiting == 0 {
		close(r.over)
	}
}

// wait returns when all records have an answer, or ctx has ended. What has no answer by
// then is remembered, for the next attempt.
func (r *round) wait(ctx context.Context) {
	r.mu.Lock()
	r.sealed = true
	r.end()
	r.mu.Unlock()
	select {
	case <-r.over:
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = true
	for i := range r.results {
		if e := &r.results[i]; e.record != nil && !e.known {
			e.late = r.p.link.unanswered.add(e.record)
		}
	}
}

// verdict returns the error of a record that was sent, nil when it is stored. It is called
// after wait, with the caller's context.
func (r *round) verdict(ctx context.Context, e result) error {
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
