package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/erfanmomeniii/courier"
)

// streak is what the model has seen fail of a closed phase of the breaker.
type streak struct {
	failures int // all, at the most
	vouched  int // of which the destination was well after so many
	links    int // surely, each begun after the one before
	broken   int // likewise
	unsure   int // that may have been failures
}

// circuit is what the model knows of a breaker of a process.
type circuit struct {
	forced     courier.BreakerState
	breaker    courier.BreakerState
	until      int64
	generation uint64
	probes     int    // that are out
	good       int    // that have succeeded
	counted    streak // while closed
	surely     int    // failures in a row at the least
	changedAt  int64
	probeAt    int64
}

// passed is how a call has passed a breaker, with some of its records.
type passed struct {
	*circuit
	records []int
	places  []int  // of these in the call, which may have a record twice
	era     uint64 // the generation that let it through
	after   streak // what that had counted by then
	probes  int    // what it counts for while that is half-open, else 0
}

// host is which destination a record is for, where each has a breaker of its own.
func (m *model) host(n int) int { return n % max(1, m.Hosts) }

func (x *pipe[T]) hostOf(record T) string { return strconv.Itoa(x.host(record.number())) }

// of returns the breaker that a record has to pass.
func (l *life) of(n int) *circuit { return l.circuits[l.m.host(n)] }

// passes returns the breakers that a call has to pass, each with its records.
func (l *life) passes(records []int) (list []passed) {
	for place, n := range records {
		of := l.of(n)
		i := slices.IndexFunc(list, func(p passed) bool { return p.circuit == of })
		if i < 0 {
			i = len(list)
			list = append(list, passed{circuit: of, era: of.generation, after: of.counted})
		}
		list[i].records, list[i].places = append(list[i].records, n), append(list[i].places, place)
	}
	for i := range list {
		switch p := &list[i]; {
		case p.breaker != courier.BreakerHalfOpen:
		case l.m.Hosts > 0: // of whose probes each is one record
			p.probes = len(p.records)
		default:
			p.probes = 1
		}
	}
	return list
}

// troubled reports whether the breaker of a record's own host may have a record wait, or
// have had it wait, for a time that nobody knows.
func (l *life) troubled(n int) bool {
	of := l.of(n)
	return l.m.Hosts > 0 && (of.breaker != courier.BreakerClosed || of.generation > 1)
}

// opened reports whether the breaker of all records has opened in the life of a process.
func (l *life) opened() bool { return l.m.breaks() && l.m.Hosts == 0 && l.generation > 1 }

// planHosts draws when one of the hosts is down and the others are well.
func (m *model) planHosts() {
	m.down = make([][]window, max(1, m.Hosts))
	if m.Hosts == 0 {
		return
	}
	for i := range m.Pick("outages of a host", 4) {
		u := func(what string) float64 { return uniform(hash(m.seed, forSwarm, digest(what), uint64(i))) }
		from := int64(u("a host is down from") * float64(m.lengths))
		until := from + int64(u("a host is down for")*float64(m.lengths)/2)
		host := int(u("which host") * float64(m.Hosts))
		m.down[host] = append(m.down[host], window{from, until})
	}
	m.suffers = m.isDown
}

// comeBreaker looks whether breakers let a call with some records through rightly.
func (m *model) comeBreaker(l *life, c *call, records ...int) {
	through := l.passes(records)
	c.passed = through
	for i := range through {
		m.comeThrough(l, c, &through[i])
	}
}

func (m *model) comeThrough(l *life, c *call, p *passed) {
	if p.probes > 0 && m.tracing {
		c.detail = "a probe "
	}
	switch p.breaker {
	case courier.BreakerClosed:
		if m.breaks() && !l.redrives() && max(p.surely, p.counted.chain()) >= m.Threshold {
			m.Fail("B-1: a call behind %d failures in a row, of which %d open the breaker: %s", max(p.surely, p.counted.chain()), m.Threshold, c.name)
		}
	case courier.BreakerOpen:
		if m.Hosts > 0 {
			m.Fail("B-1: a call for host %d, whose breaker is open: %v", m.host(p.records[0]), p.records)
			return
		}
		m.Fail("B-1: a call while the breaker is open: %s", c.name)
	case courier.BreakerForcedOpen:
		m.Fail("B-18: a call while the breaker is forced open: %s", c.name)
	case courier.BreakerForcedClosed:
		m.Sometimes("a call through a breaker that is forced closed")
	case courier.BreakerHalfOpen:
		m.Sometimes("half-open")
		if p.circuit.probes += p.probes; p.circuit.probes > m.Probes {
			m.Fail("B-2: %d probes at once, more than %d", p.circuit.probes, m.Probes)
		}
	}
}

// vouch says that a call succeeded that began after another streak had been counted.
func (s *streak) vouch(began streak) {
	s.vouched = max(s.vouched, began.failures)
	s.mayVouch(began)
}

// mayVouch is vouch for a call of which it is not sure whether it succeeded.
func (s *streak) mayVouch(began streak) {
	s.broken = max(s.broken, began.links)
	if began.unsure > 0 { // each may have been a link, beside those that are sure
		s.broken = s.links
	}
}

// most is how many failures are in a row at the most, and chain how many at the least
// that began one after the other.
func (s *streak) most() int  { return s.failures - s.vouched }
func (s *streak) chain() int { return s.links - s.broken }

// counting are the faults by which a destination fails, whoever asks.
var counting = []FaultKind{Error, Lost, Panic, Goexit, Down}

// probed looks at a call that ends for what the breakers make of it. errs are the errors
// of single records of a batch.
func (m *model) probed(l *life, c *call, v *verdicts) {
	through, _ := c.passed.([]passed)
	for i := range through {
		p := &through[i]
		failed, answered, refused := c.err != nil, 0, 0
		for _, place := range p.places {
			if v == nil {
				break
			}
			err := v.of(c, place)
			if err == nil {
				answered++
				continue
			}
			failed = true
			if postponed(err) == 0 && courier.Classify(c.ctx, err) == courier.ClassRetryable {
				refused++
			}
		}
		mixed := c.err == nil && !c.gone && answered > 0 && refused > 0 && answered+refused == len(p.places)
		m.answerThrough(c, p, failed, mixed)
	}
	if errors.Is(c.err, courier.ErrAttemptTimeout) {
		m.Sometimes("an attempt timed out")
	}
	if errors.Is(c.err, courier.ErrDrainTimeout) {
		m.Sometimes("drain timeout")
	}
}

func (m *model) answerThrough(c *call, p *passed, failed, mixed bool) {
	switch {
	case p.era != p.generation: // B-3: it changes nothing
		return
	case postponed(c.err) > 0: // nor does what was no attempt
	case !failed:
		p.surely = 0
		p.counted.vouch(p.after)
	case c.err != nil && !c.gone && slices.Contains(counting, c.fault) && courier.Classify(c.ctx, c.err) == courier.ClassRetryable:
		p.surely++
		p.counted.failures++
		before := p.after.links
		if c.kind == Batch && m.Timeout > 0 { // it may have passed the breaker a while before it came
			before = 0
		}
		p.counted.links = max(p.counted.links, before+1)
	default: // it may have failed, or not
		if p.surely = 0; mixed { // as a success followed by a failure
			p.surely = 1
		}
		p.counted.failures++
		p.counted.unsure++
		p.counted.mayVouch(p.after)
	}
	if p.probes > 0 {
		if p.circuit.probes -= p.probes; postponed(c.err) == 0 {
			p.probeAt = m.now.Load()
			p.good += p.probes // or fails, and then nobody asks
		}
		if c.err != nil {
			m.Sometimes("a probe failed")
		}
	}
}

// breakerChanged follows the breaker of a process.
func (l *life) breakerChanged(_ context.Context, change courier.BreakerChange) {
	m := l.m
	l.telling.Lock()
	defer l.telling.Unlock()
	if l.p.dead {
		return
	}
	of := l.circuits[0]
	if m.Hosts > 0 {
		host, err := strconv.Atoi(change.Breaker)
		if err != nil || host >= m.Hosts {
			m.Fail("B-3: a breaker that is called %q, which is no host", change.Breaker)
			return
		}
		of = l.circuits[host]
	}
	if change.From != of.breaker || change.Generation != of.generation+1 {
		m.Fail("B-3: a breaker that is %s goes from %s, generation %d after %d", of.breaker, change.From, change.Generation, of.generation)
	}
	if of.forced != "" {
		if change.To != of.forced {
			m.Fail("B-18: a breaker that is to be %s is %s", of.forced, change.To)
		}
		of.probes = 0
		l.follow(of, change)
		return
	}
	switch fmt.Sprintf("%s to %s", change.From, change.To) {
	case "closed to open", "half-open to open":
		open := change.Until.Sub(change.At)
		if least := time.Duration(float64(m.OpenFor) * 0.79); open < least || open > m.MaxOpenFor {
			m.Fail("B-14: a breaker opens for %v, not between %v and %v", open, least, m.MaxOpenFor)
		}
		switch {
		case change.From == courier.BreakerClosed && m.Rate == 0 && of.counted.most() < m.Threshold:
			m.Fail("B-3: a breaker opens after %d failures of its generation, with %d wanted", of.counted.most(), m.Threshold)
		case errors.Is(change.Cause, courier.ErrProbeTimeout) && of.probes < m.Probes:
			m.Fail("B-4: a breaker gives its probes up with %d out, where %d may be", of.probes, m.Probes)
		}
		m.Sometimes("breaker open")
	case "open to half-open":
		if l.tooEarly(of) {
			m.Fail("B-1: a breaker is half-open %v before its time", time.Duration(of.until-m.now.Load()))
		}
		of.probes, of.good = 0, 0
	case "half-open to closed":
		if of.good < m.Successes {
			m.Fail("B-21: a breaker closes after %d successes, with %d wanted", of.good, m.Successes)
		}
		m.Sometimes("breaker closed again")
	default:
		m.Fail("B-21: a breaker goes from %s to %s", change.From, change.To)
	}
	if change.From == courier.BreakerHalfOpen && of.probeAt != m.now.Load() && !errors.Is(change.Cause, courier.ErrProbeTimeout) {
		m.Fail("B-3: a half-open breaker goes to %s, and no probe has ended: %v", change.To, change.Cause)
	}
	l.follow(of, change)
}

func (l *life) follow(of *circuit, change courier.BreakerChange) {
	l.look(nil)
	l.waits.interrupt(l.m.now.Load(), func(n int) bool { return l.of(n) == of })
	of.breaker, of.generation = change.To, change.Generation
	of.counted, of.surely, of.changedAt = streak{}, 0, l.m.now.Load()
	of.until = of.changedAt + int64(change.Until.Sub(l.p.clock.Now()))
}

// tooEarly reports whether the breaker's open period is not over. Where a clock was
// set, that is nobody's to say: forward, it ends a period early, and back, it hides
// how much has passed until a timer tells.
func (l *life) tooEarly(of *circuit) bool { return l.m.stepped == 0 && l.m.now.Load() < of.until }
