package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/erfanmomeniii/courier"
)

// source is the model's source as one coordinator of a process sees it.
type source struct {
	*life
	number  int   // of the coordinators that share a process
	handing []int // by a fetch that has not returned
}

// capable returns the source with the capabilities that its shape has.
func (s *source) capable() courier.Source[order] {
	back := releasing{s}
	switch m := s.m; {
	case m.shape == channel:
		return courier.NewChannelSource(s.queued, s.Mark)
	case m.shape < leasing && m.Waking:
		return waking{s}
	case m.shape < leasing || m.shape == journal:
		return s
	case m.Failing && m.Renewing:
		return failingRenewing{failing{back}, renewing{back}}
	case m.Failing:
		return failing{back}
	case m.Renewing:
		return renewing{back}
	case m.Waking:
		return releasingWaking{back, waking{s}}
	}
	return back
}

func (s *source) Fetch(ctx context.Context, limit int) (records []order, err error) {
	partly := false
	err = s.p.await(ctx, Fetch, uint64(s.p.instance+instances*s.number), "the source", s, func(c *call) {
		records = s.fetch(c, limit)
		partly = c.fault == Partly
	})
	if err != nil && (!partly || !errors.Is(err, ErrInjected)) {
		return nil, err
	}
	return records, err
}

func (s *source) fetch(c *call, limit int) (records []order) {
	m, now := s.m, s.m.now.Load()
	if m.shape == limitless {
		limit = len(m.rows)
	}
	var behind map[int]bool // keys of which a record is with another process, or put off
	from := 0
	if m.shape == journal {
		from = s.at
	}
	for n := from; n < len(m.rows) && len(records) < limit; n++ {
		r := &m.rows[n]
		if !r.arrived {
			if m.shape == journal {
				break
			}
			continue
		}
		if m.shape == journal {
			s.at = n + 1
		} else if r.marked {
			continue
		}
		if m.shape == leasing || m.shape == broker {
			if !s.take(n, r, now, &behind) {
				continue
			}
		}
		records = append(records, order{n})
		m.fold(uint64(n), 7)
	}
	if m.streaming() && len(records) == 0 {
		c.wait = true
		return nil
	}
	s.handing = s.handing[:0]
	for _, o := range records {
		s.handing = append(s.handing, o.N)
	}
	if n := len(records); c.fault == Twice && n > 0 && (m.Workers == 1 || m.Keys > 0) { // two at once could not be told apart
		if again := records[int(uniform(hash(m.seed, forFault, uint64(c.n), 7))*float64(n))]; !m.poison[again.N] {
			records = append(records, again)
			m.rows[again.N].twice = true
			m.Sometimes("the same record twice")
		}
	}
	if m.tracing {
		c.detail = fmt.Sprintf("(%d) %v", limit, records)
	}
	return records
}

// take leases a row to the process, if it is to be had.
func (s *source) take(n int, r *row, now int64, behind *map[int]bool) bool {
	m := s.m
	free := r.lessee == nil
	if m.shape == leasing || m.Renewing || r.put {
		free = r.lessee == nil || now >= r.until
	}
	if m.Blind && !free {
		return false
	}
	if !free || m.Keys > 0 && (*behind)[m.key(n)] {
		if *behind == nil {
			*behind = map[int]bool{}
		}
		if m.Keys > 0 && (r.put || r.lessee != s.p || !s.inHand[n]) {
			(*behind)[m.key(n)] = true
		}
		return false
	}
	if r.lessee != nil && !r.put {
		m.Sometimes("a lease ran out")
		by := r.lessee
		held := m.lives[by.number]
		well := m.rates[Renew] == [faults]float64{} || !m.Twins && held.renewAt < r.given && r.given < math.MaxInt64 // of twins nobody knows which renews
		if m.Renewing && well && !r.seized && !by.dead && !by.ended && !by.stopping && by.still == 0 && held.inHand[n] {
			m.Fail("D11: the lease of %s ran out while process %d had it in hand", names[n], by.number)
		}
		r.excuses++
		r.twice = r.twice || r.lessee == s.p
	}
	if r.lostBy == s.p {
		r.lostBy = nil
	}
	r.lessee, r.put, r.seized, r.given = s.p, false, false, math.MaxInt64
	s.lease(r)
	return true
}

func (s *source) lease(r *row) {
	m := s.m
	r.until = m.now.Load() + int64(m.Lease)
	if m.streaming() {
		m.later(m.Lease, func() bool { m.kick(); return false })
	}
}

func (s *source) Mark(ctx context.Context, records []order) error {
	if len(records) == 0 {
		s.m.Fail("a mark of nothing")
		return nil
	}
	return s.p.await(ctx, Mark, uint64(records[0].N+1), names[records[0].N], records, func(c *call) {
		m := s.m
		if m.tracing {
			c.detail = fmt.Sprint(records)
		}
		for _, o := range records {
			r := &m.rows[o.N]
			m.fold(uint64(o.N), 11)
			if told := r.told[s.p.instance]; told != s.p {
				m.Fail("D2: %v is marked, and process %d was not told that it is applied or parked", o, s.p.number)
			}
			if m.FanOut > 0 && r.second == 0 && !m.skipped[o.N] {
				m.Fail("F-1: %v is marked, and one branch never had it", o)
			}
			if r.lessee != nil && r.lessee != s.p {
				m.Sometimes("a mark by who has the lease no more")
			}
			if !r.marked && !m.stubborn[o.N] {
				m.left--
				s.done++
			}
			r.marked = true
			delete(s.inHand, o.N)
			if m.shape == journal {
				if o.N < m.position-1 {
					m.Sometimes("a position marked again")
				} else if o.N > m.position {
					for n := m.position; n < o.N; n++ {
						if !m.rows[n].marked {
							m.Fail("D1: the position goes past %s, which is not settled", names[n])
						}
					}
				}
				m.position = max(m.position, o.N+1)
			}
		}
	})
}

// send puts a record into the channel.
func (l *life) send(n int) {
	l.queued <- order{n}
	l.sent++
	l.m.rows[n].sent = l.m.now.Load()
}

// releasing is a source that takes records back.
type releasing struct{ *source }

func (s releasing) Release(ctx context.Context, records []order, after time.Duration) error {
	if len(records) == 0 {
		s.m.Fail("a release of nothing")
		return nil
	}
	return s.p.await(ctx, Release, uint64(records[0].N+1), names[records[0].N], records, func(c *call) {
		if s.m.tracing {
			c.detail = fmt.Sprintf("%v for %v", records, after)
		}
		for _, o := range records {
			s.putBack(o.N, after)
		}
	})
}

// putBack has a record come again after a while, if the process has it still.
func (l *life) putBack(n int, after time.Duration) {
	m, r := l.m, &l.m.rows[n]
	m.fold(uint64(n), 13)
	if r.lessee != l.p || r.marked {
		return
	}
	r.put, r.until = true, m.now.Load()+int64(after)
	m.later(after, func() bool { m.kick(); return false })
}

// failing is a source that keeps a schedule of what failed.
type failing struct{ releasing }

func (s failing) Fail(ctx context.Context, failed []courier.FailedRecord[order]) error {
	var records []order
	for _, f := range failed {
		records = append(records, f.Record)
		if f.Error == nil || errors.Is(f.Error, courier.ErrOpen) {
			s.m.Fail("D5: %v is reported as failed with %v", f.Record, f.Error)
		}
	}
	return s.p.await(ctx, Fail, uint64(records[0].N+1), names[records[0].N], records, func(c *call) {
		for _, o := range records {
			u := uniform(hash(s.m.seed, forDelay, uint64(o.N), 99))
			s.putBack(o.N, time.Duration(u*float64(20*time.Second)))
		}
	})
}

// renewing is a source whose leases want to be renewed.
type renewing struct{ releasing }

func (s renewing) RenewEvery() time.Duration { return s.m.Lease / 3 }

func (s renewing) Renew(ctx context.Context, records []order) error {
	var lost courier.BatchError
	err := s.p.await(ctx, Renew, uint64(records[0].N+1), names[records[0].N], records, func(c *call) {
		m := s.m
		m.Sometimes("renewed")
		if m.tracing {
			c.detail = fmt.Sprint(records)
		}
		gone := map[int]bool{} // which may be in hand twice
		for i, o := range records {
			r := &m.rows[o.N]
			m.fold(uint64(o.N), 17)
			if gone[o.N] {
				lost.Add(i, errors.New("somebody else has it"))
			}
			if r.marked || r.put || !s.inHand[o.N] {
				continue
			}
			if c.fault == LeaseLost && r.lessee == s.p {
				r.until, r.seized = m.now.Load(), true
			}
			if r.lessee != s.p || m.now.Load() >= r.until {
				m.Sometimes("stale lease")
				lost.Add(i, errors.New("somebody else has it"))
				if r.given <= s.renewAt {
					s.losing = append(s.losing, o.N)
				}
				r.excuses++
				gone[o.N] = true
				delete(s.inHand, o.N)
				continue
			}
			s.lease(r)
		}
	})
	if err != nil {
		return err
	}
	return lost.ErrorOrNil()
}

type failingRenewing struct {
	failing
	renew renewing
}

func (s failingRenewing) RenewEvery() time.Duration { return s.renew.RenewEvery() }
func (s failingRenewing) Renew(ctx context.Context, records []order) error {
	return s.renew.Renew(ctx, records)
}

// waking is a source that tells when there is work.
type waking struct{ *source }

func (s waking) Wake() <-chan struct{} { return s.wake }

type releasingWaking struct {
	releasing
	waking waking
}

func (s releasingWaking) Wake() <-chan struct{} { return s.waking.Wake() }
