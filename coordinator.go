package courier

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/ledger"
)

// ErrRunning is returned by Start and RunOnce of a coordinator that runs.
var ErrRunning = errors.New("courier: the coordinator is running already")

// PollingCoordinator fetches records from a source, applies them one after the
// other, marks those that were applied, and waits. Its methods are safe for
// concurrent use.
type PollingCoordinator[T any] struct {
	source  Source[T]
	applier Applier[T]
	config  config
	fault   error
	running atomic.Bool
}

// NewPollingCoordinator returns a coordinator for a source that may hand the
// same record out again until it is marked. Nothing happens before Start.
// What is wrong with the arguments is reported there.
func NewPollingCoordinator[T any](source Source[T], applier Applier[T], opts ...Option) *PollingCoordinator[T] {
	c := &PollingCoordinator[T]{source: source, applier: applier, config: newConfig(opts)}
	c.fault = firstFault(configErrorOf("source", source), configErrorOf("applier", applier), c.config.fault)
	if c.fault == nil && c.config.streaming != "" {
		c.fault = &ConfigError{c.config.streaming, "is for a streaming coordinator; a polling one has no use for it"}
	}
	if _, ok := source.(interface{ handsOutOnce() }); ok && c.fault == nil {
		c.fault = &ConfigError{"source", "hands each record out once, so that a failed one would be lost: use NewStreamingCoordinator"}
	}
	return c
}

func firstFault(faults ...error) error {
	for _, fault := range faults {
		if fault != nil {
			return fault
		}
	}
	return nil
}

// Start runs the coordinator and blocks until ctx ends. It then fetches no
// more, lets the record in work finish, marks what was applied, releases the
// rest ([Releaser]) and returns nil, all within twice the drain timeout as far
// as the user's functions obey their contexts. No goroutine of the coordinator
// outlives it. It may be started again.
//
// The error is not nil when the configuration is bad (a [*ConfigError]; nothing
// was fetched), when it runs already ([ErrRunning]), or when applied records
// could not be marked at the end (a [*MarkError]). Failures of the source or of
// records do not end it: they are logged and tried again.
func (c *PollingCoordinator[T]) Start(ctx context.Context) error { return c.run(ctx, false) }

// RunOnce makes one pass, as the function of the same name does.
func (c *PollingCoordinator[T]) RunOnce(ctx context.Context) error { return c.run(ctx, true) }

func (c *PollingCoordinator[T]) run(ctx context.Context, once bool) error {
	if c.source == nil && c.fault == nil {
		return &ConfigError{"coordinator", "is the zero value: make it with NewPollingCoordinator"}
	}
	if c.fault != nil {
		return c.fault
	}
	if !c.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer c.running.Store(false)
	p := &poller[T]{
		config:   &c.config,
		source:   c.source,
		once:     once,
		work:     work[T]{applier: c.applier, batch: asBatch(c.applier)},
		breakers: breakersOf(c.applier),
		memory:   suspects[T]{clock: c.config.clock, limit: max(c.config.batchSize, minWindow) - 1},
	}
	p.releaser, _ = c.source.(Releaser[T])
	_, p.limitless = c.source.(interface{ ignoresLimit() })
	if named, ok := c.source.(Identifier[T]); ok {
		p.memory.identity = named.Identity
	}
	p.life = beginLifecycle(ctx, c.config.clock, c.config.drainTimeout)
	defer p.life.end()
	supervise(p.loop)
	return p.outcome()
}

// sparedFor is how long suspects are left alone after a probe that went well,
// where the breaker wants more successes than one: a poison record would undo
// what the others have shown. Then they have their turn, if no others come.
const sparedFor = time.Minute

// minWindow is how many records a probe is chosen from at least, if need be, so
// that a few poison records at the head of the source do not hide all others
// when batches are small. The ones not chosen are given back at once.
const minWindow = 100

// phase is where a poller stands. Each phase makes at most one call of user
// code, and sets the next phase before it, so that the loop can go on from
// there should the call end the goroutine.
type phase uint8

const (
	fetching  phase = iota // ask the source for records
	fetched                // look at what it returned
	cutting                // take the next batch of them in hand
	applying               // apply it
	settling               // sort it into marks and releases
	marking                // try to mark
	marked                 // try again later, or go on
	releasing              // give back what stays pending
	resting                // wait for the next pass
	ended
)

// poller is one run of a polling coordinator.
type poller[T any] struct {
	config    *config
	source    Source[T]
	releaser  Releaser[T] // nil if the source is none
	limitless bool        // the source decides by itself how much it returns
	breakers  []*Breaker  // to be asked before a fetch (D6)
	once      bool
	life      *lifecycle

	phase phase
	work  work[T]

	// The pass.
	records  []T // fetched and not yet in hand
	taken    int // how many of the fetch came into hand before this batch
	fetchErr error
	full     bool // the source may have more
	progress bool // something was marked
	failed   BatchError
	refused  bool // a record stays pending that no time was told for
	halted   halt

	// The batch.
	mark    []T
	markErr error
	release []T

	// From pass to pass.
	most                          int  // records that a limitless source ever returned
	probing                       bool // the breaker may be probed, with one record
	sparing                       bool // suspects wait for others to close the breaker
	spareUntil                    time.Time
	memory                        suspects[T] // records that a breaker interrupted
	fetchPace, markPace, restPace trouble
	unmarked                      error // a *MarkError
	fatal                         error
}

func (p *poller[T]) loop() {
	for p.phase != ended {
		switch p.phase {
		case fetching:
			p.fetch()
		case fetched:
			p.take()
		case cutting:
			p.cut()
		case applying:
			p.life.applying.Store(true)
			p.work.run(p.life.stop, p.life.work)
			p.life.endApply()
			p.phase = settling
		case settling:
			p.settle()
		case marking:
			p.phase = marked
			guard(&p.markErr, func() error { return p.source.Mark(p.life.settle, p.mark) })
		case marked:
			p.afterMark()
		case releasing:
			p.giveBack()
		case resting:
			p.rest()
		}
	}
}

func (p *poller[T]) fetch() {
	p.records, p.taken, p.fetchErr = nil, 0, nil
	p.full, p.progress, p.refused = false, false, false
	p.failed, p.halted = BatchError{}, halt{}
	if p.life.stop.Err() != nil {
		p.phase = ended
		return
	}
	g := gateOf(p.breakers)
	if g.closed && !p.once {
		p.halted = halt{err: g.cause, until: g.until}
		p.config.logger.Warn("courier: paused, nothing is fetched", "until", g.until, "error", g.cause)
		p.phase = resting
		return
	}
	// Half-open after a probe that went well, the breaker wants more successes.
	p.sparing = g.probe && p.config.clock.Now().Before(p.spareUntil)
	p.probing = !p.sparing && (p.probing || g.probe)
	limit := p.config.batchSize
	switch past := 1 + len(p.memory.list); { // to see past the suspects
	case p.probing:
		limit = past
	case p.sparing:
		limit = max(limit, past)
	}
	p.phase = fetched
	guard(&p.fetchErr, func() (err error) {
		p.records, err = p.source.Fetch(p.life.stop, limit)
		return err
	})
}

func (p *poller[T]) take() {
	n := len(p.records)
	p.phase = cutting
	p.full = n >= p.config.batchSize || p.limitless && n > 0 && n >= p.most
	p.most = max(p.most, n)
	if p.fetchErr != nil && p.life.stop.Err() == nil {
		p.config.logger.Warn("courier: fetch failed", "error", p.fetchErr, "records", n)
	}
	switch {
	case n == 0:
	case p.probing:
		i := p.memory.probe(p.records)
		p.release = append(append(p.release, p.records[:i]...), p.records[i+1:]...)
		p.records = p.records[i : i+1 : i+1]
	case p.sparing:
		p.records, p.release = p.memory.split(p.records)
	}
}

func (p *poller[T]) cut() {
	p.taken += len(p.work.ledger.Records)
	n := min(len(p.records), p.config.batchSize)
	batch := p.records[:n:n]
	p.records = p.records[n:]
	p.work.reset(batch, p.memory.histories(batch))
	p.phase = applying
}

func (p *poller[T]) settle() {
	w := &p.work
	p.halted = w.halted
	if p.halted.fatal {
		p.fatal = p.halted.err
	}
	if len(p.memory.list) > 0 || p.halted.err != nil {
		p.remember()
	}
	p.report()
	p.mark = w.ledger.In(ledger.Settled)
	p.release = append(append(p.release, w.ledger.In(ledger.Pending)...), w.ledger.In(ledger.Failed)...)
	if p.halted.err != nil || p.life.stop.Err() != nil {
		p.release = append(p.release, p.records...)
		p.records = nil
	}
	p.phase = marking
	if len(p.mark) == 0 {
		p.markErr = nil
		p.phase = marked
	}
}

// remember keeps account of the records that a breaker interrupted.
func (p *poller[T]) remember() {
	w := &p.work
	for i, record := range w.ledger.Records {
		if w.ledger.State(i) != ledger.Pending {
			p.memory.drop(record)
		} else if err := w.ledger.Err(i); err != nil {
			past := historyOf(err)
			if past != nil || w.halted.err != nil && i == w.halted.at {
				p.memory.note(record, past)
			}
		}
	}
}

// report collects and logs what went wrong in the batch.
func (p *poller[T]) report() {
	failed, refused := 0, 0
	var first, firstRefusal complaint
	for i := range p.work.ledger.Records {
		err := p.work.ledger.Err(i)
		if err == nil {
			continue
		}
		if p.once {
			p.failed.Add(p.taken+i, err)
		}
		switch {
		case p.work.ledger.State(i) == ledger.Failed:
			failed++
			first.add(i, err)
		case p.halted.err == nil && p.life.stop.Err() == nil:
			refused++
			firstRefusal.add(i, err)
		}
	}
	name := func(i int) string { return describe(p.memory.identity, p.work.ledger.Records[i], p.taken+i) }
	n := len(p.work.ledger.Records)
	if failed > 0 {
		p.config.logger.Warn("courier: records failed and stay pending", append(first.attrs(name), "failed", failed, "batch", n)...)
	}
	if refused > 0 {
		p.refused = true
		p.config.logger.Error("courier: records were not settled and stay pending", append(firstRefusal.attrs(name), "refused", refused, "batch", n)...)
	}
	if errors.Is(context.Cause(p.life.work), ErrDrainTimeout) {
		p.config.logger.Warn("courier: the drain timeout cut the work short; what was not applied stays pending", "pending", len(p.work.ledger.In(ledger.Pending)), "batch", n)
	}
	if p.halted.err != nil {
		p.config.logger.Warn("courier: paused, records stay pending", "until", p.halted.until, "error", p.halted.err)
	}
}

func (p *poller[T]) afterMark() {
	switch {
	case p.markErr == nil:
		p.progress = p.progress || len(p.mark) > 0
		p.markPace = trouble{}
	case p.life.settle.Err() != nil || p.once && p.markPace.tries >= onceMarkRetries:
		p.unmarked = &MarkError{len(p.mark), p.markErr}
		p.config.logger.Error("courier: gave up marking; the records will be applied again", "records", len(p.mark), "error", p.markErr)
		p.release = append(p.release, p.records...)
		p.records = nil
	default:
		delay := p.markPace.delay(p.config)
		p.config.logger.Warn("courier: mark failed, nothing is fetched until it succeeds", "records", len(p.mark), "retry_in", delay, "error", p.markErr)
		// A stop shortens the delay, so that its own time begins to run.
		if p.life.stop.Err() == nil {
			sleep(p.life.stop, p.config.clock, delay)
		} else {
			sleep(p.life.settle, p.config.clock, delay)
		}
		p.phase = marking
		return
	}
	p.mark = nil
	p.phase = releasing
}

// onceMarkRetries is how often RunOnce tries a failed mark again: about three
// seconds in all.
const onceMarkRetries = 5

// giveBack releases what the pass leaves unsettled, at its end.
func (p *poller[T]) giveBack() {
	if len(p.records) > 0 {
		p.phase = cutting
		return
	}
	p.phase = resting
	records := p.release
	p.release = nil
	if p.releaser == nil || len(records) == 0 {
		return
	}
	after := p.config.interval
	switch {
	case p.once || p.life.stop.Err() != nil || p.probing && p.halted.err == nil:
		after = 0 // after a probe that went well, the others are wanted at once
	case p.halted.err != nil:
		after = max(0, p.halted.until.Sub(p.config.clock.Now()))
	}
	var err error
	guard(&err, func() error { return p.releaser.Release(p.life.settle, records, after) })
	if err != nil {
		p.config.logger.Warn("courier: release failed; the records come back when their lease ends", "records", len(records), "error", err)
	}
}

// rest ends the pass: it waits as long as the pass calls for.
func (p *poller[T]) rest() {
	p.phase = fetching
	if p.once || p.fatal != nil || p.unmarked != nil || p.life.stop.Err() != nil {
		p.phase = ended
		return
	}
	passed := p.probing && p.work.at > 0 && p.halted.err == nil // a probe went through
	if passed {
		p.probing = false
		p.spareUntil = p.config.clock.Now().Add(sparedFor)
	}
	p.memory.forgetUnseen()
	p.work.reset(nil, nil)
	if p.fetchErr == nil {
		p.fetchPace = trouble{}
	}
	var delay time.Duration
	switch {
	case p.halted.err != nil:
		p.probing = true
		delay = p.halted.until.Sub(p.config.clock.Now())
		if delay <= 0 { // somebody else's probe is out
			delay = p.restPace.delay(p.config)
		}
	case p.fetchErr != nil:
		delay = p.fetchPace.delay(p.config)
	case p.refused:
		delay = p.restPace.delay(p.config)
	default:
		p.restPace = trouble{}
		more := passed || p.full && p.progress
		if p.config.fixed || !more {
			delay = p.config.interval
		}
	}
	sleep(p.life.stop, p.config.clock, delay)
}

// outcome is what the run returns.
func (p *poller[T]) outcome() error {
	if p.fatal != nil {
		return p.fatal
	}
	if !p.once {
		return p.unmarked
	}
	var stopped error
	if p.life.stop.Err() != nil {
		stopped = context.Cause(p.life.stop)
	}
	if p.fetchErr != nil && stopped != nil && errors.Is(p.fetchErr, stopped) {
		stopped = nil // said already
	}
	var fetchErr error
	if p.fetchErr != nil {
		fetchErr = fmt.Errorf("courier: fetch failed: %w", p.fetchErr)
	}
	return errors.Join(fetchErr, p.failed.ErrorOrNil(), p.unmarked, stopped)
}
