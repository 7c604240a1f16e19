package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

// reader reads numbers from a position that it keeps in a store.
type reader struct {
	save    func(ctx context.Context, at int) error
	forgets bool // the bug: a save that failed is not repeated
	saved   int
	at      int // all numbers before are settled
	settled map[int]bool
	pending []int
}

const toRead = 20 // numbers

func openReader(at int, forgets bool, save func(ctx context.Context, at int) error) *reader {
	r := &reader{save: save, forgets: forgets, saved: at, at: at, settled: map[int]bool{}}
	for n := at; n < toRead; n++ {
		r.pending = append(r.pending, n)
	}
	return r
}

func (r *reader) Fetch(_ context.Context, limit int) ([]int, error) {
	return slices.Clone(r.pending[:min(limit, len(r.pending))]), nil
}

func (r *reader) Mark(ctx context.Context, records []int) error {
	before := r.at
	for _, n := range records {
		r.settled[n] = true
	}
	for r.settled[r.at] {
		r.at++
	}
	if r.at != r.saved && (!r.forgets || r.at != before) {
		if err := r.save(ctx, r.at); err != nil {
			return err
		}
		r.saved = r.at
	}
	r.pending = slices.DeleteFunc(r.pending, func(n int) bool { return slices.Contains(records, n) })
	return nil
}

// simulateReader puts faults around the store, and around the source if around is true.
func simulateReader(forgets, around bool) func(w *World) {
	return func(w *World) {
		var at int // lives through crashes
		got := map[int]bool{}
		w.Run(func(ctx context.Context) error {
			var source courier.Source[int] = openReader(at, forgets, func(ctx context.Context, next int) error {
				return w.Call(ctx, "save", func() error {
					at = next
					return nil
				})
			})
			if around {
				source = WrapSource(w, source)
			}
			ship := courier.ProcessFunc(WrapProcess(w, func(_ context.Context, n int) error {
				got[n] = true
				return nil
			}))
			return courier.NewPollingCoordinator(source, ship, w.Options(ctx)...).Start(ctx)
		})
		w.Always(func() error {
			for n := range at {
				if !got[n] {
					return fmt.Errorf("%d is saved and was not processed", n)
				}
			}
			return nil
		})
		w.Eventually("all is read", func() bool { return at == toRead })
	}
}

// A source that does not repeat a save that failed is found by faults around its store,
// and one that does passes, with faults around it as a whole too.
func TestAStoreInsideASourceFails(t *testing.T) {
	for _, around := range []bool{false, true} {
		reached := []string{"call: error", "call: lost", "call: hang", "call: slow", "crash"}
		if around {
			reached = append(reached, "fetch: error", "mark: error", "mark: lost")
		} else {
			reached = append(reached, "call: down")
		}
		Check(t, Options{Sometimes: reached}, simulateReader(false, around))
	}
	for _, around := range []bool{false, true} {
		if r := Run(t, Options{}, simulateReader(true, around)); r.Failed == nil {
			t.Error("the bug was not found")
		}
	}
}

// everything is a source with every capability, whose calls are counted.
type everything struct {
	*reader
	calls map[string]int
	due   chan struct{}
}

func (s *everything) Release(context.Context, []int, time.Duration) error {
	s.calls["release"]++
	return nil
}

func (s *everything) Fail(context.Context, []courier.FailedRecord[int]) error {
	s.calls["fail"]++
	return nil
}
func (s *everything) RenewEvery() time.Duration { return time.Second }
func (s *everything) Renew(context.Context, []int) error {
	s.calls["renew"]++
	return nil
}
func (s *everything) Identity(n int) string                    { return fmt.Sprint("number ", n) }
func (s *everything) Wake() <-chan struct{}                    { return s.due }
func (s *everything) Revoked() <-chan struct{}                 { return s.due }
func (s *everything) More() bool                               { return true }
func (s *everything) Lag(context.Context) (courier.Lag, error) { return courier.Lag{Pending: 7}, nil }
func (s *everything) Validate() error                          { return errors.New("invalid") }

// The source that is wrapped has the capabilities of the source, and no others.
func TestAWrappedSourceHasTheCapabilitiesOfTheSource(t *testing.T) {
	type (
		source   = courier.Source[int]
		releaser = courier.Releaser[int]
		failer   = courier.Failer[int]
		named    = courier.Identifier[int]
	)
	s := &everything{reader: openReader(0, false, nil), due: make(chan struct{})}
	for want, source := range map[string]source{
		"false false false": s.reader,
		"true false false": struct {
			source
			releaser
		}{s, s},
		"false true false": struct {
			source
			failer
		}{s, s},
		"false false true": struct {
			source
			named
		}{s, s},
		"true true false": struct {
			source
			releaser
			failer
		}{s, s, s},
		"true false true": struct {
			source
			releaser
			named
		}{s, s, s},
		"false true true": struct {
			source
			failer
			named
		}{s, s, s},
		"true true true": s,
	} {
		wrapped := WrapSource(nil, source)
		_, releases := wrapped.(releaser)
		_, fails := wrapped.(failer)
		_, names := wrapped.(named)
		if got := fmt.Sprint(releases, fails, names); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, full := range []bool{false, true} {
		source := source(s.reader)
		if full {
			source = s
		}
		w := WrapSource(nil, source)
		lag, err := w.(courier.Lagger).Lag(t.Context())
		for what, has := range map[string]bool{
			"RenewEvery": w.(courier.Renewer[int]).RenewEvery() > 0, "Wake": w.(courier.Waker).Wake() != nil, "Revoked": w.(courier.Revoker).Revoked() != nil,
			"More": w.(courier.Pager).More(), "Lag": lag.Pending == 7 && !errors.Is(err, courier.ErrNoLag), "Validate": w.(courier.Validator).Validate() != nil,
		} {
			if has != full {
				t.Errorf("%s: %v of a source that has it: %v", what, has, full)
			}
		}
	}
}

// Every call of a wrapped source fails on demand, by what its record is called.
func TestACallOfAWrappedSourceFails(t *testing.T) {
	s := &everything{reader: openReader(0, false, func(context.Context, int) error { return nil })}
	ended := false
	list := digest("[number 3]")
	fault := func(k Kind, what FaultKind) Fault { return Fault{What: what, Call: k, ID: list} }
	faults := []Fault{{What: Error, Call: Fetch}, fault(Mark, Lost), fault(Release, Error), fault(Fail, Lost), fault(Renew, LeaseLost)}
	o := Options{Within: time.Minute}
	r := episode(t, 1, &o, func(w *World) {
		w.Eventually("the run has ended", func() bool { return ended })
		w.Run(func(ctx context.Context) error {
			source := WrapSource[int](w, s)
			records := []int{3}
			failed := []courier.FailedRecord[int]{{Record: 3}}
			for round, want := range []struct {
				fails bool
				calls map[string]int
			}{
				{true, map[string]int{"fail": 1}}, // lost
				{false, map[string]int{"fail": 1, "release": 1, "renew": 1}},
			} {
				s.calls = map[string]int{}
				fetched, err := source.Fetch(ctx, 2)
				if (len(fetched) == 0) != want.fails {
					t.Errorf("round %d: fetched %v", round, fetched)
				}
				renewed := source.(courier.Renewer[int]).Renew(ctx, records)
				for i, err := range []error{
					err, source.Mark(ctx, records), source.(courier.Releaser[int]).Release(ctx, records, 0),
					source.(courier.Failer[int]).Fail(ctx, failed), renewed,
				} {
					if errors.Is(err, ErrInjected) != want.fails {
						t.Errorf("round %d: call %d returned %v", round, i, err)
					}
				}
				var lost *courier.BatchError
				if errors.As(renewed, &lost) != want.fails {
					t.Errorf("round %d: Renew returned %v", round, renewed)
				}
				if fmt.Sprint(s.calls) != fmt.Sprint(want.calls) {
					t.Errorf("round %d: %v, want %v", round, s.calls, want.calls)
				}
			}
			ended = true
			<-ctx.Done()
			return nil
		})
	}, scripted(faults), false)
	if len(r.Problems) > 0 {
		t.Error(r.Problems)
	}
}
