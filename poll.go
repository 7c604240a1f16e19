package courier

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

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
	reporting              // tell the source what failed
	releasing              // give back what stays pending
	resting                // wait for the next pass
	ended
)

// poller is one run of a polling coordinator.
type poller[T any] struct {
	*engine[T]
	config    *config
	control   *control
	source    Source[T]
	releaser  Releaser[T] // nil if the source is none
	failer    Failer[T]   // likewise
	pager     Pager       // likewise
	woken     <-chan struct{}
	limitless bool // the source decides by itself how much it returns
	once      bool
	life      *lifecycle
	work      context.Context // what an only worker applies under

	phase  phase
	stalls *stalls
	batch  batch[T]
	crew   crew[T]   // one hand for each worker
	lease  *lease[T] // nil unless the source wants its leases renewed
	ahead  *ahead[T] // nil unless batches are fetched ahead

	// The pass.
	began     time.Time   // of the call in work, where its duration is asked for
	fetchedAt time.Time   // where there is an order: when the fetch began
	records   []T         // fetched and not yet in hand
	ids       []recordKey // of these, where that matters; else nil
	handed    bool        // they were in hand already, and not fetched now
	sorted    bool        // what is left of them is either kept or given back
	taken     int         // how many of the fetch came into hand before this batch
	fetchErr  error
	more      bool          // the source says so
	limit     int           // of the fetch, but for what is looked past
	full      bool          // the source may have more
	whole     bool          // all records of the pass have failed
	progress  bool          // something was marked
	waited    bool          // something waits for its next attempt since
	failed    map[int]error // by index, in RunOnce
	refused   error         // why a record stays pending that no time was told for; nil if none does
	halted    halt
	retryIn   time.Duration   // after a fetch that failed
	took      time.Duration   // one that was made ahead
	intake    context.Context // of the fetch, unless it was made ahead; a stop ends it, and a pause
	cancelled bool            // of one that was made ahead

	// The batch.
	keys      []string
	mark      []T
	markErr   error
	known     []recordKey // of the records, where that matters; else nil
	faulty    []FailedRecord[T]
	scheduled []T // records whose failure the source was told of in this pass
	release   []pending[T]
	behind    []pending[T] // likewise, but for as long as another of their key
	back      backlog[T]   // failed records to be released, for as long as each asks at least
	kept      []pending[T] // in hand for the next pass
	due       []waiter[T]  // the records of the pass which have waited: its first, unless they are mixed
	mixed     []int        // the places that the records of the pass had before they were mixed
	dueOnly   bool         // and there are no others

	// From pass to pass.
	gate                          keyGate
	most                          int  // records that a limitless source ever returned
	paused                        bool // by Pause
	probing                       bool // the breaker may be probed, with one record
	sparing                       bool // suspects wait for others to close the breaker
	spareUntil                    time.Time
	spared                        bool     // the pass has suspects alone, which wait
	stuck                         bool     // the probe is a record that a breaker opened over before
	memory                        suspects // records that a breaker interrupted
	identity                      identity[T]
	waits                         waits     // of failed records of a source that takes nothing back
	asked                         time.Time // until when nothing is fetched
	waiting                       waiters[T]
	fullHand                      bool      // of them
	fetchAt                       time.Time // the next time, where some wait
	misses                        int       // probes that failed since one closed the breaker, and may not be known again
	missed                        int       // likewise, during RunOnce
	nameless                      bool      // the probe is a record that cannot be known again at all
	leaving                       bool      // RunOnce does not go on
	patience                      time.Time // until when RunOnce waits for a breaker
	fetchPace, markPace, restPace trouble
	lastPace                      trouble // of marks, once the run stops
	unmarked                      error   // a *MarkError
}

func newPoller[T any](ctx context.Context, c *PollingCoordinator[T], once bool) *poller[T] {
	p := &poller[T]{
		engine:  newEngine(c.applier, &c.config, c.watch),
		config:  &c.config,
		control: c.control,
		source:  c.source,
		once:    once,
		crew:    crew[T]{hands: make([]hand[T], c.config.workers)},
		memory:  suspects{clock: c.config.clock, limit: max(c.config.batchSize, minWindow) - 1},
	}
	p.batch.engine, p.batch.gate = p.engine, &p.gate
	p.batch.place = func(i int) string { return fmt.Sprintf("record %d of the batch (the first is 1)", p.index(i)+1) }
	p.releaser, _ = c.source.(Releaser[T])
	p.failer, _ = c.source.(Failer[T])
	p.pager, _ = c.source.(Pager)
	if w, ok := c.source.(Waker); ok {
		var ignored error // without the channel the interval is the pace
		isolate(&ignored, func() error { p.woken = w.Wake(); return nil })
	}
	_, p.limitless = c.source.(interface{ ignoresLimit() })
	p.life = beginLifecycle(ctx, c.watch, c.config.clock.Clock, c.config.drainTimeout, p.drainOver)
	p.work = withExits(p.life.work)
	p.stalls = newStalls(p.life.work, p.config, p.watch, p.working)
	if r, ok := c.source.(Renewer[T]); ok {
		if every := renewEvery(r); every > 0 {
			p.lease = &lease[T]{source: r, every: every, clock: c.config.clock, watch: c.watch}
			p.lease.ctx, p.lease.cancel = context.WithCancelCause(p.life.settle)
		}
	}
	p.identity = identityOf(c.source, &c.config, once, p.lease != nil)
	if n := c.config.prefetch; n > 0 && !once {
		p.ahead = newAhead(c, p.pager, p.lease)
	}
	return p
}

// run owns every goroutine of the run, and ends after them.
func (p *poller[T]) run() error {
	var workers, helpers sync.WaitGroup
	if p.lease != nil {
		helpers.Go(func() { supervise(p.lease.loop) })
	}
	if p.ahead != nil {
		helpers.Go(func() { supervise(p.ahead.loop) })
	}
	if n := p.config.workers; n > 1 { // one is the loop itself
		p.crew.todo, p.crew.ended = make(chan *hand[T], n), make(chan struct{}, 1)
		for range n {
			w := &worker[*hand[T]]{todo: p.crew.todo, stop: p.life.stop, ctx: p.life.work}
			workers.Go(func() { supervise(w.loop) })
		}
	}
	helpers.Go(p.stalls.loop)
	supervise(p.loop)
	if p.crew.todo != nil {
		close(p.crew.todo)
	}
	workers.Wait()
	if p.lease != nil {
		p.lease.cancel(ErrStopped)
	}
	if p.ahead != nil {
		close(p.ahead.wanted)
	}
	p.stalls.end()
	helpers.Wait()
	p.life.end()
	err := p.outcome()
	p.watch.stopped(p.life.settle, StopEvent{Err: err})
	return err
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
			p.apply()
		case settling:
			p.settle()
		case marking:
			p.phase = marked
			p.began = p.watch.now(p.watch.observer.Marked != nil)
			p.watch.begins(&p.watch.settling, "mark")
			guard(&p.markErr, func() error { return p.source.Mark(p.life.settle, p.mark) })
		case marked:
			p.watch.ends(&p.watch.settling)
			p.afterMark()
		case reporting:
			p.tellFailed()
		case releasing:
			p.giveBack()
		case resting:
			p.rest()
		}
	}
}

func (p *poller[T]) fetch() {
	p.records, p.ids, p.handed, p.sorted, p.taken = nil, nil, false, false, 0
	p.due, p.mixed, p.dueOnly = nil, nil, false
	p.more, p.full, p.progress, p.waited, p.refused, p.scheduled, p.whole = false, false, false, false, nil, nil, true
	p.halted = halt{}
	if p.life.stop.Err() != nil {
		p.finish()
		return
	}
	if resumed := p.control.paused(); resumed != nil && !p.once {
		if !p.paused {
			p.paused = true
			p.watch.paused(p.life.settle, byPause, PauseEvent{}, true)
			if kept, ahead := p.letGo(), p.dropAhead(); kept || ahead {
				p.phase = releasing
				return
			}
		}
		if len(p.waiting) == 0 { // else they are worked off
			select {
			case <-resumed:
			case <-p.life.stop.Done():
			}
			return
		}
	} else if p.paused {
		p.paused = false
		p.watch.resumed(p.life.settle, byPause)
	}
	g := gateOf(p.control.breakers)
	if g.closed && !p.once {
		p.spareUntil = time.Time{}
		p.halted = halt{err: g.cause, until: p.config.clock.of(g.until)}
		p.watch.paused(p.life.settle, byBreaker, PauseEvent{Until: g.until, Err: g.cause}, true)
		p.phase = resting
		if waiting, ahead := p.setAside(), p.dropAhead(); waiting || ahead {
			p.phase = releasing
		}
		return
	}
	// Half-open after a probe that went well, the breaker wants more successes. RunOnce
	// has no time to wait for them.
	p.sparing = !p.once && g.probe && p.config.clock.Now().Before(p.spareUntil)
	p.probing = !p.sparing && (p.probing || g.probe)
	if p.keyOf != nil {
		p.fetchedAt = p.config.clock.Now()
	}
	if p.takeKept() || p.takeWaiting() {
		return
	}
	p.fetchErr = nil
	limit := p.config.batchSize
	if p.releaser != nil { // another one returns those that wait, too
		limit = p.room()
	}
	p.limit = limit
	past := 1 + len(p.memory.list)                         // to see past the suspects
	if p.keyOf != nil || len(p.kept) > 0 || p.misses > 0 { // and past all that waits behind them, or cannot be told from them
		past = max(p.config.batchSize, minWindow)
	}
	past += len(p.waits) // and past those whose time has not come
	switch {
	case p.probing:
		limit = past
	case p.sparing:
		limit = max(limit, past)
	}
	p.life.applying.Store(true) // what comes after a stop is given back under a live context
	if r, ok := p.ahead.take(); ok {
		p.records, p.more, p.fetchErr, p.intake, p.cancelled = r.records, r.more, r.err, nil, r.cancelled
		p.limit = p.config.batchSize
		p.began, p.took = time.Time{}, r.took
		p.phase = fetched
		return
	}
	select { // what woke this fetch, or would wake the next one for what it brings
	case <-p.control.wake:
		p.waits.lift()
	default:
	}
	select {
	case _, open := <-p.woken:
		if !open {
			p.woken = nil
		}
	default:
	}
	p.intake = p.life.stop
	if !p.once {
		p.intake = p.control.intake()
	}
	p.phase = fetched
	p.began = p.watch.now(p.watch.observer.Fetched != nil)
	p.watch.begins(&p.watch.fetching, "fetch")
	guard(&p.fetchErr, func() (err error) {
		p.records, err = p.source.Fetch(p.intake, limit)
		p.more = err == nil && more(p.pager)
		return err
	})
}

// more reports whether a source says that its last fetch ended before it had all.
func more(p Pager) bool { return p != nil && p.More() }

func (p *poller[T]) take() {
	if p.intake != nil && !p.handed {
		p.watch.ends(&p.watch.fetching)
	}
	p.life.endApply()
	n := len(p.records)
	p.phase = cutting
	if p.keyOf != nil {
		p.gate.lift(p.fetchedAt, p.fetchedAt)
	}
	if !p.handed {
		if p.intake != nil { // else it is counted
			p.watch.count.inHand.Add(int64(n))
		}
		p.tellFetched(n)
		p.dropEarly()
	}
	if len(p.waiting) > 0 && len(p.kept) == 0 && !p.handed && !p.ahead.took() {
		p.joinWaiting()
	}
	if len(p.kept) > 0 && !p.handed {
		gone := p.lookPast()
		p.watch.count.inHand.Add(-int64(gone))
	}
	if p.keyOf != nil && len(p.waiting) > 0 {
		p.putBehind()
	}
	if p.ids == nil && (len(p.memory.list) > 0 || p.probing || p.sparing || p.once || p.lease != nil && p.identity.inHand) {
		p.ids = p.identity.keysOf(p.records)
	}
	var keys []string
	if p.probing || p.sparing {
		keys, _ = p.keysOf(nil, p.records)
	}
	switch {
	case len(p.records) == 0:
	case p.probing:
		i := p.memory.probe(p.ids, keys, p.misses)
		p.stuck = p.memory.find(p.ids[i]) >= 0
		p.memory.picked(p.ids[i])
		p.nameless = p.ids[i] == recordKey{}
		all := pendings(p.records, p.ids)
		n := len(p.due)
		p.waitOn(func(j int) bool { return j == i }, time.Time{})
		p.release = append(append(p.release, all[min(n, i):i]...), all[max(n, i+1):]...)
		p.records, p.ids = p.records[i:i+1:i+1], p.ids[i:i+1:i+1]
	case p.sparing:
		p.spare(keys)
	}
	p.spared = len(p.records) == 0 && len(p.release) > 0
	if n := len(p.due); n > 0 && len(p.records) > n && !p.probing && !p.sparing {
		p.mix()
	}
	// What is passed over is in hand until the probe is marked.
	if !p.ahead.took() || p.handed || len(p.release) > 0 {
		p.lease.hold(p.inLease())
	} else {
		p.lease.number(p.ids)
	}
	p.lease.waitBeside(p.waiting.leased())
}

// spare has the suspects among the records wait.
func (p *poller[T]) spare(keys []string) {
	suspected := p.memory.suspected(p.ids, keys)
	n := len(p.due)
	p.waitOn(func(i int) bool { return !suspected[i] }, p.spareUntil)
	var others []T
	var othersIDs []recordKey
	for i, record := range p.records {
		if suspected[i] && i < n {
			continue
		}
		if suspected[i] {
			p.release = append(p.release, pending[T]{record, p.ids[i]})
		} else {
			others, othersIDs = append(others, record), append(othersIDs, p.ids[i])
		}
	}
	p.records, p.ids = others, othersIDs
}

// tellFetched takes in what a fetch has returned, n records.
func (p *poller[T]) tellFetched(n int) {
	p.full = p.more && n > 0 || n >= p.limit || p.limitless && n > 0 && n >= p.most
	p.most = max(p.most, n)
	event := FetchEvent{Records: n, Err: p.fetchErr, Took: p.took}
	if p.took = 0; !p.began.IsZero() {
		event.Took = p.watch.since(true, p.began)
	}
	cancelled := p.fetchErr != nil && (p.intake == nil && p.cancelled || p.intake != nil && p.intake.Err() != nil)
	switch {
	case p.fetchErr == nil:
		p.fetchPace = trouble{}
	case cancelled:
		p.retryIn = 0
	default:
		p.retryIn = p.fetchPace.after(p.config, p.fetchErr)
		if !p.once {
			event.RetryIn = p.retryIn
		}
	}
	p.watch.fetched(p.life.settle, event, cancelled)
}

// dropAhead has all that was fetched ahead given back, and reports whether there
// was anything.
func (p *poller[T]) dropAhead() (some bool) {
	p.ahead.callOff()
	p.lease.putAside()
	live := p.life.settle.Err() == nil
	for {
		r, ok := p.ahead.take()
		if !ok {
			if some {
				p.lease.waitBeside(p.waiting.leased())
				p.lease.hold(append(slices.Clip(p.kept), p.release...))
			}
			if some && live && p.life.settle.Err() != nil { // a fetch did not heed its context
				p.life.settle = p.life.overtime()
			}
			return some
		}
		some = true
		p.watch.fetched(p.life.settle, FetchEvent{Records: len(r.records), Err: r.err, Took: r.took}, r.cancelled)
		p.release = append(p.release, pendings(r.records, nil)...)
	}
}

// cut takes the next batch in hand, and as many hands to it as have something
// to do.
func (p *poller[T]) cut() {
	p.taken += len(p.batch.ledger.Records)
	n := min(len(p.records), p.config.batchSize)
	records := p.records[:n:n]
	p.records = p.records[n:]
	p.known = nil
	if p.ids != nil {
		p.known, p.ids = p.ids[:n:n], p.ids[n:]
	}
	keys, unkeyed := p.keysOf(p.keys, records)
	p.keys = keys
	p.lease.waitBeside(p.waiting.leased()) // of the parts of the fetch before this one
	p.lease.change()
	hands := min(len(p.crew.hands), n)
	if p.sparing { // else chance would decide which of the records is the probe
		hands = min(hands, 1)
	}
	p.batch.mu.Lock()
	p.batch.reset(records, p.pasts(n), keys, hands)
	p.batch.unkeyed = unkeyed
	for i := range p.batch.hands {
		p.crew.hands[i].reset(&p.batch, p.crew.orNone())
	}
	p.batch.open = true
	p.batch.exact.Store(p.watch.slow(n))
	p.batch.mu.Unlock()
	p.lease.begin(&p.batch)
	p.began = p.watch.now(p.watch.observer.Applied != nil)
	p.phase = applying
}

func (p *poller[T]) apply() {
	p.life.applying.Store(true)
	p.stalls.begins()
	if p.full && p.fetchErr == nil && !p.probing && !p.sparing {
		p.ahead.ask(p.config.batchSize, len(p.waiting)+len(p.batch.ledger.Records)+len(p.records))
	}
	if p.crew.todo == nil {
		p.crew.hands[0].run(p.life.stop, p.work)
	} else {
		p.crew.work(p.batch.hands)
	}
	p.life.endApply()
	p.phase = settling
}
