package courier_test

// Outages of the destination or the source: the coordinator beside a breaker (C rules).

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A probe that was not begun says nothing of the destination.
func TestOutage_Stream_AProbeThatWasNotBegunResumesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		began := time.Now()
		breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, OpenFor: time.Minute})
		s := &sink[int]{fail: func(context.Context, int, int) error {
			if time.Since(began) < time.Hour {
				return errTest
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(6, false), nop[[]int]),
			courier.NewCircuitBreakerApplier[int](s, breaker), courier.WithOrderKey(func(r int) string {
				if r >= 3 {
					panic(errors.New("no key"))
				}
				return byRest(10)(r)
			}), courier.WithObserver(told.Observer()), quiet))
		time.Sleep(30 * time.Minute)
		resumed := courierttest.EventsOf[courier.ResumeEvent](&told)
		_ = stop()
		require.Empty(t, resumed)
	})
}

// After a probe that went well the others come at once, and not after the interval.
func TestOutage_AfterAGoodProbeTheOthersComeAtOnce(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		first := onSecond(func() {}, errTest)
		c := courier.NewPollingCoordinator(r.LeasingSource(24*time.Hour, 1, 2, 3), courier.NewCircuitBreakerApplier(applierOf(first), exactBreaker(nil)), quiet, courier.WithInterval(time.Hour))
		courierttest.Start(t, c)
		time.Sleep(longWait + 5*time.Second)
		require.EqualValues(t, 3, c.Stats().Marked)
	})
}

// Of two breakers that are open, the pause is until the later one may be probed.
func TestOutage_TheLaterOfTwoBreakersIsWaitedFor(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		long := exactBreaker(nil, func(p *courier.BreakerPolicy) { p.OpenFor, p.MaxOpenFor = 6*longWait, 6*longWait })
		short := exactBreaker(nil)
		began := time.Now()
		_ = courier.NewCircuitBreakerApplier(always(errTest), long).Apply(t.Context(), 1)
		_ = courier.NewCircuitBreakerApplier(always(errTest), short).Apply(t.Context(), 1)
		a := courier.NewCircuitBreakerApplier(courier.NewCircuitBreakerApplier(always(nil), short), long)
		courierttest.Start(t, courier.NewPollingCoordinator(newShelf(1), a, quiet, courier.WithObserver(told.Observer())))
		time.Sleep(longWait / 2)
		events := courierttest.EventsOf[courier.PauseEvent](&told)
		require.NotEmpty(t, events)
		require.Equal(t, began.Add(6*longWait), events[0].Until)
	})
}

// counting counts how often something is waited for.
type counting struct{ n atomic.Int64 }

func (*counting) Now() time.Time { return time.Now() }
func (c *counting) After(d time.Duration) <-chan time.Time {
	c.n.Add(1)
	return time.After(d)
}

// C-2: a coordinator asks a breaker that it shares before it fetches.
func TestC2_NothingIsFetchedForAnOpenBreaker(t *testing.T) {
	for name, coordinator := range map[string]func(courier.Source[int], courier.Applier[int]) interface{ Start(context.Context) error }{
		"polling": func(s courier.Source[int], a courier.Applier[int]) interface{ Start(context.Context) error } {
			return courier.NewPollingCoordinator(s, a, quiet)
		},
		"streaming": func(s courier.Source[int], a courier.Applier[int]) interface{ Start(context.Context) error } {
			return courier.NewStreamingCoordinator(s, a, quiet)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBreaker(1)
				_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1) // another pipeline's
				source := newLeasing(numbers(5)...)
				source.wait = true
				s := &sink[int]{}
				stop := start(t, coordinator(source, courier.NewCircuitBreakerApplier[int](s, b)))
				time.Sleep(10*time.Second - time.Millisecond)
				synctest.Wait()
				require.Zero(t, source.fetchCount())
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.ElementsMatch(t, numbers(5), s.got())
			})
		})
	}
}

// C-3: in an hour without the destination, each open period is one call of it, and one fetch
// and two timers at the most, whatever the interval.
func TestC3_AnOpenPeriodIsOneProbeAndNothingElse(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		for _, workers := range []int{1, 8} {
			for _, batches := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d workers, %s", coordinatorOf(streaming), workers, batched(batches)), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var calls []time.Time
						var mu sync.Mutex
						a := courier.ProcessFunc(func(context.Context, int) error {
							mu.Lock()
							defer mu.Unlock()
							calls = append(calls, time.Now())
							return errTest
						})
						if batches {
							a = eachOfBatch[int]{a}
						}
						b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Minute, DisableJitter: true})
						a = courier.NewCircuitBreakerApplier(a, b)
						var clock counting
						var told courierttest.ObserverRecorder
						opts := []courier.Option{quiet, courier.WithClock(&clock), courier.WithObserver(told.Observer()), courier.WithFastPolling(), courier.WithWorkers(workers)}
						source := newLeasing(numbers(100)...)
						var c running
						if source.wait = streaming; streaming {
							opts[3], opts[4] = courier.WithStreamWorkers(workers), courier.WithBatchSize(10)
							c = courier.NewStreamingCoordinator(source, a, opts...)
						} else {
							c = courier.NewPollingCoordinator(source, a, opts...)
						}
						stop := start(t, c)
						time.Sleep(time.Minute - 1)
						mu.Lock()
						atFirst := len(calls)
						mu.Unlock()
						timers, fetches := clock.n.Load(), len(courierttest.EventsOf[courier.FetchEvent](&told))
						const periods = 60
						time.Sleep(periods * time.Minute)
						timers, fetches = clock.n.Load()-timers, len(courierttest.EventsOf[courier.FetchEvent](&told))-fetches
						require.NoError(t, stop())
						probes := calls[atFirst:]
						require.Len(t, probes, periods)
						for i := 1; i < len(probes); i++ {
							require.Equal(t, time.Minute, probes[i].Sub(probes[i-1]))
						}
						require.LessOrEqual(t, fetches, periods)
						require.LessOrEqual(t, timers, int64(2*periods))
					})
				})
			}
		}
	}
}

// C-3, C-4: while the breaker is forced open nobody is busy, and afterwards all
// goes on.
func TestC3_AForcedOpenBreakerKeepsNobodyBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		b.ForceOpen()
		source := newShelf(numbers(5)...)
		s := &sink[int]{}
		stop := start(t, courier.NewPollingCoordinator(source, courier.NewCircuitBreakerApplier[int](s, b), quiet))
		time.Sleep(24 * time.Hour)
		require.Zero(t, source.fetchCount())
		b.Reset()
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, numbers(5), s.got())
	})
}

// C-1: what an outage leaves stays pending, unmarked and in order; only the
// record that showed the destination to be well went before.
func TestC1_WhatAnOutageLeavesStaysPendingAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), outage: time.Minute, poison: -1, applied: map[int]int{}}
		var order []int
		stack, _ := courier.ResilientApplier(courier.ProcessFunc(func(ctx context.Context, r int) error {
			err := d.Apply(ctx, r)
			if err == nil {
				order = append(order, r)
			}
			return err
		}), nil)
		source := newShelf(numbers(10)...)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(50 * time.Second)
		synctest.Wait()
		require.Equal(t, numbers(10), source.left())
		require.Empty(t, source.marked())
		time.Sleep(2 * time.Minute)
		require.NoError(t, stop())
		require.Len(t, order, 10)
		require.IsIncreasing(t, order[1:])
	})
}

// C-4: after an open period one record goes for each probe slot, and no other
// until it is back.
func TestC4_OneRecordForAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, inflight, most atomic.Int32
		var probing atomic.Bool
		b := newBreaker(1)
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
			if calls.Add(1) == 1 {
				return errTest
			}
			if n := inflight.Add(1); probing.Load() && n > most.Load() {
				most.Store(n)
			}
			time.Sleep(10 * time.Second)
			inflight.Add(-1)
			return nil
		}), b)
		source := newLeasing(numbers(20)...)
		source.wait = true
		probing.Store(true)
		require.ErrorIs(t, applier.Apply(t.Context(), 0), courier.ErrOpen)
		stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet, courier.WithStreamWorkers(8)))
		time.Sleep(19 * time.Second) // open for 10 s, then the probe is out
		synctest.Wait()
		require.EqualValues(t, 1, most.Load())
		require.EqualValues(t, 2, calls.Load())
		probing.Store(false)
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.ElementsMatch(t, numbers(20), source.marked())
	})
}

// After an outage bad records at the head do not hide that the destination is well.
func TestC6_TheHeadIsBadAfterAnOutage(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		t.Run(coordinatorOf(streaming), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ends := time.Now().Add(time.Hour)
				var healthy time.Time
				stack, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
					if r < 50 || time.Now().Before(ends) {
						return errTest
					}
					if healthy.IsZero() {
						healthy = time.Now()
					}
					return nil
				}), nil)
				source := newLeasing(numbers(50)...)
				source.wait = streaming
				var c running = courier.NewPollingCoordinator(source, stack, quiet)
				if streaming {
					c = courier.NewStreamingCoordinator(source, stack, quiet)
				}
				stop := start(t, c)
				for i := range 1200 {
					time.Sleep(6 * time.Second)
					source.add(1000 + i)
				}
				require.NoError(t, stop())
				require.WithinRange(t, healthy, ends, ends.Add(10*time.Minute)) // 18 before
			})
		})
	}
}

// C-6 and P-1 to P-4: 100 healthy records and one poison record that looks
// transient, through outages of any length, for every legal threshold. No
// healthy record is parked, the poison record is, nothing is applied twice, and
// no call is made while the breaker is open.
func TestC6_AnOutageParksNoHealthyRecordAndPoisonIsParked(t *testing.T) {
	for _, outage := range few(0, 30*time.Second, 24*time.Hour, time.Minute) {
		for _, threshold := range few(2, 3, 4, 5) {
			for _, poison := range few(0, 50, 100) {
				for _, shape := range []string{"polling", "polling batches", "streaming 1", "streaming 8", "streaming 8 batches"} {
					name := fmt.Sprintf("outage %v, threshold %d, poison at %d, %s", outage, threshold, poison, shape)
					t.Run(name, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { testOutage(t, outage, threshold, poison, shape) })
					})
				}
			}
		}
	}
}

func testOutage(t *testing.T, outage time.Duration, threshold, poison int, shape string) {
	d := &destination{began: time.Now(), outage: outage, poison: poison, applied: map[int]int{}}
	var applier courier.Applier[int] = d
	if strings.HasSuffix(shape, "batches") {
		applier = batches{d}
	}
	stack, dlq := courier.ResilientApplier(applier, &courier.ResilientConfig[int]{
		Breaker: courier.BreakerPolicy{FailureThreshold: threshold, OnStateChange: d.watch},
	})
	source := newLeasing(numbers(101)...)
	source.wait = true
	workers := 1
	var c interface{ Start(context.Context) error }
	switch {
	case strings.HasPrefix(shape, "polling"):
		c = courier.NewPollingCoordinator(source.shelf, stack, quiet, courier.WithBatchSize(20))
	default:
		_, _ = fmt.Sscanf(shape, "streaming %d", &workers)
		c = courier.NewStreamingCoordinator(source, stack, quiet, courier.WithBatchSize(20), courier.WithStreamWorkers(workers))
	}
	stop := start(t, c)
	time.Sleep(outage + 2*time.Minute)
	// A poison record that is alone is the only probe; the next record is what
	// tells that the destination is well.
	for i := range 10 {
		source.add(1000 + i)
		time.Sleep(2 * time.Minute)
	}
	require.NoError(t, stop())

	parked, _ := dlq.Receive(t.Context(), 100)
	require.Len(t, parked, 1)
	require.Equal(t, poison, parked[0].Record)
	require.Equal(t, courier.ReasonExhausted, parked[0].Reason)
	require.Empty(t, source.left())
	require.Len(t, d.applied, 110)
	for r, n := range d.applied {
		require.Equal(t, 1, n, "record %d", r)
	}
	require.Zero(t, d.whileOpen, "calls while the breaker was open")
	// While it was open there were only probes: one a period, which doubles from
	// one second to a minute, a fifth less at the least.
	require.LessOrEqual(t, d.during, threshold+workers+8+int(outage/(48*time.Second)))
}

// C-6: a row that cannot be decoded, and a record that there is nothing to do for, say
// nothing of the destination. They open no way for the others while that is down.
func TestC6_AnOutageAmongRecordsThatAreNotForTheDestination(t *testing.T) {
	for n := range 8 {
		stream, batches, skips := n&1 > 0, n&2 > 0, n&4 > 0
		t.Run(fmt.Sprintf("%s, %s, %s", coordinatorOf(stream), batched(batches), choose(skips, "skips", "no skips")), func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				began := time.Now()
				apply := func(_ context.Context, row string) error {
					if strings.HasPrefix(row, "bad") {
						return courier.Skip(errTest)
					}
					if time.Since(began) < time.Hour {
						return errTest
					}
					return nil
				}
				a := courier.ProcessFunc(apply)
				if batches {
					a = eachOfBatch[string]{a}
				}
				stack, q := courier.ResilientApplier(courier.NewDecodingApplier(a, func(row string) (string, error) {
					if strings.HasPrefix(row, "bad") && !skips {
						return "", errTest
					}
					return row, nil
				}), &courier.ResilientConfig[string]{Parking: anyRate})
				var rows []string
				for n := range 100 {
					rows = append(rows, fmt.Sprint("ok ", n), fmt.Sprint("bad ", n))
				}
				var r courierttest.Recorder[string]
				var pending func() []string
				if stream {
					s := r.StreamSource(rows...)
					pending = s.Pending
					courierttest.RunFor(t, courier.NewStreamingCoordinator(s, stack, quiet), 3*time.Hour)
				} else {
					s := r.Source(rows...)
					pending = s.Pending
					courierttest.RunFor(t, courier.NewPollingCoordinator(s, stack, quiet), 3*time.Hour)
				}
				require.Empty(t, pending())
				want := 100
				if skips {
					want = 0
				}
				require.Len(t, letters(t, q), want)
				for _, letter := range letters(t, q) {
					require.Contains(t, letter.Record, "bad", "a healthy record is parked")
				}
			})
		})
	}
}

// filling is a destination that takes batches until it has no room left.
type filling struct {
	*destination
	room  func(call int) int // how many records of the call there is room for
	calls int
}

func (f *filling) Apply(ctx context.Context, r int) error { return applyAlone(ctx, f, r) }

func (f *filling) ApplyBatch(_ context.Context, records []int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called()
	f.calls++
	room := len(records)
	if time.Since(f.began) < f.outage {
		room = f.room(f.calls)
	}
	var list courier.BatchError
	for i, r := range records {
		// The first ones fit, or every third does, as small messages among large ones.
		if i < room || room < 0 && i%3 == 0 {
			f.applied[r]++
		} else {
			list.Add(i, errors.New("full"))
		}
	}
	return list.ErrorOrNil()
}

// applyAlone applies a record as a batch of one.
func applyAlone(ctx context.Context, batch courier.BatchApplier[int], r int) error {
	var list *courier.BatchError
	if err := batch.ApplyBatch(ctx, []int{r}); errors.As(err, &list) {
		return list.Failures[0].Err
	}
	return nil
}

// C-6: an outage may begin in the middle of a batch, of which some records get
// through, or of several batches one after another.
func TestC6_AnOutageThatBeginsInsideABatchParksNothing(t *testing.T) {
	rooms := map[string][]int{"30 of 50": {30}, "49 of 50": {49}, "1 of 50": {1}, "every third": {-1},
		"thrice": {20, 10, 5}, "thrice, every third": {-1, -1, -1}, "a full batch between": {20, 100, 10}}
	for name, room := range rooms {
		for _, threshold := range []int{2, 3, 4, 5} {
			for _, shape := range []string{"polling", "streaming 1", "streaming 8"} {
				t.Run(fmt.Sprintf("%s, threshold %d, %s", name, threshold, shape), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						f := &filling{destination: &destination{began: time.Now(), outage: time.Hour, applied: map[int]int{}}, room: func(call int) int {
							if call <= len(room) {
								return room[call-1]
							}
							return 0
						}}
						stack, dlq := courier.ResilientApplier[int](f, &courier.ResilientConfig[int]{
							Breaker: courier.BreakerPolicy{FailureThreshold: threshold, OnStateChange: f.watch},
						})
						var r courierttest.Recorder[int]
						source := r.LeasingSource(time.Hour, numbers(200)...)
						workers := 1
						var c courierttest.Starter = courier.NewPollingCoordinator[int](source, stack, quiet, courier.WithBatchSize(50))
						if _, err := fmt.Sscanf(shape, "streaming %d", &workers); err == nil {
							stream := r.StreamSource(numbers(200)...)
							c = courier.NewStreamingCoordinator[int](stream, stack, quiet, courier.WithBatchSize(50), courier.WithStreamWorkers(workers))
						}
						courierttest.RunFor(t, c, time.Hour+5*time.Minute)
						require.Empty(t, recordsIn(t, dlq), "a healthy record is parked")
						require.Len(t, f.applied, 200)
						for r, n := range f.applied {
							require.Equal(t, 1, n, "record %d", r)
						}
						require.Zero(t, f.whileOpen, "calls while the breaker was open")
					})
				})
			}
		}
	}
}

// lingering is a destination that goes down while it has calls to answer: it took the
// records of the first ones, some of each where partly is set, and is slow to say so.
type lingering struct {
	*destination
	answers []time.Duration // how long each of the first calls takes
	partly  bool
	calls   int
}

func (l *lingering) Apply(ctx context.Context, r int) error { return applyAlone(ctx, l, r) }

func (l *lingering) ApplyBatch(_ context.Context, records []int) error {
	l.mu.Lock()
	n := l.calls
	l.calls++
	if n >= len(l.answers) {
		defer l.mu.Unlock()
		var list courier.BatchError
		for i, r := range records {
			if err := l.take(r); err != nil {
				list.Add(i, err)
			}
		}
		return list.ErrorOrNil()
	}
	var list courier.BatchError
	for i, r := range records {
		if l.partly && i%2 > 0 {
			list.Add(i, errTest)
			continue
		}
		l.applied[r]++
	}
	l.mu.Unlock()
	time.Sleep(l.answers[n])
	return list.ErrorOrNil()
}

// C-6: a call that the destination took before it went down, and that succeeds while
// a record uses up its attempts, says nothing of the time since.
func TestC6_ASuccessInFlightAtTheOnsetParksNothing(t *testing.T) {
	answers := map[string]time.Duration{"at once after another": 1, "one each attempt": 90 * time.Millisecond, "between the last two": time.Second, "late": 1400 * time.Millisecond}
	for name, answer := range answers {
		for _, workers := range []int{2, 8} {
			for _, threshold := range few(2, 3, 4, 5) {
				for _, shape := range []string{"polling", "polling batches", "polling batches partly", "streaming", "streaming batches", "streaming batches partly"} {
					t.Run(fmt.Sprintf("%s, threshold %d, %s %d", name, threshold, shape, workers), func(t *testing.T) {
						courierttest.Bubble(t, func(t *testing.T) {
							l := &lingering{destination: &destination{began: time.Now(), outage: time.Hour, poison: -1, applied: map[int]int{}}, partly: strings.HasSuffix(shape, "partly")}
							for i := range workers - 1 {
								l.answers = append(l.answers, time.Duration(i+1)*answer)
							}
							applier := courier.ProcessFunc(l.Apply)
							if strings.Contains(shape, "batches") {
								applier = l
							}
							stack, dlq := courier.ResilientApplier(applier, &courier.ResilientConfig[int]{
								Retry:   courier.RetryPolicy{Jitter: courier.NoJitter},
								Breaker: courier.BreakerPolicy{FailureThreshold: threshold},
							})
							var r courierttest.Recorder[int]
							var c courierttest.Starter
							if strings.HasPrefix(shape, "polling") {
								c = courier.NewPollingCoordinator[int](r.LeasingSource(24*time.Hour, numbers(200)...), stack, quiet, courier.WithWorkers(workers))
							} else {
								c = courier.NewStreamingCoordinator[int](r.StreamSource(numbers(200)...), stack, quiet, courier.WithStreamWorkers(workers))
							}
							courierttest.RunFor(t, c, time.Hour+5*time.Minute)
							require.Empty(t, recordsIn(t, dlq), "a healthy record is parked")
							require.Len(t, l.applied, 200)
						})
					})
				}
			}
		}
	}
}

// outage is a source of which a method fails until a time.
type outage struct {
	courier.Source[int]
	fetch, mark time.Time
	tries       atomic.Int64 // in vain
}

func (o *outage) Fetch(ctx context.Context, limit int) ([]int, error) {
	if time.Now().Before(o.fetch) {
		o.tries.Add(1)
		return nil, errTest
	}
	return o.Source.Fetch(ctx, limit)
}

func (o *outage) Mark(ctx context.Context, records []int) error {
	if time.Now().Before(o.mark) {
		o.tries.Add(1)
		return errTest
	}
	return o.Source.Mark(ctx, records)
}

// D10: however long the source was down, delivery goes on within ten seconds of its
// return, and until then it is asked some times a minute at most.
func TestD10_ALongOutageOfTheSource(t *testing.T) {
	for _, down := range []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour} {
		for _, what := range []string{"fetch", "mark"} {
			for _, streaming := range []bool{false, true} {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					end := time.Now().Add(down)
					o := &outage{Source: r.Source(numbers(300)...)}
					if streaming {
						o.Source = r.StreamSource(numbers(300)...)
					}
					if what == "fetch" {
						o.fetch = end
					} else {
						o.mark = end
					}
					var c courierttest.Starter = courier.NewPollingCoordinator[int](o, r.Applier(nil), quiet)
					if streaming {
						c = courier.NewStreamingCoordinator[int](o, r.Applier(nil), quiet)
					}
					run := courierttest.Start(t, c)
					time.Sleep(down)
					tries := o.tries.Load()
					time.Sleep(10 * time.Second)
					require.Len(t, r.Records(courierttest.Marked), 300, "%s, streaming %v, down %v", what, streaming, down)
					require.Less(t, tries, 20+int64(down/(2*time.Second)), "%s, streaming %v, down %v", what, streaming, down)
					require.NoError(t, run.Stop())
				})
			}
		}
	}
}
