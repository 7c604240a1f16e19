package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

// met is what a call met with.
type met struct {
	effects  int
	err      error
	panicked any
	gone     bool // it ended its goroutine
	took     time.Duration
}

// meet makes one call, of the model's or of a user's, that meets with a fault. Its
// context ends after a while.
func meet(t *testing.T, f FaultKind, users bool, patience time.Duration) (m met) {
	t.Helper()
	o := Options{Within: time.Minute}
	script := []Fault{}
	if f != None {
		script = []Fault{{What: f, Call: Apply, ID: 7}}
	}
	ended := false
	r := episode(t, 1, &o, func(w *World) {
		w.Eventually("the run has ended", func() bool { return ended })
		w.Run(func(ctx context.Context) error {
			p := processOf(ctx)
			its, cancel := context.WithCancel(ctx)
			defer cancel()
			returned := make(chan struct{})
			began := w.Now()
			go func() {
				normal := false
				defer func() {
					m.panicked = recover()
					m.gone = !normal && m.panicked == nil
					m.took = w.Now() - began
					close(returned)
				}()
				if users {
					m.err = p.around(its, Apply, 7, "r", func() error { m.effects++; return nil })
				} else {
					m.err = p.await(its, Apply, 7, "r", nil, func(*call) { m.effects++ })
				}
				normal = true
			}()
			select {
			case <-returned:
			case <-p.clock.After(patience):
				cancel()
				<-returned
			}
			ended = true
			<-ctx.Done()
			return nil
		})
	}, scripted(script), false)
	if len(r.Problems) > 0 {
		t.Fatalf("%v: %v", f, r.Problems)
	}
	return m
}

// Each fault of a call has the effect that is said of it, on both kinds of calls.
func TestEveryFaultOfACallHasItsEffect(t *testing.T) {
	for _, users := range []bool{false, true} {
		well := meet(t, None, users, time.Minute)
		if well.effects != 1 || well.err != nil || well.panicked != nil || well.gone {
			t.Fatalf("a call that meets with no fault: %+v", well)
		}
		for f, want := range map[FaultKind]struct {
			effects        int
			failed         bool
			class          courier.ErrorClass
			panicked, gone bool
			least, atMost  time.Duration
		}{
			Error:     {failed: true, class: courier.ClassRetryable},
			Down:      {failed: true, class: courier.ClassRetryable},
			Permanent: {failed: true, class: courier.ClassPermanent},
			Refused:   {failed: true, class: courier.ClassNotAttempted},
			Later:     {failed: true, class: courier.ClassNotAttempted},
			Lost:      {effects: 1, failed: true, class: courier.ClassRetryable},
			Panic:     {panicked: true},
			Goexit:    {gone: true},
			Hang:      {failed: true, class: courier.ClassRetryable, least: hung, atMost: hung + time.Second},
			Slow:      {effects: 1, least: 10 * well.took, atMost: 21 * well.took},
		} {
			got := meet(t, f, users, time.Minute)
			ok := got.effects == want.effects && (got.panicked != nil) == want.panicked && got.gone == want.gone && (got.err != nil) == want.failed && got.took >= want.least
			if want.atMost > 0 {
				ok = ok && got.took <= want.atMost
			}
			if want.failed {
				ok = ok && errors.Is(got.err, ErrInjected) && courier.Classify(context.Background(), got.err) == want.class
			}
			if !ok {
				t.Errorf("%v, users %v: %+v, and none took %v", f, users, got, well.took)
			}
		}
		if got := meet(t, Hang, users, time.Second); got.effects != 0 || !errors.Is(got.err, context.Canceled) || got.took != time.Second {
			t.Errorf("a call that hangs, users %v, when its context has ended: %+v", users, got)
		}
	}
}

// Each fault of a process has the effect that is said of it.
func TestEveryFaultOfAProcessHasItsEffect(t *testing.T) {
	const after, lasts = 3 * time.Second, 20 * time.Second
	type life struct {
		began, ended time.Duration // by the world
		clock        time.Duration // how far its clock moved in 10 seconds of the world's
		effects      int
	}
	for _, f := range []FaultKind{None, Crash, Stop, Pause, Step} {
		o := Options{Within: time.Minute}
		script := []Fault{}
		if f != None {
			script = []Fault{{What: f, Call: Apply, ID: 7, After: after, For: lasts}}
		}
		var lives []*life
		r := episode(t, 1, &o, func(w *World) {
			w.Eventually("half a minute has passed", func() bool { return w.Now() >= time.Minute/2 })
			w.later(time.Minute/2, func() bool { return true })
			w.Run(func(ctx context.Context) error {
				p, l := processOf(ctx), &life{began: w.Now()}
				lives = append(lives, l)
				defer func() { l.ended = w.Now() }()
				apply := func() { _ = p.await(context.WithoutCancel(ctx), Apply, 7, "r", nil, func(*call) { l.effects++ }) }
				now, began := p.clock.Now(), w.Now()
				apply()
				<-p.clock.After(10 * time.Second)
				l.clock = p.clock.Now().Sub(now) - (w.Now() - began)
				apply()
				<-ctx.Done()
				return nil
			})
		}, scripted(script), false)
		if len(r.Problems) > 0 {
			t.Fatalf("%v: %v", f, r.Problems)
		}
		first := lives[0]
		var ok bool
		switch f {
		case None:
			ok = len(lives) == 1 && first.clock == 0 && first.effects == 2
		case Crash: // what it does afterwards has no effect
			ok = len(lives) == 2 && first.effects == 1 && lives[1].began >= after+lasts
		case Stop: // it ends when it has done its work
			ok = len(lives) == 2 && first.effects == 2 && first.ended >= 10*time.Second && lives[1].began >= first.ended+lasts
		case Pause: // all that it waits for comes later
			ok = len(lives) == 1 && first.effects == 2 && first.clock == 0 && r.Took >= lasts+10*time.Second
		case Step:
			ok = len(lives) == 1 && first.effects == 2 && first.clock == lasts
		}
		if !ok {
			t.Errorf("%v: %d lives, the first %+v, after %v", f, len(lives), *first, r.Took)
		}
	}
}

// The faults of the model's source.
func TestEveryFaultOfTheSourceHasItsEffect(t *testing.T) {
	strikes := func(f FaultKind, k Kind, id uint64) func(m *model) {
		return func(m *model) { m.script = map[callID][]Fault{{kind: k, id: id}: {{What: f}}} }
	}
	var records []order
	var err error
	fetch := func(g *gear) { records, err = g.s.Fetch(g.ctx, 3) }
	_, _ = (&rogue{act: fetch, plan: strikes(Twice, Fetch, 0)}).run(t)
	if len(records) != 4 || err != nil || records[3] != records[0] && records[3] != records[1] && records[3] != records[2] {
		t.Errorf("twice: %v, %v", records, err)
	}
	_, _ = (&rogue{act: fetch, plan: strikes(Partly, Fetch, 0)}).run(t)
	if len(records) != 3 || !errors.Is(err, ErrInjected) {
		t.Errorf("partly: %v, %v", records, err)
	}
	_, _ = (&rogue{act: fetch, plan: strikes(Lost, Fetch, 0)}).run(t)
	if len(records) != 0 || !errors.Is(err, ErrInjected) {
		t.Errorf("lost: %v, %v", records, err)
	}
	renew := func(g *gear) { err = g.s.Renew(g.ctx, g.fetch(2)) }
	renewing := func(s *settings) { s.Renewing, s.Lease = true, time.Minute }
	_, _ = (&rogue{act: renew, fixed: renewing, plan: strikes(LeaseLost, Renew, 1)}).run(t)
	var lost *courier.BatchError
	if !errors.As(err, &lost) || len(lost.Failures) != 2 {
		t.Errorf("lease lost: %v", err)
	}
}

// Every value that a call may panic with comes.
func TestEveryPanicComes(t *testing.T) {
	seen := map[string]bool{}
	for n := range uint32(1000) {
		c := call{callID: callID{kind: Apply, n: n, id: 7}, p: &Process{w: &World{seed: 1}}, err: injured(7, "on purpose")}
		value := c.thrown()
		seen[reflect.TypeOf(value).String()+map[bool]string{true: " nil"}[isNil(value)]] = true
	}
	if len(seen) != 10 {
		t.Errorf("%d values, want 10: %v", len(seen), seen)
	}
}

func isNil(value any) bool {
	v := reflect.ValueOf(value)
	return (v.Kind() == reflect.Pointer || v.Kind() == reflect.Slice) && v.IsNil()
}

// Every form of the error of an apply comes, and tells which record it is about.
func TestEveryErrorOfAnApplyComes(t *testing.T) {
	w := &World{seed: 1}
	for k, want := range map[FaultKind]int{Error: 7, Permanent: 5, Refused: 6, Later: 7} {
		seen := map[string]bool{}
		for n := range uint32(1000) {
			err := w.injected(k, callID{kind: Apply, n: n, id: 7}, "on purpose")
			if !errors.Is(err, ErrInjected) || blamed(err) != 7 {
				t.Errorf("%v does not tell its call: %v", k, err)
			}
			if after := postponed(err); (after > 0) != (k == Later) || after > 30*time.Second {
				t.Errorf("%v asks for %v: %v", k, after, err)
			}
			seen[fmt.Sprintf("%T %v", err, err)] = true
			if plain := w.injected(k, callID{kind: Mark, n: n, id: 7}, "on purpose"); plain.Error() != "on purpose" {
				t.Errorf("a mark fails with the error of an apply: %v", plain)
			}
		}
		if len(seen) != want {
			t.Errorf("%v: %d forms, want %d: %v", k, len(seen), want, seen)
		}
	}
}

// A call that was cancelled while it waited is out of what tries again: its memory is
// another call's soon.
func TestACancelledCallTriesNoMore(t *testing.T) {
	o := Options{Faults: []Fault{}}.withDefaults()
	waiting := -1
	r := episode(t, 1, &o, func(w *World) {
		w.Run(func(ctx context.Context) error {
			p := processOf(ctx)
			cancelled, cancel := context.WithCancel(ctx)
			defer cancel()
			c := p.do(cancelled, Fetch, 1, "nothing", nil, func(c *call) {
				c.wait = true
				w.later(time.Millisecond, func() bool { cancel(); return true })
			})
			waiting = len(w.blocked)
			p.done(c)
			<-ctx.Done()
			return nil
		})
		w.Eventually("it has returned", func() bool { return waiting >= 0 })
	}, map[callID][]Fault{}, false)
	if len(r.Problems) > 0 || waiting != 0 {
		t.Errorf("%d calls wait, %v", waiting, r.Problems)
	}
}

// What comes to the library's own memory at one instant takes turns, in the order of what
// it is about, and no time passes.
func TestTurnsTakeNoTime(t *testing.T) {
	o := Options{}.withDefaults()
	for range 20 {
		var order []uint64
		r := episode(t, 1, &o, func(w *World) {
			w.Run(func(ctx context.Context) error {
				p := processOf(ctx)
				began := w.Now()
				var all sync.WaitGroup
				for id := range uint64(8) {
					all.Go(func() {
						p.takeTurn(ctx, 8-id)
						order = append(order, id)
					})
				}
				all.Wait()
				if w.Now() != began {
					w.Fail("turns took %v", w.Now()-began)
				}
				<-ctx.Done()
				return nil
			})
			w.Eventually("all had their turn", func() bool { return len(order) == 8 })
		}, map[callID][]Fault{}, false)
		if len(r.Problems) > 0 || !slices.IsSortedFunc(order, func(a, b uint64) int { return cmp.Compare(b, a) }) {
			t.Fatalf("%v, %v", order, r.Problems)
		}
	}
}
