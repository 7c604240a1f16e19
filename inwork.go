package courier

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// This file is about which records are in work, when the drain timeout of a stop passes
// or they have been for long. The workers write down where they are as
// rarely as they can: a record that is quickly applied must not pay for this.

// doing is what a hand is at: the index of a record, how many it is from there on,
// and whether they go together in one call or are one of them.
type doing uint64

func doingOf(i, n int, together bool) doing {
	d := doing(i)<<32 | doing(n)<<1
	if together {
		d |= 1
	}
	return d
}

func (d doing) parts() (i, n int, together bool) {
	return int(d >> 32), int(d >> 1 & (1<<31 - 1)), d&1 != 0
}

// show writes down what the hand is at. Of one that claims its records one by one the
// claim tells.
func (h *hand[T]) show(i, n int, together bool) {
	if !h.stepwise || h.together != nil {
		h.doing.Store(uint64(doingOf(i, n, together)))
	}
}

// showTogether does so for the records that go in one call.
func (h *hand[T]) showTogether() {
	first := h.at
	if h.index != nil {
		first = h.index[0]
	}
	h.show(first, len(h.group), true)
}

// inWork is records of which a hand is at one, or at all in one call, with what they
// are called where they have no name.
type inWork[T any] struct {
	first, last        T
	place, placeOfLast string
	n                  int
	together           bool
}

// seen returns what a hand of the batch was at, if anything.
func (b *batch[T]) seen(d doing) (w inWork[T], some bool) {
	i, n, together := d.parts()
	if n == 0 {
		return w, false
	}
	w = inWork[T]{first: b.ledger.Records[i], place: b.place(i), n: n, together: together}
	if n > 1 && !together {
		w.last, w.placeOfLast = b.ledger.Records[i+n-1], b.place(i+n-1)
	}
	return w, true
}

func (w *inWork[T]) text(name func(any) string) string {
	called := func(record T, place string) string {
		if name := name(record); name != "" {
			return name
		}
		return place
	}
	first := called(w.first, w.place)
	switch {
	case w.n == 1:
		return first
	case w.together:
		return fmt.Sprintf("%d in one call, the first of them %s", w.n, first)
	}
	return fmt.Sprintf("one of the %d from %s to %s", w.n, first, called(w.last, w.placeOfLast))
}

// maxNamed is how many records in work are named.
const maxNamed = 10

// tellDrainOver tells, at the moment that the drain timeout passes, for which records and
// which fetch the stop still waits.
func tellDrainOver[T any](ctx context.Context, w *watch, at []working[T], fetch bool) {
	if len(at) > 0 {
		var names []string
		for i := range min(len(at), maxNamed) {
			names = append(names, cutText(at[i].text(w.name)))
		}
		attrs := []any{"workers", len(at), "records", strings.Join(names, ", ")}
		if more := len(at) - len(names); more > 0 {
			attrs = append(attrs, "more", more)
		}
		w.log.say(ctx, slog.LevelWarn, "courier: the drain timeout has passed, and records are still in progress; their contexts are cancelled, and Start returns when their calls return", attrs...)
	}
	if fetch {
		w.log.say(ctx, slog.LevelWarn, "courier: the drain timeout has passed, and the source has not answered a fetch whose context was cancelled; Start returns when the fetch returns")
	}
}

// What follows is about records that have been in work for long: calls of the applier
// that do not return. Nothing about a record that does return is written down for
// it. A goroutine looks from outside at what each worker is at, and finds those that
// have not moved.

// place is what a worker is at. It is another one with each record, each batch, and
// whenever everything that goes on for the record has come to a wait between attempts.
type place struct {
	hand  any // a *hand or a *share
	turn  uint64
	doing doing
	waits uint64
}

// working is what one worker is at, and in which call.
type working[T any] struct {
	inWork[T]
	place place
	calls *exits
}

// spot is the same for those who do not know the type of the records.
type spot struct {
	place   place
	attempt int
	records int
	text    func() string
}

// spotsOf leaves out the workers whose calls all wait for a next attempt.
func spotsOf[T any](all []working[T], w *watch) []spot {
	var spots []spot
	for _, at := range all {
		waits, resting := at.calls.waited()
		if resting {
			continue
		}
		at.place.waits = waits
		spots = append(spots, spot{
			place: at.place, attempt: at.calls.attempt(), records: at.n,
			text: func() string { return cutText(at.text(w.name)) },
		})
	}
	return spots
}

// nothing is what a worker is at that has done all. It has no records.
const nothing doing = 1

// under notes that another worker has the hand.
func (h *hand[T]) under(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ctx, h.calls = ctx, exitsIn(ctx)
}

// at returns what a hand of the batch is at, if anything, with the batch's lock held.
// Of one that claims several at a time only the claim is known, and from here on the
// record: two looks that see the same claim have seen one record. Likewise with a call
// that goes through its batch record by record.
func (b *batch[T]) at(h *hand[T], d doing) (w working[T], some bool) {
	w.inWork, some = b.seen(d)
	if w.n > 1 && !w.together {
		b.exact.Store(true)
	}
	if w.together && h.calls != nil {
		h.calls.watched.Store(true)
	}
	w.place, w.calls = place{hand: h, turn: b.turn, doing: d}, h.calls
	return w, some
}

// working returns what the workers are at, and whether there is a batch for them.
func (p *poller[T]) working() (at []working[T], open bool) {
	p.batch.mu.Lock()
	defer p.batch.mu.Unlock()
	if !p.batch.open {
		return nil, false
	}
	for i := range p.batch.claims.Workers {
		h := &p.crew.hands[i]
		if w, some := p.batch.at(h, doing(h.doing.Load())); some {
			at = append(at, w)
		}
	}
	return at, true
}

func (s *stream[T]) working() (at []working[T], open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sh := range s.out {
		d := doing(sh.doing.Load())
		if s.together == nil && d != nothing {
			d = 0
			if begun := sh.account.claims.Begun(); begun > 0 {
				d = doingOf(begun-1, 1, false)
			}
		}
		sh.account.mu.Lock()
		w, some := sh.account.at(&sh.hand, d)
		sh.account.mu.Unlock()
		if some {
			at = append(at, w)
		}
	}
	return at, len(s.out) > 0
}

// stalls looks at the workers of one run. It sets no timer while nothing is in work.
type stalls struct {
	watch   *watch
	clock   Clock
	ctx     context.Context // of the events
	after   time.Duration   // for as long a record is in work until that is told
	every   time.Duration   // between looks
	working func() (at []spot, open bool)

	asleep atomic.Bool
	woken  chan struct{} // room for one: something is in work
	over   chan struct{} // closed at the end of the run

	mu    sync.Mutex
	known []*stall // what the last look saw
}

// stall is a place that a look has seen.
type stall struct {
	place   place
	age     time.Duration // since then: the waits between looks, which no step of a clock makes longer
	name    string        // from the second look on
	records int
	attempt int
	told    time.Duration // its age when that was said last; 0 when it was not
}

// looks is how many looks there are in the time after which a record is told.
const looks = 4

func newStalls[T any](ctx context.Context, c *config, w *watch, of func() ([]working[T], bool)) *stalls {
	s := &stalls{
		watch: w, clock: c.clock.Clock, ctx: ctx, after: c.stallAfter, every: max(c.stallAfter/looks, time.Millisecond),
		working: func() ([]spot, bool) {
			at, open := of()
			return spotsOf(at, w), open
		},
		woken: make(chan struct{}, 1), over: make(chan struct{}),
	}
	s.asleep.Store(true)
	w.mu.Lock()
	w.stalls = s
	w.mu.Unlock()
	return s
}

// begins is called when workers are given records.
func (s *stalls) begins() {
	if s.asleep.Load() && s.asleep.CompareAndSwap(true, false) {
		nudge(s.woken)
	}
}

func (s *stalls) loop() {
	for {
		select {
		case <-s.woken:
		case <-s.over:
			return
		}
		for busy := true; busy; {
			select {
			case <-s.clock.After(s.every):
			case <-s.over:
				s.look()
				return
			}
			if busy = s.look(); busy {
				continue
			}
			s.asleep.Store(true)
			if _, open := s.working(); open { // it began before that, and has woken nobody
				busy = s.asleep.CompareAndSwap(true, false)
			}
		}
	}
}

// look compares what is in work with what was at the last look, tells what is to be
// told, and reports whether anything may be.
func (s *stalls) look() (busy bool) {
	spots, open := s.working()
	before := make(map[place]*stall, len(s.known)) // no other goroutine writes it
	for _, st := range s.known {
		before[st.place] = st
	}
	var found, again []*stall
	known := make([]*stall, len(spots))
	for i, at := range spots {
		st := before[at.place]
		delete(before, at.place)
		if st == nil {
			known[i] = &stall{place: at.place, records: at.records, attempt: at.attempt}
			continue
		}
		next := *st
		next.age, next.attempt = next.age+s.every, at.attempt
		if next.name == "" {
			next.name = at.text()
		}
		switch {
		case next.age < s.after && next.age < looks*s.every:
		case next.told == 0:
			found, next.told = append(found, &next), next.age
		case next.age-next.told >= sayAgain:
			again, next.told = append(again, &next), next.age
		}
		known[i] = &next
	}
	var ended []*stall
	for _, st := range s.known {
		if before[st.place] != nil && st.told > 0 {
			ended = append(ended, st)
		}
	}
	s.mu.Lock()
	s.known = known
	s.mu.Unlock()
	s.tell(found, false, false)
	s.tell(again, false, true)
	s.tell(ended, true, false)
	return open
}

// tell tells of some stalls at the same time, the oldest first. Beyond a few of them
// the log has their number.
func (s *stalls) tell(some []*stall, over, again bool) {
	slices.SortStableFunc(some, func(a, b *stall) int { return cmp.Compare(b.age, a.age) })
	for i, st := range some {
		event := StallEvent{Record: st.name, Records: st.records, Attempt: st.attempt, InWork: st.age, Over: over}
		if i < maxNamed {
			s.watch.log.stalled(s.ctx, event)
		}
		if !again {
			tell(s.ctx, s.watch.observer.Stalled, event)
		}
	}
	if more := len(some) - maxNamed; more > 0 {
		s.watch.log.moreStalled(s.ctx, more, over)
	}
}

// end is called when nothing is in work any more.
func (s *stalls) end() {
	close(s.over)
	s.watch.mu.Lock()
	s.watch.stalls = nil
	s.watch.mu.Unlock()
}

// oldest returns what has been in work for the longest, nil where no two looks have seen
// the same.
func (s *stalls) oldest() *stall {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	known := slices.Clone(s.known)
	s.mu.Unlock()
	var first *stall
	var at []spot
	for _, st := range known {
		if st.name == "" || first != nil && st.age <= first.age {
			continue
		}
		if at == nil { // only now: most of the time there is no such record
			at, _ = s.working()
		}
		if slices.ContainsFunc(at, func(now spot) bool { return now.place == st.place }) {
			first = st
		}
	}
	return first
}

// oldest returns the same of the run that there is, if any.
func (w *watch) oldest() *stall {
	w.mu.Lock()
	s := w.stalls
	w.mu.Unlock()
	return s.oldest()
}

// stalled returns which record has been in work for too long, nil if none has.
func (w *watch) stalled() error {
	st := w.oldest()
	if st == nil || st.told == 0 {
		return nil
	}
	return fmt.Errorf("courier: in progress for at least %v, in attempt %d: %s", st.age, st.attempt, st.name)
}

const (
	saidStalled   = "courier: a record has been in progress for a long time: its call has not returned, and a call that can hang needs a timeout"
	saidUnstalled = "courier: the call of a record that was in progress for a long time has returned"
)

func (l *slogObserver) stalled(ctx context.Context, e StallEvent) {
	level, text := slog.LevelWarn, saidStalled
	if e.Over {
		level, text = slog.LevelInfo, saidUnstalled
	}
	l.say(ctx, level, text, "record", e.Record, "attempt", e.Attempt, "for_at_least", e.InWork)
}

func (l *slogObserver) moreStalled(ctx context.Context, records int, over bool) {
	level, text := slog.LevelWarn, "courier: more workers have been busy with one record for a long time"
	if over {
		level, text = slog.LevelInfo, "courier: the calls of more records that were in progress for a long time have returned"
	}
	l.say(ctx, level, text, "workers", records)
}

// inCall is what goes on in a worker's call of the applier. Only a retry that waits, a
// fan-out, and a batch whose records are applied one by one write it.
type inCall struct {
	branches atomic.Int32  // that go on, beyond one
	waiting  atomic.Int32  // retries between two attempts
	turns    atomic.Uint64 // how often all that went on was waiting
	watched  atomic.Bool   // somebody looks: each record of a batch is a turn
	tries    []try         // of each retry that has failed once; under the lock of the exits
}

// try is the attempt that a retry is at, or the one before it while it waits.
type try struct {
	owner   any // the retry
	attempt int
	waits   bool
}

// waited returns how often everything that goes on for the record has come to a wait
// between attempts, and whether it does so now.
func (e *exits) waited() (turns uint64, now bool) {
	if e == nil {
		return 0, false
	}
	return e.turns.Load(), e.resting()
}

func (e *exits) resting() bool { return e.waiting.Load() > e.branches.Load() }

// attempt returns which one the call is at: of several retries in the branches of a
// fan-out, the highest.
func (e *exits) attempt() int {
	n := 1
	if e == nil {
		return n
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.tries {
		n = max(n, t.attempt)
	}
	return n
}

// fork notes that so many branches of a fan-out more or fewer go on.
func (e *exits) fork(more int32) {
	if e != nil {
		e.branches.Add(more)
		e.pass()
	}
}

// pass has the time in work count anew where nothing but waits goes on.
func (e *exits) pass() {
	if e.resting() {
		e.turns.Add(1)
	}
}

// step notes that the call goes on with another record of its batch, and unwatched that
// there is another batch.
func (e *exits) step() {
	if e != nil && e.watched.Load() {
		e.turns.Add(1)
	}
}

func (e *exits) unwatched() {
	if e != nil && e.watched.Load() {
		e.watched.Store(false)
	}
}

// waits notes that a retry waits after an attempt, goesOn that it makes one, and tried
// that it has come to its end.
func (e *exits) waits(owner any, after int)    { e.note(owner, after, true, false) }
func (e *exits) goesOn(owner any, attempt int) { e.note(owner, attempt, false, false) }
func (e *exits) tried(owner any)               { e.note(owner, 0, false, true) }

func (e *exits) note(owner any, attempt int, waits, over bool) {
	if e == nil {
		return
	}
	e.mu.Lock()
	i := 0
	for i < len(e.tries) && e.tries[i].owner != owner {
		i++
	}
	switch {
	case i < len(e.tries):
	case over: // it has not waited
		e.mu.Unlock()
		return
	default:
		e.tries = append(e.tries, try{owner: owner})
	}
	t := &e.tries[i]
	if t.attempt = attempt; t.waits != waits {
		t.waits = waits
		if waits {
			e.waiting.Add(1)
		} else {
			e.waiting.Add(-1)
		}
	}
	if over {
		e.tries = slices.Delete(e.tries, i, i+1)
	}
	e.mu.Unlock()
	if waits {
		e.pass()
	}
}
