package courier

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// sparedFor is how long suspects are left alone after a probe that went well,
// where the breaker wants more successes than one: a poison record would undo
// what the others have shown. Then they have their turn, if no others come.
const sparedFor = time.Minute

// minWindow is how many records a probe is chosen from at least, if need be, so
// that a few poison records at the head of the source do not hide all others
// when batches are small. The ones not chosen are given back at once.
const minWindow = 100

// minRemembered is how many records at least are remembered with their attempts while they
// are with the source. Else it is ten times as many as may be in hand.
const minRemembered = 1000

func memoryLimits(c *config) engine.Limits {
	return engine.Limits{All: max(10*mostInHand(c), minRemembered), Bare: max(c.batchSize, minWindow) - 1}
}

// mostInHand is how many records a poller may have in hand (D11).
func mostInHand(c *config) int { return c.batchSize * (1 + max(c.prefetch, 0)) }

// window is how many records a probe is chosen from.
func (p *poller[T]) window() int { return max(p.config.batchSize, minWindow) }

// phase is where a poller stands. Each phase makes at most one call of user code, and sets
// the next phase before it, so that the loop can go on from there should the call end the
// goroutine.
type phase uint8

const (
	phaseFetch   phase = iota // begin a pass: ask the source for records, unless some are in hand to go on with
	phaseTake                 // look at what it returned
	phaseCut                  // take the next batch of it
	phaseApply                // apply that
	phaseSettle               // sort it into marks and releases
	phaseMark                 // mark what was applied
	phaseReport               // tell the source what failed
	phaseRelease              // give back what stays pending
	phaseCall                 // make the call that one of these has set out
	phaseCalled               // try a mark again later, or go on
	phaseRest                 // wait for the next pass
	phaseEnded
)

// poller is one run of a polling coordinator.
type poller[T any] struct {
	*pipeline[T]
	woken     <-chan struct{}
	limitless bool // the source decides by itself how much it returns
	once      bool
	work      context.Context // what an only worker applies under

	phase phase
	pass  pass[T]
	part  run[T] // the records of the batch
	keys  []string
	batch batch[T]
	crew  crew[T]
	ahead *ahead[T] // nil unless batches are fetched ahead

	// The calls of the source.
	intake   context.Context // of the fetch, unless it was made ahead; a stop ends it, and a pause
	limit    int             // of the fetch, but for what is looked past
	got      fetchResult[T]  // what it has brought, until it is taken
	fetchErr error
	retryIn  time.Duration // after a fetch that failed
	mark     job[T]
	job      job[T] // the call in work, and what it has returned
	jobErr   error
	began    time.Time // of the call, or of the batch, where its duration is asked for

	// What is to go back to the source, or stays in hand.
	faulty  faults[T]
	release []pending[T]
	behind  []pending[T]                 // likewise, but for as long as another of their key
	back    engine.Releases[numbered[T]] // failed records to be released, for as long as each asks at least
	kept    []pending[T]                 // in hand for the next pass
	waiting engine.Waiting[pending[T]]   // for their next attempt, and what comes behind them
	waits   waits                        // of failed records of a source that takes nothing back

	// Order.
	fetchedAt time.Time          // where there is an order: when the fetch began
	blocked   engine.BlockedKeys // with the source, or for as long as the pass

	// Probes of a breaker.
	probing    bool // it may be probed, with one record
	sparing    bool // suspects wait for others to close it
	spareUntil time.Time
	memory     engine.Suspects[recordKey, usage] // records that a breaker interrupted
	identity   identity[T]
	stuck      bool // a breaker has opened over all that may be the probe
	nameless   bool // the probe is a record that cannot be known again at all
	probes     int  // how many there were
	misses     int  // probes that failed since one closed the breaker, and may not be known again
	missed     int  // likewise, during RunOnce

	// When to go on.
	most                int  // records that a limitless source ever returned
	paused              bool // by Pause
	fullHand            fullHand
	asked               time.Time // until when nothing is fetched
	refusedUntil        time.Time // until when nothing is fetched, as records can be settled nowhere; zero once one is
	fetchAt             time.Time // the next time, where some wait
	fruitless           bool      // nothing was marked since the last fetch
	fetchPace, restPace callPace

	// The end.
	failed   map[int]error // by index, in RunOnce
	leaving  bool          // RunOnce does not go on
	patience time.Time     // see patientUntil
	unmarked error         // a *MarkError
}

// pass is what a poller does from one fetch to the next.
type pass[T any] struct {
	run[T]                      // to be applied, and not yet in a batch
	handed    bool              // they were in hand already, and not fetched now
	dueOnly   bool              // all of them have waited for their next attempt
	spared    bool              // it has suspects alone, which wait
	taken     int               // how many of them have come into a batch
	more      bool              // the source says that it has more
	full      bool              // it may have
	whole     bool              // all records of the pass have failed
	progress  bool              // something was marked
	waited    bool              // something waits for its next attempt since
	failed    bool              // something has failed
	lost      bool              // a record was somebody else's by the time that it was its turn
	sorted    bool              // what is left of them is either kept or given back
	scheduled []T               // records whose failure the source was told of
	gone      map[string]uint64 // by key, the first record that has left the hand
	refused   error             // why a record stays pending that no time was told for; nil if none does
	halted    halt
}

func newPoller[T any](ctx context.Context, c *PollingCoordinator[T], once bool) *poller[T] {
	p := &poller[T]{
		pipeline: newPipeline(c.control, &c.config, c.source, c.applier),
		once:     once,
		crew:     crew[T]{workers: make([]worker[T], c.config.workers)},
		memory:   engine.NewSuspects[recordKey, usage](memoryLimits(&c.config)),
	}
	p.batch.pipeline, p.batch.blocked = p.pipeline, &p.blocked
	p.batch.label = func(i int) string {
		return fmt.Sprintf("record %d of the batch (the first is 1)", p.part.item(i).place+1)
	}
	p.batch.number = func(i int) uint64 { return p.part.item(i).number }
	p.pager, _ = c.source.(Pager)
	if w, ok := c.source.(Waker); ok {
		var ignored error // without the channel the interval is the pace
		isolate(&ignored, func() error { p.woken = w.Wake(); return nil })
	}
	_, p.limitless = c.source.(interface{ ignoresLimit() })
	p.begin(ctx, p.inProgress, p.watch.fetchesNow)
	passageOf(p.life.values).once = once
	p.work = withExits(p.life.work)
	p.identity = identityOf(c.source, &c.config, once, p.leases != nil)
	if n := c.config.prefetch; n > 0 && !once {
		p.ahead = newAhead(p.pipeline)
	}
	return p
}

// run owns every goroutine of the run, and ends after them.
func (p *poller[T]) run() error {
	var workers, helpers sync.WaitGroup
	if p.leases != nil {
		helpers.Go(func() { p.renewLeases(func() { p.batch.alert.Store(true) }) })
	}
	if p.ahead != nil {
		helpers.Go(p.ahead.serve)
	}
	if n := p.config.workers; n > 1 { // one is the loop itself
		p.crew.todo, p.crew.ended = make(chan *worker[T], n), make(chan struct{}, 1)
		for range n {
			workers.Go(func() { work(p.life.stop, p.life.work, p.crew.todo) })
		}
	}
	helpers.Go(p.stalls.loop)
	supervise(p.loop)
	if p.crew.todo != nil {
		close(p.crew.todo)
	}
	workers.Wait()
	p.endRenewals(ErrStopped)
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
	for p.phase != phaseEnded {
		switch p.phase {
		case phaseFetch:
			p.fetch()
		case phaseTake:
			p.take()
		case phaseCut:
			p.cut()
		case phaseApply:
			p.apply()
		case phaseSettle:
			p.settle()
		case phaseMark:
			p.setOut(p.mark)
		case phaseReport:
			p.tellFailed()
		case phaseRelease:
			p.giveBack()
		case phaseCall:
			p.phase = phaseCalled
			p.call(&p.job, &p.jobErr)
		case phaseCalled:
			p.callEnded()
			p.finishJob()
		case phaseRest:
			p.rest()
		}
	}
}

// setOut has the next call of the source made, see finishJob.
func (p *poller[T]) setOut(j job[T]) {
	p.job, p.phase = j, phaseCall
}

// fetch begins a pass.
func (p *poller[T]) fetch() {
	p.pass = pass[T]{whole: true}
	if p.life.stop.Err() != nil {
		p.finish()
		return
	}
	if p.heedPause() || p.heedBreaker() {
		return
	}
	if p.keyOf != nil {
		p.fetchedAt = p.config.clock.Now()
	}
	if p.takeKept() || p.takeWaiting() {
		return
	}
	limit := p.limits()
	p.fetchErr = nil
	p.phase = phaseTake
	p.life.applying.Store(true) // what comes after a stop is given back under a live context
	if r, ok := p.ahead.take(); ok {
		p.got, p.intake = r, nil
		p.limit = p.config.batchSize
		return
	}
	if limit < 1 { // the hand is full after all: what was asked for ahead was not fetched
		p.life.endApply()
		p.phase = phaseFetch
		return
	}
	p.heedWakes()
	p.intake = p.life.stop
	if !p.once {
		p.intake = p.control.intake()
	}
	p.began = p.watch.now(p.watch.observer.Fetched != nil)
	p.watch.begins(&p.watch.fetching, "fetch")
	p.callFetch(p.intake, limit, &p.got)
}

// heedPause follows Pause and Resume, and reports whether there is no pass for now. While
// records wait there is: they are worked off.
func (p *poller[T]) heedPause() bool {
	resumed := p.control.paused()
	if resumed == nil || p.once {
		if p.paused {
			p.paused = false
			p.watch.resumed(p.life.settle, byPause)
		}
		return false
	}
	if !p.paused {
		p.paused = true
		p.watch.paused(p.life.settle, byPause, PauseEvent{}, true)
		if kept, ahead := p.letGo(), p.dropAhead(); kept || ahead {
			p.phase = phaseRelease
			return true
		}
	}
	if p.waiting.Len() > 0 {
		return false
	}
	select {
	case <-resumed:
	case <-p.life.stop.Done():
	}
	return true
}

// heedBreaker reports whether there is no pass because a breaker of the stack is open, and
// otherwise whether the pass is to probe one.
func (p *poller[T]) heedBreaker() bool {
	g := gateOf(p.control.breakers)
	if g.closed && !p.once {
		p.spareUntil = time.Time{}
		p.pass.halted = halt{err: g.cause, until: p.config.clock.of(g.until)}
		p.watch.paused(p.life.settle, byBreaker, PauseEvent{Until: g.until, Err: g.cause}, true)
		p.phase = phaseRest
		if waiting, ahead := p.setAside(), p.dropAhead(); waiting || ahead {
			p.phase = phaseRelease
		}
		return true
	}
	// Half-open after a probe that went well, the breaker wants more successes. RunOnce
	// has no time to wait for them.
	p.sparing = !p.once && g.probe && p.config.clock.Now().Before(p.spareUntil)
	p.probing = !p.sparing && (p.probing || g.probe)
	return false
}

// limits sets the limit of the pass, and returns the one to fetch with: more, where it has
// to see past records that are not for this pass.
func (p *poller[T]) limits() (limit int) {
	limit = p.config.batchSize
	if p.releaser != nil { // another one returns those that wait, too
		limit = p.room()
	}
	p.limit = limit
	past := 1 + min(2*p.memory.Len(), p.window()-1)        // the suspects, and as many others to choose from
	if p.keyOf != nil || len(p.kept) > 0 || p.misses > 0 { // and all that waits behind them, or cannot be told from them
		past = p.window()
	}
	waits := p.waits.left(p.config.clock.Now())
	past += waits + p.waiting.Len() // and those whose time has not come
	switch {
	case p.probing:
		return past
	case p.sparing:
		return max(limit, past)
	}
	return limit + waits
}

// heedWakes takes in what woke this fetch, or would wake the next one for what it brings.
func (p *poller[T]) heedWakes() {
	select {
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
}

// take looks at what was fetched, or taken of what is in hand, and leaves in the pass what
// is to be applied now.
func (p *poller[T]) take() {
	if !p.pass.handed {
		if p.intake != nil {
			p.watch.ends(&p.watch.fetching)
			p.got.took, p.got.cancelled = p.watch.since(p.watch.observer.Fetched != nil, p.began), p.intake.Err() != nil
		}
		p.pass.run, p.pass.more, p.fetchErr = run[T]{records: p.got.records, first: p.got.first}, p.got.more, p.got.err
	}
	p.life.endApply()
	n := p.pass.len()
	p.phase = phaseCut
	if p.keyOf != nil {
		p.blocked.Lift(p.fetchedAt, p.fetchedAt)
	}
	if !p.pass.handed {
		if p.intake != nil { // else it is counted
			p.watch.count.inHand.Add(int64(n))
		}
		p.tellFetched(n)
		p.dropEarly()
	}
	if p.waiting.Len() > 0 && len(p.kept) == 0 && !p.pass.handed {
		p.joinWaiting()
	}
	if len(p.kept) > 0 && !p.pass.handed {
		p.lookPast()
	}
	if p.keyOf != nil && p.waiting.Len() > 0 {
		p.putBehind()
	}
	if p.memory.Len() > 0 || p.probing || p.sparing {
		p.identify(&p.pass.run)
	}
	switch {
	case p.pass.len() == 0:
	case p.probing:
		p.pickProbe()
	case p.sparing:
		p.spare()
	default:
		p.mix()
	}
	p.pass.spared = p.pass.len() == 0 && len(p.release) > 0
}

// pickProbe has all records of the pass wait but the one to probe the breaker with.
func (p *poller[T]) pickProbe() {
	now := p.clock.Now()
	p.passOverBlocked()
	if p.pass.len() == 0 {
		return
	}
	keys, _ := p.keysOf(nil, p.pass.records)
	items := p.pass.items
	i := p.memory.Probe(idsIn(items), keys, p.choose, now)
	probe := items[i]
	p.stuck = !slices.Contains(p.memory.Suspected(idsIn(items), keys, now), false)
	p.memory.Picked(probe.id, now)
	p.probes++
	p.nameless = probe.id == recordKey{}
	p.passOver(items[:i], time.Time{})
	p.passOver(items[i+1:], time.Time{})
	p.pass.run = runOf([]pending[T]{probe})
}

// choose returns the index of the next probe among n records that are not suspects. RunOnce
// forgets its suspects when it returns, so it takes the oldest records in turn, from run to run.
func (p *poller[T]) choose(n int) int {
	if p.once {
		return p.misses % n
	}
	return engine.Spread(p.probes, n)
}

// passOverBlocked leaves the records of the pass for later that come after one of their key
// which is with the source for some time: none of them can be the probe.
func (p *poller[T]) passOverBlocked() {
	if p.keyOf == nil {
		return
	}
	keys, _ := p.keysOf(nil, p.pass.records)
	blocked := p.leaveOut(func(i int) bool { return !p.pass.items[i].waited && p.blocked.Blocks(keys[i]) })
	p.behind = append(p.behind, blocked...)
}

// spare has the suspects among the records wait.
func (p *poller[T]) spare() {
	keys, _ := p.keysOf(nil, p.pass.records)
	suspected := p.memory.Suspected(idsIn(p.pass.items), keys, p.clock.Now())
	p.passOver(p.leaveOut(func(i int) bool { return suspected[i] }), p.spareUntil)
}

// leaveOut takes the records out of the pass that are to wait, by their indices, and
// returns them.
func (p *poller[T]) leaveOut(waits func(i int) bool) (left []pending[T]) {
	var others []pending[T]
	for i, it := range p.pass.items {
		if waits(i) {
			left = append(left, it)
		} else {
			others = append(others, it)
		}
	}
	p.pass.run = runOf(others)
	return left
}

// tellFetched takes in what a fetch has returned, n records.
func (p *poller[T]) tellFetched(n int) {
	p.pass.full = p.pass.more && n > 0 || n >= p.limit || p.limitless && n > 0 && n >= p.most
	p.most = max(p.most, n)
	p.fruitless = true
	event := FetchEvent{Records: n, Err: p.fetchErr, Elapsed: p.got.took}
	cancelled := p.fetchErr != nil && p.got.cancelled
	p.got = fetchResult[T]{}
	switch {
	case p.fetchErr == nil:
		p.fetchPace = callPace{}
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
	live := p.life.settle.Err() == nil
	for {
		r, ok := p.ahead.take()
		if !ok {
			if some && live && p.life.settle.Err() != nil { // a fetch did not heed its context
				p.life.settle = p.life.overtime()
			}
			return some
		}
		some = true
		p.watch.fetched(p.life.settle, FetchEvent{Records: len(r.records), Err: r.err, Elapsed: r.took}, r.cancelled)
		fetched := run[T]{records: r.records, first: r.first}
		p.release = append(p.release, fetched.all()...)
	}
}

// cut takes the next batch in hand, and as many workers to it as have something to do.
func (p *poller[T]) cut() {
	n := min(p.pass.len(), p.config.batchSize)
	keys, unkeyed := p.keysOf(p.keys, p.pass.records[:n])
	p.keys = keys
	workers := min(len(p.crew.workers), n)
	if p.sparing { // else chance would decide which of the records is the probe
		workers = min(workers, 1)
	}
	p.batch.mu.Lock()
	p.part = p.pass.cut(n)
	p.pass.taken += n
	p.batch.reset(p.part.records, p.pasts(), keys, workers)
	p.batch.unkeyed = unkeyed
	for i := range p.batch.claims.Workers {
		p.crew.workers[i].reset(&p.batch, p.crew.orNone())
	}
	p.batch.open = true
	p.batch.exact.Store(p.watch.slow(n))
	p.batch.mu.Unlock()
	p.began = p.watch.now(p.watch.observer.Applied != nil)
	p.phase = phaseApply
}

func (p *poller[T]) apply() {
	p.life.applying.Store(true)
	p.stalls.begins()
	if p.pass.full && p.fetchErr == nil && !p.probing && !p.sparing && p.refusedUntil.IsZero() {
		p.ahead.ask(p.config.batchSize, p.waiting.Len()+p.part.len()+p.pass.len())
	}
	if p.crew.todo == nil {
		p.crew.workers[0].run(p.life.stop, p.work)
	} else {
		p.crew.work(p.batch.claims.Workers)
	}
	p.life.endApply()
	p.phase = phaseSettle
}

// ahead fetches the next batches of a source that leases while one is applied.
// Its methods but serve are the poller's; a nil one fetches nothing.
type ahead[T any] struct {
	*pipeline[T]
	wanted  chan aheadRequest
	fetched chan fetchResult[T] // parallel to them
	pending int                 // asked for and not taken
	intake  context.Context     // of the fetches that are pending; nil when none are
	cancel  context.CancelCauseFunc

	taken bool // the poller has the last batch that was asked for in hand
}

type aheadRequest struct {
	ctx   context.Context
	limit int
	fresh bool // nothing was asked for before it that is not taken
}

func newAhead[T any](p *pipeline[T]) *ahead[T] {
	n := p.config.prefetch
	return &ahead[T]{pipeline: p, wanted: make(chan aheadRequest, n), fetched: make(chan fetchResult[T], n)}
}

// ask has as many batches fetched as there is room for, beside so many records in hand.
func (a *ahead[T]) ask(limit, inHand int) {
	if a == nil {
		return
	}
	most := min(cap(a.wanted), (limit*(1+cap(a.wanted))-inHand)/limit)
	if a.pending >= most {
		return
	}
	if a.intake == nil {
		a.intake, a.cancel = context.WithCancelCause(a.control.intake())
	}
	for a.pending < most {
		a.wanted <- aheadRequest{a.intake, limit, a.pending == 0}
		a.pending++
	}
}

// take gives the poller the next batch that was asked for, and waits for it.
func (a *ahead[T]) take() (r fetchResult[T], ok bool) {
	if a != nil {
		a.taken = false
	}
	for a != nil && a.pending > 0 {
		a.pending--
		r = <-a.fetched
		if a.pending == 0 {
			a.cancel(nil)
			a.intake, a.cancel = nil, nil
		}
		if !r.skipped {
			a.taken = true
			return r, true
		}
	}
	return fetchResult[T]{}, false
}

// asked reports whether a batch was asked for that is not taken.
func (a *ahead[T]) asked() bool { return a != nil && a.pending > 0 }

// took reports whether the last take returned a batch.
func (a *ahead[T]) took() bool { return a != nil && a.taken }

// callOff has fetches end that are under way, and not made that are not.
func (a *ahead[T]) callOff() {
	if a != nil && a.intake != nil {
		a.cancel(ErrPaused)
	}
}

func (a *ahead[T]) serve() {
	var began time.Time
	var result fetchResult[T]
	dry := false // the last fetch was not full: those that were asked for behind it are not made
	serve(a.wanted, func(r aheadRequest, again bool) {
		if !again {
			dry = dry && !r.fresh
			if dry || r.ctx.Err() != nil || gateOf(a.control.breakers).closed {
				a.fetched <- fetchResult[T]{skipped: true}
				return
			}
			dry = true
			began = a.clock.Now()
			a.watch.begins(&a.watch.fetching, "fetch")
			a.callFetch(r.ctx, r.limit, &result)
			dry = result.err != nil || len(result.records) < r.limit && !result.more
		}
		a.watch.ends(&a.watch.fetching)
		a.watch.count.inHand.Add(int64(len(result.records)))
		result.cancelled = r.ctx.Err() != nil
		result.took = a.watch.since(true, began)
		a.fetched <- result
		result = fetchResult[T]{} // for the garbage collector
	})
}
