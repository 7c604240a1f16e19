package courier_test

// Fan-outs under coordinators: dead branches, poison, pauses.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// fanOutWorld is three destinations with a stack each, the second of which is
// down for an hour.
type fanOutWorld struct {
	a, b, c *destination
	applier courier.Applier[int]
	missed  missed
}

// has returns how often a destination was given each record, and how often it
// was called in vain.
func (w *fanOutWorld) has(d *destination) (applied map[int]int, during int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.applied), d.during
}

func newFanOutWorld(inBatches bool, config courier.FanOutConfig[int]) *fanOutWorld {
	w := &fanOutWorld{}
	for i, d := range []**destination{&w.a, &w.b, &w.c} {
		*d = &destination{began: time.Now(), poison: -1, applied: map[int]int{}}
		var a courier.Applier[int] = *d
		if inBatches {
			a = batches{*d}
		}
		stack, _ := courier.ResilientApplier(a, nil)
		if i < len(config.Branches) {
			config.Branches[i].Applier = stack
		}
	}
	w.b.outage = time.Hour
	config.OnBranchFailure = w.missed.note
	w.applier = courier.NewFanOutFromConfig(config)
	return w
}

// F-3 and F-2 through the coordinators: a dead branch has nothing redelivered to
// the healthy ones, which go on when it is back. While its breaker is open there
// is one probe at a time.
func TestF3_ADeadBranchRedeliversNothingToTheOthers(t *testing.T) {
	const n = 500
	for _, inBatches := range []bool{false, true} {
		for _, kind := range []string{"polling", "streaming", "streaming, released"} {
			t.Run(fmt.Sprintf("%s, %s", kind, batched(inBatches)), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newFanOutWorld(inBatches, courier.FanOutConfig[int]{Branches: []courier.Branch[int]{{Name: "a"}, {Name: "b"}, {Name: "c"}}, Identity: strconv.Itoa})
					var stop func() error
					var done func() int
					switch kind {
					case "polling":
						source := newShelf(numbers(n)...)
						stop = start(t, courier.NewPollingCoordinator(source, w.applier, quiet))
						done = func() int { return n - len(source.left()) }
					case "streaming":
						var marked collector
						ch := make(chan int, n)
						for i := range n {
							ch <- i
						}
						stop = start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), w.applier, quiet, courier.WithStreamWorkers(4)))
						done = func() int { return len(marked.all()) }
					default:
						source := newLeasing(numbers(n)...)
						source.wait = true
						stop = start(t, courier.NewStreamingCoordinator(source, w.applier, quiet, courier.WithStreamWorkers(4)))
						done = func() int { return len(source.marked()) }
					}
					time.Sleep(59 * time.Minute)
					synctest.Wait()
					require.Zero(t, done())
					_, during := w.has(w.b)
					require.Less(t, during, 120)
					has, _ := w.has(w.a)
					require.Less(t, len(has), n, "it waits too")
					time.Sleep(10 * time.Minute)
					require.Equal(t, n, done())
					require.NoError(t, stop())
					for name, d := range map[string]*destination{"a": w.a, "b": w.b, "c": w.c} {
						require.Len(t, d.applied, n, name)
						for r, times := range d.applied {
							require.Equal(t, 1, times, "record %d at %s", r, name)
						}
					}
					require.Empty(t, w.missed.take())
				})
			})
		}
	}
}

// F-3: an optional branch, or one beyond the quorum, holds nobody up, whatever
// its breaker says; and it is told what it missed.
func TestF3_ADeadBranchThatIsNotNeededHoldsNobodyUp(t *testing.T) {
	const n = 500
	for _, inBatches := range []bool{false, true} {
		for kind, config := range map[string]courier.FanOutConfig[int]{
			"optional": {Branches: []courier.Branch[int]{{Name: "a"}, {Name: "b", Optional: true}, {Name: "c"}}},
			"quorum":   {Branches: []courier.Branch[int]{{Name: "a"}, {Name: "b"}, {Name: "c"}}, Quorum: 2},
		} {
			t.Run(fmt.Sprintf("%s, %s", kind, batched(inBatches)), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					config.Branches = slices.Clone(config.Branches)
					w := newFanOutWorld(inBatches, config)
					source := newShelf(numbers(n)...)
					stop := start(t, courier.NewPollingCoordinator(source, w.applier, quiet))
					time.Sleep(time.Minute)
					synctest.Wait()
					require.Empty(t, source.left())
					require.Len(t, w.missed.take(), n)
					_, during := w.has(w.b)
					require.Less(t, during, 20)
					time.Sleep(2 * time.Hour)
					source.add(n)
					time.Sleep(time.Minute)
					require.NoError(t, stop())
					require.Equal(t, 1, w.b.applied[n], "it is back")
					require.Empty(t, w.missed.take())
					for _, d := range []*destination{w.a, w.c} {
						require.Len(t, d.applied, n+1)
						for r, times := range d.applied {
							require.Equal(t, 1, times, "record %d", r)
						}
					}
				})
			})
		}
	}
}

// Poison for one branch while another is down: the first one's queue gets it
// once, and the other branches get it too.
func TestF3_PoisonInABranchWhileAnotherIsDown(t *testing.T) {
	const n = 200
	for _, inBatches := range []bool{false, true} {
		t.Run(batched(inBatches), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &destination{began: time.Now(), poison: 7, applied: map[int]int{}}
				b := &destination{began: time.Now(), poison: -1, outage: time.Hour, applied: map[int]int{}}
				appliers := []courier.Applier[int]{a, b}
				if inBatches {
					appliers = []courier.Applier[int]{batches{a}, batches{b}}
				}
				queues := make([]courier.DLQ[int], 2)
				for i := range appliers {
					appliers[i], queues[i] = courier.ResilientApplier(appliers[i], nil)
				}
				source := newShelf(numbers(n)...)
				stop := start(t, courier.NewPollingCoordinator(source, courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(appliers...), Identity: strconv.Itoa}), quiet))
				for i := range 20 {
					time.Sleep(10 * time.Minute)
					source.add(n + i)
				}
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				parked, _ := queues[0].Receive(t.Context(), 10)
				require.Len(t, parked, 1)
				require.Equal(t, 7, parked[0].Record)
				parked, _ = queues[1].Receive(t.Context(), 10)
				require.Empty(t, parked)
				require.Len(t, a.applied, n+20-1)
				require.Len(t, b.applied, n+20)
				for _, d := range []*destination{a, b} {
					for r, times := range d.applied {
						require.Equal(t, 1, times, "record %d", r)
					}
				}
			})
		})
	}
}

// C-2: nothing is fetched while the breaker of a branch is open that no record
// can do without, and only then.
func TestC2_NothingIsFetchedForAFanOutWhoseBreakerIsOpen(t *testing.T) {
	type branches = []courier.Branch[int]
	for _, test := range []struct {
		name    string
		config  func(open courier.Applier[int], ok courier.Applier[int]) courier.FanOutConfig[int]
		fetches bool
	}{
		{"required", func(open, ok courier.Applier[int]) courier.FanOutConfig[int] {
			return courier.FanOutConfig[int]{Branches: named(ok, open)}
		}, false},
		{"cloned", func(open, ok courier.Applier[int]) courier.FanOutConfig[int] {
			return courier.FanOutConfig[int]{Branches: named(ok, open), Clone: func(r int) int { return r }}
		}, false},
		{"optional", func(open, ok courier.Applier[int]) courier.FanOutConfig[int] {
			return courier.FanOutConfig[int]{Branches: branches{{"a", ok, false}, {"b", open, true}}}
		}, true},
		{"quorum", func(open, ok courier.Applier[int]) courier.FanOutConfig[int] {
			return courier.FanOutConfig[int]{Branches: named(ok, open), Quorum: 1}
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBreaker(1)
				b.ForceOpen()
				s := &sink[int]{}
				config := test.config(courier.NewCircuitBreakerApplier(always(nil), b), s)
				config.OnBranchFailure = new(missed).note
				source := newShelf(numbers(5)...)
				stop := start(t, courier.NewPollingCoordinator(source, courier.WithRetry(courier.NewFanOutFromConfig(config)), quiet))
				time.Sleep(time.Hour)
				require.Equal(t, test.fetches, source.fetchCount() > 0)
				require.Equal(t, test.fetches, len(source.left()) == 0)
				b.Reset()
				time.Sleep(10 * time.Minute)
				require.NoError(t, stop())
				require.Equal(t, numbers(5), s.got())
			})
		})
	}
}

// moody is a destination of a random world: down for a while, with records that
// fail a few times, or for good.
type moody struct {
	mu      sync.Mutex
	began   time.Time
	from    time.Duration // down
	to      time.Duration
	fails   map[int]int // how often more, by record
	refused map[int]bool
	has     map[int]int
}

func (m *moody) Apply(_ context.Context, r int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	since := time.Since(m.began)
	switch {
	case m.from <= since && since < m.to:
		return errors.New("connection refused")
	case m.refused[r]:
		return courier.Permanent(errTest)
	case m.fails[r] > 0:
		m.fails[r]--
		return errTest
	}
	m.has[r]++
	return nil
}

// Random destinations, each behind a stack of its own, under each coordinator:
// every required branch has each record once, or parked it once; an optional
// one has it, parked it, or is reported.
func TestFanOut_PropertyThroughTheCoordinators(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		minutes, record := rapid.IntRange(0, 30), rapid.IntRange(0, worldRecords-1)
		w := randomWorld{
			required: rapid.IntRange(1, 3).Draw(rt, "required"),
			kind:     rapid.SampledFrom([]string{"polling", "streaming"}).Draw(rt, "coordinator"),
			size:     rapid.IntRange(1, 30).Draw(rt, "batch size"),
		}
		for range w.required + rapid.IntRange(0, 1).Draw(rt, "optional") {
			d := &moody{fails: map[int]int{}, refused: map[int]bool{}, has: map[int]int{}}
			d.from = time.Duration(minutes.Draw(rt, "down from")) * time.Minute
			d.to = d.from + time.Duration(minutes.Draw(rt, "down for"))*time.Minute
			for range rapid.IntRange(0, 5).Draw(rt, "failing") {
				d.fails[record.Draw(rt, "record")] = rapid.IntRange(1, 3).Draw(rt, "times")
			}
			for range rapid.IntRange(0, 2).Draw(rt, "refused") {
				d.refused[record.Draw(rt, "record")] = true
			}
			w.destinations = append(w.destinations, d)
			w.inBatches = append(w.inBatches, rapid.Bool().Draw(rt, "takes batches"))
		}
		var problem error
		synctest.Test(t, func(t *testing.T) { problem = w.run(t) })
		if problem != nil {
			rt.Fatal(problem)
		}
	})
}

const worldRecords = 60

type randomWorld struct {
	destinations []*moody
	inBatches    []bool
	required     int
	kind         string
	size         int
}

func (w *randomWorld) run(t *testing.T) error {
	var heard missed
	config := courier.FanOutConfig[int]{Identity: strconv.Itoa, OnBranchFailure: heard.note}
	queues := make([]courier.DLQ[int], len(w.destinations))
	for b, d := range w.destinations {
		d.began = time.Now()
		branch := courier.Branch[int]{Name: strconv.Itoa(b), Applier: d, Optional: b >= w.required}
		if w.inBatches[b] {
			branch.Applier = eachOfBatch[int]{d}
		}
		branch.Applier, queues[b] = courier.ResilientApplier(branch.Applier, nil)
		config.Branches = append(config.Branches, branch)
	}
	applier := courier.NewFanOutFromConfig(config)
	size := courier.WithBatchSize(w.size)
	var stop func() error
	var add func(...int)
	var marked func() []int
	switch w.kind {
	case "polling":
		source := newShelf[int]()
		add, marked = source.add, source.marked
		stop = start(t, courier.NewPollingCoordinator(source, applier, quiet, size))
	default:
		var done collector
		ch := make(chan int, worldRecords)
		add, marked = func(records ...int) { ch <- records[0] }, done.all
		stop = start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, done.mark), applier, quiet, size, courier.WithStreamWorkers(3)))
	}
	for r := range worldRecords {
		add(r)
		if r%3 == 0 {
			time.Sleep(3 * time.Minute)
		}
	}
	time.Sleep(2 * time.Hour)
	if err := stop(); err != nil {
		return fmt.Errorf("stopped with %w", err)
	}
	if m := slices.Sorted(slices.Values(marked())); !slices.Equal(m, numbers(worldRecords)) {
		return fmt.Errorf("marked %v", m)
	}
	reports := map[string]bool{}
	for _, report := range heard.take() {
		key, _, _ := strings.Cut(report, ":")
		reports[key] = true
	}
	for b, d := range w.destinations {
		parked, _ := queues[b].Receive(t.Context(), 1000)
		times := maps.Clone(d.has)
		for _, letter := range parked {
			times[letter.Record]++
		}
		for r := range worldRecords {
			goesWithout := b >= w.required && times[r] == 0 && reports[fmt.Sprintf("%d/%d", b, r)]
			if times[r] != 1 && !goesWithout {
				return fmt.Errorf("branch %d has or parked record %d %d times", b, r, times[r])
			}
		}
	}
	return nil
}

// While the branches of a record wait, each is asked again at its own time; what one of
// them asks for is not the others'; and a branch that takes nothing for now pauses the
// intake, whoever waits beside it.
func TestFanOut_BranchesThatWait(t *testing.T) {
	t.Run("each at its own time", func(t *testing.T) {
		both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
			began := time.Now()
			var mu sync.Mutex
			calls := map[string][]time.Duration{}
			branch := func(name string, delay time.Duration) courier.Applier[int] {
				return courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
					mu.Lock()
					defer mu.Unlock()
					calls[name] = append(calls[name], time.Since(began))
					if len(calls[name]) == 1 {
						return errTest
					}
					return nil
				}), courier.RetryPolicy{InitialDelay: delay, Jitter: courier.NoJitter})
			}
			source.add(1)
			opt := courier.WithWorkers(2)
			if source.wait {
				opt = courier.WithStreamWorkers(2)
			}
			stop := start(t, make(courier.NewFanOutApplier(branch("a", 4*time.Second), branch("b", time.Second), branch("c", 2*time.Second)), opt))
			time.Sleep(time.Minute)
			require.NoError(t, stop())
			require.Equal(t, map[string][]time.Duration{"a": {0, 4 * time.Second}, "b": {0, time.Second}, "c": {0, 2 * time.Second}}, calls)
		})
	})
	t.Run("what one asks for", func(t *testing.T) {
		both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
			source.add(1)
			retried := courier.NewRetryableApplier(always(errTest), courier.RetryPolicy{InitialDelay: 8 * time.Second, Jitter: courier.NoJitter})
			opt := courier.WithWorkers(2)
			if source.wait {
				opt = courier.WithStreamWorkers(2)
			}
			stop := start(t, make(courier.NewFanOutApplier(retried, always(courier.Later(errTest, 9*time.Second))), opt))
			time.Sleep(time.Second)
			require.NoError(t, stop())
			require.NotEmpty(t, source.afters)
			require.Zero(t, slices.Max(source.afters), "the retry may go on at once with another coordinator")
		})
	})
	t.Run("an outage", func(t *testing.T) {
		both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
			source.add(numbers(20)...)
			s := &sink[int]{}
			open := courier.ProcessFunc(func(context.Context, int) error {
				return &courier.OpenError{Cause: errTest, Until: time.Now().Add(time.Minute)}
			})
			waits := courier.ProcessFunc(func(ctx context.Context, r int) error {
				_ = s.Apply(ctx, r)
				return courier.Later(errTest, 10*time.Millisecond)
			})
			opts := []courier.Option{courier.WithBatchSize(2), courier.WithWorkers(2)}
			if source.wait {
				opts[1] = courier.WithStreamWorkers(2)
			}
			c := make(courier.NewFanOutApplier(waits, open), opts...)
			stop := start(t, c)
			time.Sleep(30 * time.Second)
			require.ErrorIs(t, c.Ready(), courier.ErrOpen)
			require.LessOrEqual(t, s.called(), 2)
			require.NoError(t, stop())
		})
	})
}

func TestF3_ADeadBranchBeyondTheQuorumAndPoisonStarveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := courier.WithCircuitBreaker(always(errTest))
		poison := failsOn(map[int]error{0: errTest, 5: errTest})
		fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(dead, always(nil), poison), Quorum: 2, OnBranchFailure: new(missed).note})
		source := newShelf(numbers(200)...)
		run(t, source, fan, time.Hour)
		require.Equal(t, []int{0, 5}, source.left())
	})
}

// Likewise one that asks for the record later, or by the breaker of a key: nobody waits for it
// whose record is applied.
func TestF3_ABranchThatIsNotNeededHoldsNobodyUpByAsking(t *testing.T) {
	const n = 200
	for ask, asking := range map[string]func() courier.Applier[int]{
		"breaker of a key": func() courier.Applier[int] {
			dead, _ := courier.ResilientApplier(always(errTest), &courier.ResilientConfig[int]{BreakerKey: byRest(2)})
			return dead
		},
		"later": func() courier.Applier[int] { return always(courier.Later(errTest, time.Hour)) },
	} {
		for kind, config := range map[string]courier.FanOutConfig[int]{
			"optional": {Branches: []courier.Branch[int]{{Name: "a"}, {Name: "b", Optional: true}}},
			"quorum":   {Branches: []courier.Branch[int]{{Name: "a"}, {Name: "b"}}, Quorum: 1},
		} {
			for shape, well := range map[string]courier.Applier[int]{
				"plain": always(nil), "batch": courier.BatchProcessFunc(func(context.Context, []int) error { return nil }),
			} {
				t.Run(fmt.Sprintf("%s, %s, %s", ask, kind, shape), func(t *testing.T) {
					both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
						var missed missed
						config := config
						config.Branches, config.OnBranchFailure = slices.Clone(config.Branches), missed.note
						config.Branches[0].Applier, config.Branches[1].Applier = well, asking()
						source.add(numbers(n)...)
						stop := start(t, make(courier.NewFanOutFromConfig(config), workersOf(source, 4)))
						time.Sleep(time.Minute)
						synctest.Wait()
						require.Len(t, missed.take(), n)
						require.NoError(t, stop())
						require.Len(t, source.marked(), n)
					})
				})
			}
		}
	}
}

// A record of which the quorum is reached, and which goes back to the source while another
// branch waits for its next attempt, does not go to the branches again that have it.
func TestF2_ARecordThatGoesBackInMidRetryIsKnownAgain(t *testing.T) {
	for kind, config := range map[string]courier.FanOutConfig[int]{
		"optional": {Branches: []courier.Branch[int]{{Name: "a"}, {Name: "b", Optional: true}}},
		"quorum":   {Branches: []courier.Branch[int]{{Name: "a"}, {Name: "b"}}, Quorum: 1},
	} {
		t.Run(kind, func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				var well sink[int]
				config := config
				config.Branches, config.Identity, config.OnBranchFailure = slices.Clone(config.Branches), strconv.Itoa, new(missed).note
				config.Branches[0].Applier = &well
				config.Branches[1].Applier = courier.NewRetryableApplier(always(errTest), courier.RetryPolicy{InitialDelay: time.Hour, MaxDelay: time.Hour})
				fan := courier.NewFanOutFromConfig(config)
				source.add(1)
				for range 3 {
					stop := start(t, make(fan, workersOf(source, 4)))
					time.Sleep(time.Minute)
					require.NoError(t, stop())
				}
				require.NotEmpty(t, source.released)
				require.Equal(t, 1, well.called())
			})
		})
	}
}

// A retry around a fan-out, and a branch whose breaker of a key is open: the others do not get
// the record with each of its probes.
func TestF3_ARetryAroundAFanOutKeepsItsAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var well sink[int]
		keyed := courier.NewKeyedCircuitBreakerApplier(always(errTest), byRest(1), courier.BreakerPolicy{FailureThreshold: 3})
		fan := courier.NewRetryableApplier(courier.NewFanOutApplier[int](&well, keyed), courier.RetryPolicy{MaxAttempts: 10})
		stop := start(t, courier.NewPollingCoordinator[int](newShelf(1), fan, quiet, courier.WithWorkers(4)))
		time.Sleep(time.Minute)
		first := well.called()
		time.Sleep(3 * time.Hour)
		require.NoError(t, stop())
		require.Equal(t, first, well.called())
	})
}

// Of batches in order, a record for which a branch waits is not overtaken in that branch when
// another branch is due first.
func TestD4_ABranchThatWaitsIsNotOvertaken(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		first, second := newOrdered(1), newOrdered(1)
		branch := func(o *ordered, delay time.Duration) courier.Applier[int] {
			o.fates[0] = fate{"fail", 1}
			return courier.NewRetryableApplier[int](o, courier.RetryPolicy{InitialDelay: delay, Jitter: courier.NoJitter})
		}
		fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(branch(first, time.Second), branch(second, 3*time.Second)), Identity: strconv.Itoa})
		source.add(0, 1, 2)
		stop := start(t, make(fan, courier.WithOrderKey(byRest(1))))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		for _, o := range []*ordered{first, second} {
			require.Equal(t, []int{0, 1, 2}, o.applied)
			require.Empty(t, o.problems)
		}
	})
}
