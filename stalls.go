package courier

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// This file is about calls of the applier that do not return. Nothing about a record that
// does return is written down for it: a goroutine looks from outside at what each worker is
// at, and finds those that have not moved.

// stalls looks at the workers of one run. It sets no timer while nothing is in work.
type stalls[T any] struct {
	watch      *watch
	clock      Clock
	ctx        context.Context // of the events
	after      time.Duration   // for as long a record is in progress until that is told
	every      time.Duration   // between looks
	inProgress func() (all []inProgress[T], open bool)

	asleep atomic.Bool
	woken  chan struct{} // room for one: something is in work
	over   chan struct{} // closed at the end of the run

	mu    sync.Mutex
	known []*stall // what the last look saw
}

// stall is a spot that a look has seen.
type stall struct {
	spot    spot
	age     time.Duration // since then: the waits between looks, which no step of a clock makes longer
	name    string        // from the second look on
	records int
	attempt int
	told    time.Duration // its age when that was told last; 0 when it was not
	logged  bool          // when it was
}

// looks is how many looks there are in the time after which a record is told.
const looks = 4

func newStalls[T any](ctx context.Context, c *config, w *watch, in func() ([]inProgress[T], bool)) *stalls[T] {
	s := &stalls[T]{
		watch: w, clock: c.clock.Clock, ctx: ctx, after: c.stallAfter, every: max(c.stallAfter/looks, time.Millisecond),
		inProgress: in, woken: make(chan struct{}, 1), over: make(chan struct{}),
	}
	s.asleep.Store(true)
	w.mu.Lock()
	w.stalls = s
	w.mu.Unlock()
	return s
}

// running returns what the workers are at, but for those whose calls all wait for a next
// attempt.
func (s *stalls[T]) running() (all []inProgress[T], open bool) {
	all, open = s.inProgress()
	running := all[:0]
	for _, in := range all {
		waits, resting := in.calls.waited()
		if resting {
			continue
		}
		in.spot.waits = waits
		running = append(running, in)
	}
	return running, open
}

// begins is called when workers are given records.
func (s *stalls[T]) begins() {
	if s.asleep.Load() && s.asleep.CompareAndSwap(true, false) {
		nudge(s.woken)
	}
}

func (s *stalls[T]) loop() {
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
			if _, open := s.inProgress(); open { // it began before that, and has woken nobody
				busy = s.asleep.CompareAndSwap(true, false)
			}
		}
	}
}

// look compares what is in work with what was at the last look, tells what is to be
// told, and reports whether anything may be.
func (s *stalls[T]) look() (busy bool) {
	all, open := s.running()
	before := make(map[spot]*stall, len(s.known)) // no other goroutine writes it
	for _, st := range s.known {
		before[st.spot] = st
	}
	var found, again []*stall
	known := make([]*stall, len(all))
	for i, in := range all {
		st := before[in.spot]
		delete(before, in.spot)
		attempt := in.calls.attempt()
		if st == nil {
			known[i] = &stall{spot: in.spot, records: in.n, attempt: attempt}
			continue
		}
		next := *st
		next.age, next.attempt = next.age+s.every, attempt
		if next.name == "" {
			next.name = in.text(s.watch.name)
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
		if before[st.spot] != nil && st.told > 0 {
			ended = append(ended, st)
		}
	}
	s.mu.Lock()
	s.known = known
	s.mu.Unlock()
	workers := 0
	for _, st := range known {
		if st.told > 0 {
			workers++
		}
	}
	s.tell(found, workers, false, false)
	s.tell(again, workers, false, true)
	s.tell(ended, workers, true, false)
	return open
}

// tell tells of some stalls at the same time, the oldest first. workers is how many there
// are in all.
func (s *stalls[T]) tell(some []*stall, workers int, over, again bool) {
	slices.SortStableFunc(some, func(a, b *stall) int { return cmp.Compare(b.age, a.age) })
	for _, st := range some {
		event := StallEvent{Record: st.name, Records: st.records, Attempt: st.attempt, InWork: st.age, Over: over}
		if over {
			s.watch.log.unstalled(s.ctx, event, workers, st.logged)
		} else if s.watch.log.stalled(s.ctx, event, workers, again) {
			st.logged = true
		}
		if !again {
			tell(s.ctx, s.watch.observer.Stalled, event)
		}
	}
}

// end is called when nothing is in work any more.
func (s *stalls[T]) end() {
	close(s.over)
	s.watch.mu.Lock()
	s.watch.stalls = nil
	s.watch.mu.Unlock()
}

// oldest returns what has been in progress for the longest, nil where no two looks have
// seen the same.
func (s *stalls[T]) oldest() *stall {
	s.mu.Lock()
	known := slices.Clone(s.known)
	s.mu.Unlock()
	var first *stall
	var now []inProgress[T]
	for _, st := range known {
		if st.name == "" || first != nil && st.age <= first.age {
			continue
		}
		if now == nil { // only here: most of the time there is no such record
			now, _ = s.running()
		}
		if slices.ContainsFunc(now, func(in inProgress[T]) bool { return in.spot == st.spot }) {
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
	if s == nil {
		return nil
	}
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

// stalled reports whether it has logged. Each record is news.
func (l *slogObserver) stalled(ctx context.Context, e StallEvent, workers int, again bool) bool {
	c := complaint{level: slog.LevelWarn, message: saidStalled, about: maphash.String(l.seed, e.Record), goesOn: again, until: l.clock.Clock.Now().Add(sayAgain)}
	c.attrs = []any{"record", e.Record, "attempt", e.Attempt, "for_at_least", e.InWork}
	if workers > 1 {
		c.attrs = append(c.attrs, "workers", workers)
	}
	return l.tell(ctx, c)
}

// unstalled says the end of what was logged, and that of the last one.
func (l *slogObserver) unstalled(ctx context.Context, e StallEvent, workers int, logged bool) {
	if workers == 0 {
		_, loud := l.ends(saidStalled)
		logged = logged || loud
	}
	if !logged {
		return
	}
	attrs := []any{"record", e.Record, "attempt", e.Attempt, "for_at_least", e.InWork}
	if workers > 0 {
		attrs = append(attrs, "workers", workers)
	}
	l.say(ctx, slog.LevelInfo, saidUnstalled, attrs...)
}
