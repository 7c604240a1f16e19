package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/erfanmomeniii/courier"
)

// destination is the model's destination as one process sees it.
type destination[T record] struct{ *life }

// destination returns it with or without batches.
func (x *pipe[T]) destination(l *life) courier.Applier[T] {
	switch {
	case x.InOrder:
		return &inOrder[T]{batches[T]{destination[T]{l}}}
	case x.Batches:
		return &batches[T]{destination[T]{l}}
	}
	return &destination[T]{l}
}

func (d *destination[T]) Apply(ctx context.Context, record T) error {
	handle(ctx, record)
	n, attempt := record.number(), courier.AttemptFromContext(ctx)
	if d.m.Stack > plain && !d.m.Batches && attempt > d.m.Attempts {
		d.m.Fail("R-1: %v is attempted for the %dth time, with %d at most", record, attempt, d.m.Attempts)
	}
	return d.p.await(ctx, Apply, uint64(n+1), names[n], try{n, attempt}, func(c *call) { c.err = d.apply(n) })
}

// try is one attempt at a record.
type try struct{ n, attempt int }

// apply is the effect of applying one record.
func (l *life) apply(n int) error {
	m, r := l.m, &l.m.rows[n]
	switch {
	case m.poison[n] && !m.mended(), m.stubborn[n]:
		err := injured(uint64(n+1), names[n]+" is poison")
		return []error{err, errors.Join(courier.Skip(err), err)}[n%2] // nothing was to be done for a part of it
	case n == m.Foreign:
		m.Sometimes("a foreign configuration")
		return foreign(injured(uint64(n+1), names[n]+" is for a tenant"))
	case m.skipped[n]:
		m.Sometimes("skipped")
		return courier.Skip(injured(uint64(n+1), names[n]+" is to be skipped"))
	}
	r.applied++
	m.fold(uint64(n), 19)
	if r.sure[l.p.instance] != l.p || m.forgets() || r.twice {
		return nil
	}
	r.sure[l.p.instance] = nil // from here on it is another delivery
	if r.excuses--; r.excuses < 0 {
		m.Fail("D7: %s is applied again by process %d, which was told that it is applied", names[n], l.p.number)
	}
	return nil
}

// told notes that a process knows that a record is settled.
func (l *life) told(n int) {
	r := &l.m.rows[n]
	r.told[l.p.instance], r.sure[l.p.instance] = l.p, l.p
	l.waits.refused = false
}

// batches is a destination that takes batches.
type batches[T record] struct{ destination[T] }

// verdicts are the results of a batch.
type verdicts struct {
	records []int
	errs    []error
	attempt int
}

// of is what a call that returns says of one of its records.
func (v *verdicts) of(c *call, i int) error {
	if c.err != nil || v.errs == nil {
		return c.err
	}
	return v.errs[i]
}

func (b *batches[T]) ApplyBatch(ctx context.Context, records []T) error {
	for _, record := range records {
		handle(ctx, record)
	}
	v := &verdicts{records: numbersOf(records), attempt: courier.AttemptFromContext(ctx)}
	first := v.records[0]
	err := b.p.await(ctx, Batch, uint64(first+1), names[first], v, func(c *call) {
		m := b.m
		if m.tracing {
			c.detail += fmt.Sprint(records)
		}
		v.errs = make([]error, len(records))
		behind := map[int]bool{} // failed ones, by their keys
		for i, n := range v.records {
			if behind[m.key(n)] || m.EndsCall && len(behind) > 0 {
				v.errs[i] = courier.ErrBehindFailed
				m.Sometimes("behind a failed record")
				continue
			}
			switch fault, injected := m.within(c, Apply, uint64(n+1), names[n]); fault {
			case None, Slow, Hang:
				v.errs[i] = b.apply(n)
			case Lost:
				if v.errs[i] = b.apply(n); v.errs[i] == nil {
					v.errs[i] = injected
				}
			default:
				if v.errs[i] = injected; fault == Down {
					m.meetsOutage(n)
				}
			}
			if m.InOrder && v.errs[i] != nil && courier.Classify(context.Background(), v.errs[i]) != courier.ClassSkipped {
				behind[m.key(n)] = true
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

// inOrder is one that keeps the order inside a call.
type inOrder[T record] struct{ batches[T] }

func (*inOrder[T]) OrderedBatches() bool { return true }

// besides is an attempt of the second branch on a record.
type besides struct{ n, attempt int }

// branch is a second destination.
type branch[T record] struct{ *life }

// beside keeps the calls of the second branch apart from those of the first.
const beside = 1 << 32

func (b *branch[T]) Apply(ctx context.Context, record T) error {
	n := record.number()
	return b.p.await(ctx, Apply, uint64(n+1)|beside, names[n], besides{n, courier.AttemptFromContext(ctx)}, func(c *call) { b.m.rows[n].second++ })
}

// count is a second branch that never fails.
func (x *pipe[T]) count(l *life) func(context.Context, T) error {
	return func(_ context.Context, record T) error {
		r := &x.rows[record.number()]
		r.second++
		r.toldAside[l.p.instance] = l.p
		return nil
	}
}

// owes looks whether a branch that does not have a record has its letter.
func (m *model) owes(n int) {
	if m.FanOut != 4 || m.skipped[n] {
		return
	}
	r := &m.rows[n]
	for _, b := range [...]struct {
		name            string
		applied, parked int
	}{{first, r.applied, r.parked}, {second, r.second, r.aside}} {
		if b.applied == 0 && b.parked > 0 && !m.hasLetter(n, b.name) {
			m.Fail("D1: branch %s has parked %s, and its letter is not in the queue any more", b.name, names[n])
		}
	}
}

// parkingLot is the model's dead letter queue as one process sees it.
type parkingLot[T record] struct {
	*courier.MemoryDLQ[T]
	*life
	branch string
}

// id keeps the calls of the branches apart.
func (q *parkingLot[T]) id(id uint64) uint64 {
	if q.branch == second {
		return id | beside
	}
	return id
}

// sent is a letter on its way.
type sent struct {
	n      int
	branch string
}

func (q *parkingLot[T]) Send(ctx context.Context, letter courier.DeadLetter[T]) error {
	n := letter.Record.number()
	return q.p.await(ctx, Send, q.id(uint64(n+1)), names[n], sent{n, letter.Branch}, func(c *call) {
		m := q.m
		if letters, _ := q.Count(context.Background()); letters >= m.Capacity && !m.wasParked(n, letter.Branch) && !m.Calm() {
			m.Sometimes("the queue is full")
			c.err = courier.ErrDLQFull
			return
		}
		stays := letter.Reason == courier.ReasonKeyParked && m.hasLetter(n, letter.Branch) // the one that is there
		if c.err = q.MemoryDLQ.Send(ctx, letter); c.err == nil && !stays {
			m.park(n, letter.Branch)
			m.fold(uint64(n), 23)
		}
		if c.err == nil && letter.Reason != courier.ReasonKeyParked {
			m.behind[m.lane(n, letter.Branch)] = true
		}
		m.owes(n)
	})
}

func (q *parkingLot[T]) ParkedKeys(ctx context.Context, branch string, keys []string) (parked []string, err error) {
	err = q.p.await(ctx, Keys, q.id(digest(fmt.Sprint(keys))>>32), fmt.Sprint(keys), slices.Clone(keys), func(c *call) {
		parked, c.err = q.MemoryDLQ.ParkedKeys(ctx, branch, keys)
	})
	return parked, err
}

// inMemory is a queue in memory as one process sees it. Letters that are sent at one
// instant, by workers or branches that have no call to make before, are numbered in
// canonical order.
type inMemory[T record] struct{ parkingLot[T] }

func (q *inMemory[T]) Send(ctx context.Context, letter courier.DeadLetter[T]) error {
	q.p.takeTurn(ctx, q.id(uint64(letter.Record.number()+1)))
	return q.MemoryDLQ.Send(ctx, letter)
}

func (q *inMemory[T]) ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error) {
	return q.MemoryDLQ.ParkedKeys(ctx, branch, keys)
}

// parkedBy is what Courier says of a record that the queue has taken.
func parkedBy[T record](l *life) func(context.Context, courier.DeadLetter[T]) {
	return func(_ context.Context, letter courier.DeadLetter[T]) {
		n := letter.Record.number()
		if l.p.dead { // the letter is in the queue all the same, where that is in memory
			l.m.behind[l.m.lane(n, letter.Branch)] = true
			return
		}
		if l.watcher != nil {
			l.watcher.parked++
		}
		if letter.Branch != second {
			l.waits.end(n)
		}
		l.parked(n, letter.Branch, letter.Reason)
		if letter.Branch != second && letter.Reason != courier.ReasonKeyParked {
			l.gaveUp(n, letter.Reason, letter.Attempts, letter.Error)
		}
	}
}

// parked looks at a record that a branch has parked.
func (l *life) parked(n int, branch string, reason courier.Reason) {
	m := l.m
	if m.Memory {
		if reason == courier.ReasonKeyParked && m.wasParked(n, branch) { // the letter that was there may be there still
			if branch != second {
				m.rows[n].excuses++
			}
		} else {
			m.park(n, branch)
		}
		l.toldParked(n, branch)
		m.owes(n)
	}
	switch lane := m.lane(n, branch); {
	case reason != courier.ReasonKeyParked:
		m.behind[lane] = true
	case !m.behind[lane]:
		m.Fail("Q-8: %s is parked behind others of its key (%s), of which none was", names[n], lane)
	default:
		m.Sometimes("parked behind its key")
	}
}

// toldParked notes that a process knows that a branch has parked a record.
func (l *life) toldParked(n int, branch string) {
	if branch == second {
		l.m.rows[n].toldAside[l.p.instance] = l.p
	} else {
		l.told(n)
	}
}

// gaveUp looks at a record that was parked for its own sake.
func (l *life) gaveUp(n int, reason courier.Reason, attempts int, err error) {
	m := l.m
	if errors.Is(err, courier.ErrOpen) || errors.Is(err, courier.ErrConfig) || errors.Is(err, context.Canceled) {
		m.Fail("D5: %s is parked with %v", names[n], err)
	}
	if r, why := &m.rows[n], l.waits.untried[n]; why != "" && !r.twice && !r.strayed && !m.Twins {
		m.Fail("D5: %s is parked with %v after a call in which it was not attempted: %s", names[n], err, why)
	}
	// One outage takes too few attempts to give a record up, several may.
	if m.healthyOnly && !m.poison[n] && len(m.rows[n].outages) < 2 && !m.flickers(n) {
		m.Fail("D6: %s is healthy, and was parked with %v", names[n], err)
	}
	made := m.rows[n].calls[l.p.instance]
	switch {
	case reason == courier.ReasonExhausted && attempts < m.Attempts:
		m.Fail("Q-1: %s is parked as exhausted after %d of %d attempts", names[n], attempts, m.Attempts)
	case attempts > made && reason == courier.ReasonExhausted:
		m.Fail("D5: %s is parked after %d attempts, of which %d were made", names[n], attempts, made)
	}
}
