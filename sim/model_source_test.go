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
type source[T record] struct {
	*life
	pipe    *pipe[T]
	number  int // of the coordinators that share a process
	handing handing
}

// handing is the records of a fetch that has not returned.
type handing struct {
	limit int // of the fetch
	list  []int
	all   []int // with what is in it twice
}

// given is records that are given back.
type given struct {
	list  []int
	after time.Duration
}

// capable returns the source with the capabilities that its shape has.
func (s *source[T]) capable() courier.Source[T] {
	m := s.m
	if m.shape == channel {
		return courier.NewChannelSource(s.line.(*line[T]).queued, s.Mark)
	}
	type (
		source   = courier.Source[T]
		releaser = courier.Releaser[T]
		failer   = courier.Failer[T]
		renewer  = courier.Renewer[T]
		waker    = courier.Waker
		named    = courier.Identifier[T]
	)
	can := ""
	for _, c := range [...]struct {
		name string
		has  bool
	}{
		{"release ", m.shape == leasing || m.shape == broker}, {"fail ", m.Failing}, {"renew ", m.Renewing},
		{"wake ", m.Waking && !m.Failing && !m.Renewing}, {"name", m.Named},
	} {
		if c.has {
			can += c.name
		}
	}
	switch can {
	case "name":
		return struct {
			source
			named
		}{s, s}
	case "wake ":
		return struct {
			source
			waker
		}{s, s}
	case "wake name":
		return struct {
			source
			waker
			named
		}{s, s, s}
	case "release ":
		return struct {
			source
			releaser
		}{s, s}
	case "release name":
		return struct {
			source
			releaser
			named
		}{s, s, s}
	case "release wake ":
		return struct {
			source
			releaser
			waker
		}{s, s, s}
	case "release wake name":
		return struct {
			source
			releaser
			waker
			named
		}{s, s, s, s}
	case "release fail ":
		return struct {
			source
			releaser
			failer
		}{s, s, s}
	case "release fail name":
		return struct {
			source
			releaser
			failer
			named
		}{s, s, s, s}
	case "release renew ":
		return struct {
			source
			releaser
			renewer
		}{s, s, s}
	case "release renew name":
		return struct {
			source
			releaser
			renewer
			named
		}{s, s, s, s}
	case "release fail renew ":
		return struct {
			source
			releaser
			failer
			renewer
		}{s, s, s, s}
	case "release fail renew name":
		return struct {
			source
			releaser
			failer
			renewer
			named
		}{s, s, s, s, s}
	}
	return struct{ source }{s}
}

// Identity is asked where the source can tell.
func (s *source[T]) Identity(record T) string { return record.String() }

func (s *source[T]) Fetch(ctx context.Context, limit int) (records []T, err error) {
	partly := false
	s.handing.limit = limit
	err = s.p.await(ctx, Fetch, uint64(s.p.instance+instances*s.number), "the source", &s.handing, func(c *call) {
		records = s.fetch(c, limit)
		partly = c.fault == Partly
	})
	if err != nil && (!partly || !errors.Is(err, ErrInjected)) {
		return nil, err
	}
	return records, err
}

func (s *source[T]) fetch(c *call, limit int) (records []T) {
	m, now := s.m, s.m.now.Load()
	switch {
	case m.shape == limitless:
		limit = len(m.rows)
	case m.Beyond:
		limit += int(uniform(hash(m.seed, forFault, uint64(c.n), 8)) * 2 * float64(m.Batch))
		m.Sometimes("beyond the limit")
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
		records = append(records, s.pipe.read(n))
		m.fold(uint64(n), 7)
	}
	if m.streaming() && len(records) == 0 {
		c.wait = true
		return nil
	}
	s.handing.list = s.handing.list[:0]
	for _, o := range records {
		if s.watcher != nil && s.inHand[o.number()] {
			s.watcher.again++
		}
		s.handing.list = append(s.handing.list, o.number())
	}
	if n := len(records); c.fault == Twice && n > 0 && (m.Workers == 1 || m.Keys > 0) { // two at once could not be told apart
		if again := records[int(uniform(hash(m.seed, forFault, uint64(c.n), 7))*float64(n))]; !m.poison[again.number()] {
			records = append(records, s.pipe.read(again.number()))
			m.rows[again.number()].twice = true
			m.Sometimes("the same record twice")
		}
	}
	s.handing.all = numbersOf(records)
	if s.watcher != nil {
		s.watcher.again += int64(len(records) - len(s.handing.list))
	}
	if m.tracing {
		c.detail = fmt.Sprintf("(%d) %v", limit, records)
	}
	return records
}

// take leases a row to the process, if it is to be had.
func (s *source[T]) take(n int, r *row, now int64, behind *map[int]bool) bool {
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
		if !m.Beyond { // of which the earlier parts wait for the later ones, and their leases are not renewed
			m.lapses(m.lives[r.lessee.number], n)
		}
		r.excuses++
		r.strayed = true
		r.twice = r.twice || r.lessee == s.p || !m.Named && m.lives[s.p.number].inHand[n]
	}
	if r.lostBy == s.p {
		r.lostBy = nil
	}
	r.lessee, r.put, r.seized, r.leaving, r.given = s.p, false, false, false, math.MaxInt64
	s.lease(r)
	return true
}

// lapses looks whether a lease ran out that was to be renewed.
func (m *model) lapses(l *life, n int) {
	r := &m.rows[n]
	if !m.Renewing || r.lessee != l.p || r.put || r.leaving || r.marked || m.now.Load() < r.until || !l.inHand[n] {
		return
	}
	// Of twins nobody knows which renews.
	well := m.rates[Renew] == [faults]float64{} || !m.Twins && m.rates[Renew][Hang] == 0 && l.renewAt < r.given && r.given < math.MaxInt64
	if well && !r.seized && !l.p.dead && !l.p.ended && (!l.p.stopping || l.inTime()) && l.p.still == 0 {
		m.Fail("D11: the lease of %s ran out while process %d had it in hand", names[n], l.p.number)
	}
}

func (s *source[T]) lease(r *row) {
	m := s.m
	r.until = m.now.Load() + int64(m.Lease)
	if m.streaming() {
		m.later(m.Lease, func() bool { m.kick(); return false })
	}
}

func (s *source[T]) Mark(ctx context.Context, records []T) error {
	if len(records) == 0 {
		s.m.Fail("a mark of nothing")
		return nil
	}
	marked := numbersOf(records)
	return s.p.await(ctx, Mark, uint64(marked[0]+1), names[marked[0]], marked, func(c *call) {
		m := s.m
		if m.tracing {
			c.detail = fmt.Sprint(records)
		}
		for _, n := range marked {
			r := &m.rows[n]
			m.fold(uint64(n), 11)
			if told := r.told[s.p.instance]; told != s.p {
				m.Fail("D2: %s is marked, and process %d was not told that it is applied or parked", names[n], s.p.number)
			}
			if told := r.toldAside[s.p.instance]; m.FanOut > 0 && told != s.p {
				m.Fail("F-1: %s is marked, and process %d was not told that one branch has it", names[n], s.p.number)
			}
			m.owes(n)
			if r.lessee != nil && r.lessee != s.p {
				m.Sometimes("a mark by who has the lease no more")
			}
			if !r.marked && !m.mayStay[n] {
				m.left--
				s.done++
			}
			r.marked = true
			delete(s.inHand, n)
			if m.shape == journal {
				if n < m.position-1 {
					m.Sometimes("a position marked again")
				} else if n > m.position {
					for before := m.position; before < n; before++ {
						if !m.rows[before].marked {
							m.Fail("D1: the position goes past %s, which is not settled", names[before])
						}
					}
				}
				m.position = max(m.position, n+1)
			}
		}
	})
}

// send puts a record into the channel.
func (l *life) send(n int) {
	l.line.send(n)
	l.sent++
	l.m.rows[n].sent = l.m.now.Load()
}

// Release takes records back.
func (s *source[T]) Release(ctx context.Context, records []T, after time.Duration) error {
	if len(records) == 0 {
		s.m.Fail("a release of nothing")
		return nil
	}
	back := numbersOf(records)
	return s.p.await(ctx, Release, uint64(back[0]+1), names[back[0]], given{back, after}, func(c *call) {
		if s.m.tracing {
			c.detail = fmt.Sprintf("%v for %v", records, after)
		}
		for _, n := range back {
			s.putBack(n, after)
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
	r.put, r.putAt, r.until = true, m.now.Load(), m.now.Load()+int64(after)
	m.later(after, func() bool { m.kick(); return false })
}

// Fail keeps a schedule of what failed.
func (s *source[T]) Fail(ctx context.Context, failed []courier.FailedRecord[T]) error {
	var back []int
	for _, f := range failed {
		back = append(back, f.Record.number())
		if f.Error == nil || errors.Is(f.Error, courier.ErrOpen) {
			s.m.Fail("D5: %v is reported as failed with %v", f.Record, f.Error)
		}
	}
	return s.p.await(ctx, Fail, uint64(back[0]+1), names[back[0]], given{back, 0}, func(c *call) {
		for _, n := range back {
			u := uniform(hash(s.m.seed, forDelay, uint64(n), 99))
			s.putBack(n, time.Duration(u*float64(20*time.Second)))
		}
	})
}

// RenewEvery is a third of a lease.
func (s *source[T]) RenewEvery() time.Duration { return s.m.Lease / 3 }

// Renew extends leases.
func (s *source[T]) Renew(ctx context.Context, records []T) error {
	var lost courier.BatchError
	held := numbersOf(records)
	err := s.p.await(ctx, Renew, uint64(held[0]+1), names[held[0]], held, func(c *call) {
		m := s.m
		m.Sometimes("renewed")
		if m.tracing {
			c.detail = fmt.Sprint(records)
		}
		gone := map[int]bool{} // which may be in hand twice
		for i, n := range held {
			r := &m.rows[n]
			m.fold(uint64(n), 17)
			if gone[n] {
				lost.Add(i, errors.New("somebody else has it"))
			}
			if r.marked || r.put || !s.inHand[n] {
				continue
			}
			if c.fault == LeaseLost && r.lessee == s.p {
				r.until, r.seized = m.now.Load(), true
			}
			if r.lessee != s.p || m.now.Load() >= r.until {
				m.Sometimes("stale lease")
				lost.Add(i, errors.New("somebody else has it"))
				if r.given <= s.renewAt {
					s.losing = append(s.losing, n)
				}
				r.excuses++
				r.strayed = true
				gone[n] = true
				delete(s.inHand, n)
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

// Wake tells when there is work.
func (s *source[T]) Wake() <-chan struct{} { return s.wake }
