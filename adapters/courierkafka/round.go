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
	results []result        // nil once nobody waits for answers any more
	waiting int             // records without an answer
	sealed  bool            // no more records are sent
	over    chan struct{}   // is closed when all answers are there
	late    map[int]*answer // where those go that come after that
}

type result struct {
	record *kgo.Record
	known  bool // there is an answer
	err    error
	joined *answer // to an earlier copy
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
	if r.p.link.unanswered.count.Load() > 0 {
		if joined := r.p.link.unanswered.join(record, waiter{r, i}); joined != nil {
			r.mu.Lock()
			r.results[i].joined = joined
			r.mu.Unlock()
			return
		}
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
	left, late := r.results == nil, r.late[i]
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

// wait returns the results when all records have an answer, or ctx has ended. What has no
// answer by then is remembered, for the next attempt, and nothing else: the client keeps
// the round for as long as a record has none.
func (r *round) wait(ctx context.Context) []result {
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
	results := r.results
	r.results = nil
	for i := range results {
		switch e := &results[i]; {
		case e.record == nil || e.known:
		case e.joined != nil:
			r.p.link.unanswered.leave(e.joined, waiter{r, i})
		default:
			if late := r.p.link.unanswered.add(e.record); late != nil {
				if r.late == nil {
					r.late = make(map[int]*answer)
				}
				r.late[i] = late
			}
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
