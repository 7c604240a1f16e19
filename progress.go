package courier

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
)

// This file is about which records are in progress, for those who look from outside: when
// the drain timeout of a stop passes, and when a call does not return. The workers write
// down where they are as rarely as they can: a record that is quickly applied must not pay
// for this.

// position is where a worker is: the index of a record, how many it is from there on, and
// whether they go together in one call or are one of them.
type position uint64

// finished is the position of a worker that has done all. It has no records.
const finished position = 1

func positionOf(i, n int, together bool) position {
	p := position(i)<<32 | position(n)<<1
	if together {
		p |= 1
	}
	return p
}

func (p position) parts() (i, n int, together bool) {
	return int(p >> 32), int(p >> 1 & (1<<31 - 1)), p&1 != 0
}

// show writes down where the worker is. Of one that claims its records one by one the
// claim tells.
func (w *worker[T]) show(i, n int, together bool) {
	if !w.stepwise || w.together != nil {
		w.position.Store(uint64(positionOf(i, n, together)))
	}
}

// showTogether does so for the records that go in one call.
func (w *worker[T]) showTogether() {
	first := w.at
	if w.index != nil {
		first = w.index[0]
	}
	w.show(first, len(w.group), true)
}

// under notes what the worker makes its calls under.
func (w *worker[T]) under(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ctx, w.calls = ctx, exitsIn(ctx)
}

// inProgress is what one worker is at: some records, of which it applies one, or all in one
// call.
type inProgress[T any] struct {
	first, last           T
	labelFirst, labelLast string // what they are called where they have no name
	n                     int
	together              bool
	spot                  spot
	calls                 *exits
}

// spot tells the records that a worker is at from those that it was at before. It changes
// with each record, each batch, and whenever everything that goes on for the record has
// come to a wait between attempts.
type spot struct {
	worker   any // a *worker or a *share
	turn     uint64
	position position
	waits    uint64
}

// inProgress returns what a worker of the batch is at, if anything, with the batch's lock
// held. Of one that claims several at a time only the claim is known, and from here on the
// record: two looks that see the same claim have seen one record. Likewise with a call that
// goes through its batch record by record.
func (b *batch[T]) inProgress(w *worker[T], at position) (in inProgress[T], some bool) {
	i, n, together := at.parts()
	if n == 0 {
		return in, false
	}
	in = inProgress[T]{
		first: b.ledger.Records[i], labelFirst: b.label(i), n: n, together: together,
		spot: spot{worker: w, turn: b.turn, position: at}, calls: w.calls,
	}
	if n > 1 && !together {
		in.last, in.labelLast = b.ledger.Records[i+n-1], b.label(i+n-1)
		b.exact.Store(true)
	}
	if together && w.calls != nil {
		w.calls.watched.Store(true)
	}
	return in, true
}

// inProgress returns what the workers are at, and whether there is a batch for them.
func (p *poller[T]) inProgress() (all []inProgress[T], open bool) {
	p.batch.mu.Lock()
	defer p.batch.mu.Unlock()
	if !p.batch.open {
		return nil, false
	}
	for i := range p.batch.claims.Workers {
		w := &p.crew.workers[i]
		if in, some := p.batch.inProgress(w, position(w.position.Load())); some {
			all = append(all, in)
		}
	}
	return all, true
}

func (s *stream[T]) inProgress() (all []inProgress[T], open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sh := range s.out {
		at := position(sh.position.Load())
		if s.together == nil && at != finished {
			at = 0
			if begun := sh.account.claims.Begun(); begun > 0 {
				at = positionOf(begun-1, 1, false)
			}
		}
		sh.account.mu.Lock()
		in, some := sh.account.inProgress(&sh.worker, at)
		sh.account.mu.Unlock()
		if some {
			all = append(all, in)
		}
	}
	return all, len(s.out) > 0
}

// text names the records for people.
func (in *inProgress[T]) text(name func(any) string) string {
	called := func(record T, label string) string {
		if name := name(record); name != "" {
			return name
		}
		return label
	}
	first := called(in.first, in.labelFirst)
	switch {
	case in.n == 1:
		return cutText(first)
	case in.together:
		return cutText(fmt.Sprintf("%d in one call, the first of them %s", in.n, first))
	}
	return cutText(fmt.Sprintf("one of the %d from %s to %s", in.n, first, called(in.last, in.labelLast)))
}

// maxNamed is how many records in progress are named.
const maxNamed = 10

// tellDrainOver tells, at the moment that the drain timeout passes, for which records and
// which fetch the stop still waits.
func tellDrainOver[T any](ctx context.Context, w *watch, all []inProgress[T], fetch bool) {
	if len(all) > 0 {
		var names []string
		for i := range min(len(all), maxNamed) {
			names = append(names, all[i].text(w.name))
		}
		field := "names"
		if len(all) == 1 && all[0].n == 1 {
			field = "record" // as on every line about one
		}
		attrs := []any{"workers", len(all), field, strings.Join(names, ", ")}
		if more := len(all) - len(names); more > 0 {
			attrs = append(attrs, "more", more)
		}
		w.log.say(ctx, slog.LevelWarn, "courier: the drain timeout has passed, and records are still in progress; their contexts are cancelled, and Start returns when their calls return", attrs...)
	}
	if fetch {
		w.log.say(ctx, slog.LevelWarn, "courier: the drain timeout has passed, and the source has not answered a fetch whose context was cancelled; Start returns when the fetch returns")
	}
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

// pass has the time in progress count anew where nothing but waits goes on.
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
