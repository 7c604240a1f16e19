package sim

import (
	"context"
	"errors"
	"fmt"

	"github.com/erfanmomeniii/courier"
)

// destination is the model's destination as one process sees it.
type destination struct{ *life }

// destination returns it with or without batches.
func (l *life) destination() courier.Applier[order] {
	if l.m.Batches {
		return &batches{destination{l}}
	}
	return &destination{l}
}

func (d *destination) Apply(ctx context.Context, o order) error {
	if n := courier.AttemptFrom(ctx); d.m.Stack > 0 && !d.m.Batches && n > d.m.Attempts {
		d.m.Fail("R-1: %v is attempted for the %dth time, with %d at most", o, n, d.m.Attempts)
	}
	return d.p.await(ctx, Apply, uint64(o.N+1), names[o.N], try{o.N, courier.AttemptFrom(ctx)}, func(c *call) { c.err = d.apply(o.N) })
}

// try is one attempt at a record.
type try struct{ n, attempt int }

// apply is the effect of applying one record.
func (d *destination) apply(n int) error {
	m, r := d.m, &d.m.rows[n]
	switch {
	case m.poison[n] && !m.mended(), m.stubborn[n]:
		return &callError{uint64(n + 1), names[n] + " is poison", ErrInjected}
	case m.skipped[n]:
		m.Sometimes("skipped")
		return courier.Skip(&callError{uint64(n + 1), names[n] + " is to be skipped", ErrInjected})
	}
	r.applied++
	m.fold(uint64(n), 19)
	if r.sure[d.p.instance] != d.p || m.FanOut == 2 || r.twice {
		return nil
	}
	r.sure[d.p.instance] = nil // from here on it is another delivery
	if r.excuses--; r.excuses < 0 {
		m.Fail("D7: %s is applied again by process %d, which was told that it is applied", names[n], d.p.number)
	}
	return nil
}

// told notes that a process knows that a record is settled.
func (l *life) told(n int) {
	r := &l.m.rows[n]
	r.told[l.p.instance], r.sure[l.p.instance] = l.p, l.p
}

// batches is a destination that takes batches.
type batches struct{ destination }

// verdicts are the results of a batch.
type verdicts struct {
	records []order
	errs    []error
}

func (b *batches) ApplyBatch(ctx context.Context, records []order) error {
	v := &verdicts{records: records}
	err := b.p.await(ctx, Batch, uint64(records[0].N+1), names[records[0].N], v, func(c *call) {
		m := b.m
		if m.tracing {
			c.detail += fmt.Sprint(records)
		}
		v.errs = make([]error, len(records))
		for i, o := range records {
			switch fault := m.within(c, Apply, uint64(o.N+1), names[o.N]); fault {
			case None, Slow, Hang:
				v.errs[i] = b.apply(o.N)
			case Lost:
				if v.errs[i] = b.apply(o.N); v.errs[i] == nil {
					v.errs[i] = &callError{uint64(o.N + 1), names[o.N] + ": lost", ErrInjected}
				}
			case Down:
				m.meetsOutage(o.N)
				v.errs[i] = fault.injected(uint64(o.N+1), names[o.N]+": down")
			default:
				v.errs[i] = fault.injected(uint64(o.N+1), names[o.N]+": "+fault.String())
			}
		}
	})
	if err != nil {
		return err
	}
	var failed courier.BatchError
	for i, err := range v.errs {
		if err != nil {
			failed.Add(i, err)
		}
	}
	if n := len(failed.Failures); n > 0 && n < len(records) {
		b.m.Sometimes("a batch failed in part")
	}
	return failed.ErrorOrNil()
}

// branch is a second destination.
type branch struct{ *life }

// beside keeps the calls of the second branch apart from those of the first.
const beside = 1 << 32

func (b *branch) Apply(ctx context.Context, o order) error {
	return b.p.await(ctx, Apply, uint64(o.N+1)|beside, names[o.N], nil, func(c *call) {
		b.m.rows[o.N].second++
	})
}

// count is a second branch that never fails.
func (l *life) count(_ context.Context, o order) error {
	l.m.rows[o.N].second++
	return nil
}

// parkingLot is the model's dead letter queue as one process sees it.
type parkingLot struct {
	*courier.MemoryDLQ[order]
	*life
}

func (q *parkingLot) Send(ctx context.Context, letter courier.DeadLetter[order]) error {
	n := letter.Record.N
	return q.p.await(ctx, Send, uint64(n+1), names[n], n, func(c *call) {
		if q.Len() >= q.m.Capacity && q.m.rows[n].parked == 0 && !q.m.Calm() {
			q.m.Sometimes("the queue is full")
			c.err = courier.ErrDLQFull
			return
		}
		stays := letter.Reason == courier.KeyParked && q.m.hasLetter(n) // the one that is there
		if c.err = q.MemoryDLQ.Send(ctx, letter); c.err == nil && !stays {
			q.m.park(n)
			q.m.fold(uint64(n), 23)
		}
	})
}

func (q *parkingLot) ParkedKeys(ctx context.Context, branch string, keys []string) (parked []string, err error) {
	err = q.p.await(ctx, Keys, digest(fmt.Sprint(keys)), fmt.Sprint(keys), nil, func(c *call) {
		parked, c.err = q.MemoryDLQ.ParkedKeys(ctx, branch, keys)
	})
	return parked, err
}

// parkedBy is what Courier says of a record that the queue has taken.
func (l *life) parkedBy(_ context.Context, letter courier.DeadLetter[order]) {
	m, n := l.m, letter.Record.N
	if l.p.dead {
		return
	}
	if m.Memory {
		if r := &m.rows[n]; letter.Reason == courier.KeyParked && r.parked > 0 { // the letter that was there may be there still
			r.excuses++
		} else {
			m.park(n)
		}
		l.told(n)
	}
	if letter.Reason == courier.KeyParked {
		m.Sometimes("parked behind its key")
		return
	}
	if errors.Is(letter.Error, courier.ErrOpen) || errors.Is(letter.Error, context.Canceled) {
		m.Fail("D5: %s is parked with %v", names[n], letter.Error)
	}
	// One outage takes too few attempts to give a record up, several may.
	if m.healthyOnly && !m.poison[n] && len(m.rows[n].outages) < 2 && !m.flickers() {
		m.Fail("D6: %s is healthy, and was parked with %v", names[n], letter.Error)
	}
	made := m.rows[n].calls[l.p.instance]
	switch {
	case letter.Reason == courier.Exhausted && letter.Attempts < m.Attempts:
		m.Fail("R-2: %s is parked as exhausted after %d of %d attempts", names[n], letter.Attempts, m.Attempts)
	case letter.Attempts > made && letter.Reason == courier.Exhausted:
		m.Fail("D5: %s is parked after %d attempts, of which %d were made", names[n], letter.Attempts, made)
	}
}
