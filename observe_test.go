package courier_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// namedShelf names its records.
type namedShelf struct{ *shelf[int] }

func (namedShelf) Identity(r int) string { return fmt.Sprintf("order %d", r) }

func TestObserver_IsToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := namedShelf{newShelf(1, 2, 3)}
		source.markErr = func(n int) error {
			if n == 1 {
				return errTest
			}
			return nil
		}
		applier := courier.ProcessFunc(func(_ context.Context, r int) error {
			time.Sleep(time.Second)
			if r == 2 {
				return errTest
			}
			return nil
		})
		err := courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithObserver(told.Observer())).RunOnce(t.Context())
		require.ErrorIs(t, err, errTest)
		require.Equal(t, []any{
			courier.FetchEvent{Records: 3},
			courier.FailEvent{Record: "order 2", Err: errTest},
			courier.ApplyEvent{Records: 3, Elapsed: 3 * time.Second, Applied: 2, Failed: 1, Record: "order 2", Err: errTest},
			courier.MarkEvent{Records: 2, Err: errTest, RetryIn: 75 * time.Millisecond},
			courier.MarkEvent{Records: 2},
			courier.StopEvent{Err: err},
		}, told.Events())
	})
}

func TestObserver_PerRecordWhenAsked(t *testing.T) {
	for _, coordinator := range []string{"polling", "streaming"} {
		t.Run(coordinator, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := courierttest.ObserverRecorder{PerRecord: true}
				source := newLeasing(1, 2)
				panicked := false
				applier := courier.ProcessFunc(func(_ context.Context, r int) error {
					if r == 2 && !panicked {
						panicked = true
						panic(errTest)
					}
					return nil
				})
				o := courier.WithObserver(told.Observer())
				if coordinator == "polling" {
					_ = courier.NewPollingCoordinator(source, applier, quiet, o).RunOnce(t.Context())
				} else {
					source.wait = true
					stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet, o))
					synctest.Wait()
					require.NoError(t, stop())
				}
				ended := courierttest.EventsOf[courierttest.RecordEnded](&told)
				require.Equal(t, courierttest.RecordEnded{Record: "1", Number: 1}, ended[0])
				require.Equal(t, "2", ended[1].Record)
				require.ErrorIs(t, ended[1].Err, courier.ErrPanic)
				perRecord := slices.DeleteFunc(told.Events(), func(e any) bool {
					switch e.(type) {
					case courierttest.RecordStarted, courierttest.RecordEnded:
						return false
					}
					return true
				})
				require.Equal(t, []any{
					courierttest.RecordStarted{Record: "1", Number: 1}, ended[0],
					courierttest.RecordStarted{Record: "2", Number: 2}, ended[1],
				}, perRecord[:4])
			})
		})
	}
}

func TestObserver_DecoratorsTellTheirCoordinators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := namedShelf{newShelf(1)}
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }),
			&courier.ResilientConfig[int]{Retry: courier.RetryPolicy{MaxAttempts: 2}, Breaker: courier.BreakerPolicy{FailureThreshold: 2}})
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithObserver(told.Observer())))
		time.Sleep(time.Second)
		require.NoError(t, stop())
		retry := courierttest.EventsOf[courier.RetryEvent](&told)[0]
		require.Equal(t, 1, retry.Attempt)
		require.Equal(t, errTest, retry.Err)
		pause := courierttest.EventsOf[courier.PauseEvent](&told)[0]
		require.ErrorIs(t, pause.Err, errTest)
		require.False(t, pause.Stuck)
	})
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		applier, _ := courier.WithDLQ(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) }))
		require.NoError(t, courier.NewPollingCoordinator(namedShelf{newShelf(1)}, applier, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context()))
		require.Equal(t, "order 1", courierttest.EventsOf[courier.ParkEvent](&told)[0].Record)
		require.Equal(t, courier.ReasonPermanent, courierttest.EventsOf[courier.ParkEvent](&told)[0].Reason)
	})
}

// C-1: an outage and its end, and that nothing but suspects is left, is told.
func TestC1_Observer_PausesAreToldAndStuckOnes(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		var down fault
		down.set(errTest)
		source.add(numbers(5)...)
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(context.Context, int, int) error {
			return down.get()
		}}, nil)
		stop := start(t, make(applier, courier.WithObserver(told.Observer()), courier.WithOrderKey(byRest(1))))
		time.Sleep(10 * time.Minute)
		pauses := courierttest.EventsOf[courier.PauseEvent](&told)
		require.True(t, pauses[len(pauses)-1].Stuck, "a strict order is stuck behind its first record")
		down.set(nil)
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		_, after, resumed := strings.Cut(told.String(), "ResumeEvent")
		require.True(t, resumed)
		require.NotContains(t, after, "PauseEvent")
		require.Len(t, source.marked(), 5)
	})
}

func TestD9_AnObserverMayPanicOrExit(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errTest) }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				source.add(numbers(10)...)
				var told courierttest.ObserverRecorder
				bad := courier.Observer{
					Fetched:       func(context.Context, courier.FetchEvent) { end() },
					Applied:       func(context.Context, courier.ApplyEvent) { end() },
					Marked:        func(context.Context, courier.MarkEvent) { end() },
					Stopped:       func(context.Context, courier.StopEvent) { end() },
					RecordStarted: func(context.Context, courier.RecordEvent) { end() },
					RecordEnded:   func(context.Context, courier.RecordEvent) { end() },
				}
				s := &sink[int]{}
				stop := start(t, make(s, courier.WithObserver(bad), courier.WithObserver(told.Observer())))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Equal(t, numbers(10), s.got())
				require.Equal(t, numbers(10), source.marked())
				require.Equal(t, 10, courierttest.EventsOf[courier.MarkEvent](&told)[0].Records, "the next one is told all the same")
			})
		})
	}
}

func TestObserver_SeveralAtOnce(t *testing.T) {
	require.Nil(t, courier.TeeObservers().Fetched, "an event that nobody asked for stays free")
	require.Nil(t, courier.TeeObservers(courier.Observer{}, courier.Observer{}).Marked)
	a, b := courierttest.ObserverRecorder{PerRecord: true}, courierttest.ObserverRecorder{}
	tee := courier.TeeObservers(a.Observer(), courier.Observer{}, b.Observer())
	tee.Marked(t.Context(), courier.MarkEvent{Records: 3})
	tee.RecordStarted(t.Context(), courier.RecordEvent{Record: "r"})
	require.Len(t, a.Events(), 2)
	require.Len(t, b.Events(), 1)
}

// What a call took is told though it ended its goroutine, or panicked.
func TestObserver_TellsHowLongACallTookThatDidNotReturn(t *testing.T) {
	for name, end := range map[string]func(){"goexit": runtime.Goexit, "panic": func() { panic("on purpose") }} {
		for _, shape := range []string{"polling", "fetched ahead", "streaming"} {
			t.Run(name+", "+shape, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var told courierttest.ObserverRecorder
					source := abruptSource{newLeasing(1, 2, 3), end}
					applier := courier.ProcessFunc(func(context.Context, int) error {
						time.Sleep(time.Second)
						end()
						return nil
					})
					opts := []courier.Option{quiet, unspread, courier.WithBatchSize(1), courier.WithObserver(told.Observer())}
					var c running = courier.NewPollingCoordinator(source, applier, append(opts, courier.WithPrefetch(map[string]int{"fetched ahead": 1}[shape]))...)
					if shape == "streaming" {
						c = courier.NewStreamingCoordinator(source, applier, opts...)
					}
					stop := start(t, c)
					time.Sleep(20 * time.Second)
					require.NoError(t, stop())
					fetches, applies := 0, 0
					for _, e := range told.Events() {
						switch e := e.(type) {
						case courier.FetchEvent:
							fetches++
							require.Equal(t, time.Second, e.Elapsed)
						case courier.ApplyEvent:
							applies++
							require.Equal(t, time.Duration(e.Records)*time.Second, e.Elapsed)
						}
					}
					require.Positive(t, fetches)
					require.Positive(t, applies)
				})
			})
		}
	}
}

// abruptSource takes a second for a fetch, and ends every second one otherwise than by
// returning.
type abruptSource struct {
	*leasing[int]
	end func()
}

func (s abruptSource) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, err := s.leasing.Fetch(ctx, limit)
	time.Sleep(time.Second)
	if s.fetchCount()%2 == 0 {
		_ = s.Release(ctx, records, 0)
		s.end()
	}
	return records, err
}

// Refused is "not attempted for a reason that is not a pause or a stop".
func TestObserver_Stream_WhatAStopInterruptsIsNotRefused(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				o := courier.WithObserver(told.Observer())
				source := newLeasing(0)
				source.wait = streaming
				applier := courier.NewRetryableApplier[int](&sink[int]{fail: func(context.Context, int, int) error { return errTest }},
					courier.RetryPolicy{InitialDelay: time.Minute, MaxDelay: time.Hour, Jitter: courier.NoJitter})
				var c running = courier.NewPollingCoordinator(source, applier, quiet, o)
				if streaming {
					c = courier.NewStreamingCoordinator(source, applier, quiet, o)
				}
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NoError(t, stop())
				for _, e := range courierttest.EventsOf[courier.ApplyEvent](&told) {
					require.Zero(t, e.NotAttempted)
				}
			})
		})
	}
}

// FailEvent.Class of a permanent failure.
func TestObserver_Stream_FailEventHasTheClass(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				o := courier.WithObserver(told.Observer())
				source := newLeasing(1)
				source.wait = streaming
				s := &sink[int]{fail: func(_ context.Context, _, call int) error {
					if call == 1 {
						return courier.Permanent(errTest)
					}
					return nil
				}}
				var c running = courier.NewPollingCoordinator(source, s, quiet, o)
				if streaming {
					c = courier.NewStreamingCoordinator(source, s, quiet, o)
				}
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NoError(t, stop())
				require.Equal(t, courier.ClassPermanent, courierttest.EventsOf[courier.FailEvent](&told)[0].Class)
			})
		})
	}
}

// ApplyEvent.DrainTimedOut at the end of a stream.
func TestObserver_Stream_ApplyEventTellsOfTheDrainTimeout(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				o := courier.WithObserver(told.Observer())
				source := newLeasing(1)
				source.wait = streaming
				s := &sink[int]{fail: func(ctx context.Context, _, _ int) error { <-ctx.Done(); return ctx.Err() }}
				var c running = courier.NewPollingCoordinator(source, s, quiet, o)
				if streaming {
					c = courier.NewStreamingCoordinator(source, s, quiet, o)
				}
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NoError(t, stop())
				require.True(t, courierttest.EventsOf[courier.ApplyEvent](&told)[0].DrainTimedOut)
			})
		})
	}
}

// RecordStarted and RecordEnded "are called for every record".
func TestObserver_PerRecordEventsOfABatchApplier(t *testing.T) {
	told := courierttest.ObserverRecorder{PerRecord: true}
	source := newShelf(1, 2)
	require.NoError(t, courier.NewPollingCoordinator(source, &batchSink[int]{}, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context()))
	require.Len(t, courierttest.EventsOf[courierttest.RecordStarted](&told), 2)
	require.Len(t, courierttest.EventsOf[courierttest.RecordEnded](&told), 2)
}

// In an outage there is one PauseEvent for each time that the breaker opens, with any
// number of workers, of plain and batch appliers, in a branch, in front of it or hidden.
// The events and Stats name the record, the branch and the breaker.
func TestObserver_OnePauseForEachOpenPeriod(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		for _, workers := range []int{1, 8} {
			for _, batches := range []bool{false, true} {
				for _, stack := range []string{"plain", "resilient", "fan-out", "fan-out of two", "shown", "hidden", "hidden in a branch"} {
					t.Run(fmt.Sprintf("%s, %d workers, %s, %s", shape, workers, batched(batches), stack), func(t *testing.T) {
						courierttest.Bubble(t, func(t *testing.T) {
							var told courierttest.ObserverRecorder
							opened := 0
							policy := courier.BreakerPolicy{Name: "crm", OnStateChange: func(_ context.Context, c courier.BreakerChange) {
								require.Equal(t, "crm", c.Breaker)
								if c.To == courier.BreakerOpen {
									opened++
								}
							}}
							var down fault
							down.set(errTest)
							a := courier.ProcessFunc(func(context.Context, int) error {
								time.Sleep(10 * time.Millisecond)
								return down.get()
							})
							if batches {
								a = eachOfBatch[int]{a}
							}
							if stack == "plain" {
								a = courier.NewCircuitBreakerApplier(a, courier.NewBreaker(policy))
							} else {
								a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[int]{Breaker: policy, DLQ: &courier.MemoryDLQ[int]{}})
							}
							branch := ""
							switch stack {
							case "fan-out":
								a, branch = courier.NewFanOutApplier(a), "0"
							case "fan-out of two":
								a, branch = courier.NewFanOutApplier(courier.ProcessFunc(nop[int]), a), "1"
							case "shown":
								a = show(a)
							case "hidden":
								a = limited{a}
							case "hidden in a branch":
								a, branch = courier.NewFanOutApplier(courier.ProcessFunc(nop[int]), courier.Applier[int](limited{a})), "1"
							}
							var r courierttest.Recorder[int]
							var c running = courier.NewPollingCoordinator[int](r.Source(numbers(40)...), a, quiet, courier.WithWorkers(workers), courier.WithObserver(told.Observer()))
							if shape == "streaming" {
								c = courier.NewStreamingCoordinator[int](r.StreamSource(numbers(40)...), a, quiet, courier.WithStreamWorkers(workers), courier.WithObserver(told.Observer()))
							}
							stop := start(t, c)
							time.Sleep(10 * time.Minute)
							pauses := courierttest.EventsOf[courier.PauseEvent](&told)
							require.Greater(t, opened, 5)
							require.Len(t, pauses, opened)
							for _, p := range pauses {
								require.Equal(t, "crm", p.Breaker)
								require.Equal(t, branch, p.Branch)
								require.ErrorContains(t, p.Err, `breaker "crm" open, next probe at`)
							}
							require.NotEmpty(t, pauses[0].Record)
							breakers := c.Stats().Breakers
							if _, hides := map[string]bool{"hidden": true, "hidden in a branch": true}[stack]; !hides {
								require.Len(t, breakers, 1)
								require.Equal(t, "crm", breakers[0].Name)
								require.Equal(t, branch, breakers[0].Branch)
								require.EqualValues(t, opened, breakers[0].Opened)
							}
							down.set(nil)
							time.Sleep(10 * time.Minute)
							require.Equal(t, []courier.ResumeEvent{{Pauses: opened}}, courierttest.EventsOf[courier.ResumeEvent](&told))
							require.NoError(t, stop())
						})
					})
				}
			}
		}
	}
}

// Retries, parks and the ends of records tell of which record they are, in which
// branch, and how long its call took.
func TestObserver_EventsSayOfWhatTheyAre(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(batched(batches), func(t *testing.T) {
			inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
				told := courierttest.ObserverRecorder{PerRecord: true}
				a := courier.ProcessFunc(func(_ context.Context, n int) error {
					time.Sleep(time.Second)
					if n == 3 {
						return errTest
					}
					return nil
				})
				if batches {
					a = eachOfBatch[int]{a}
				}
				a = courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: 3, Jitter: courier.NoJitter})
				a = courier.NewDLQApplier(a, courier.DLQ[int](&courier.MemoryDLQ[int]{}), courier.DLQPolicy[int]{Branch: "crm"})
				_, run := with(a, numbers(5), courier.WithObserver(told.Observer()))
				run(time.Minute)
				parks := courierttest.EventsOf[courier.ParkEvent](&told)
				require.Len(t, parks, 1)
				require.Equal(t, "3", parks[0].Record)
				require.Equal(t, "crm", parks[0].Branch)
				retries := courierttest.EventsOf[courier.RetryEvent](&told)
				require.Len(t, retries, 2)
				for _, r := range retries {
					require.Equal(t, "3", r.Record)
					require.Equal(t, 1, r.Records)
				}
				ended := courierttest.EventsOf[courierttest.RecordEnded](&told)
				require.Len(t, ended, 5)
				for _, e := range ended {
					switch {
					case batches:
						require.Equal(t, ended[0].Elapsed, e.Elapsed)
						require.GreaterOrEqual(t, e.Elapsed, 5*time.Second)
					case e.Record == "3":
						require.Equal(t, 3*time.Second+300*time.Millisecond, e.Elapsed)
					default:
						require.Equal(t, time.Second, e.Elapsed)
					}
				}
			})
		})
	}
}

// A retry is told of with the name of the record that is tried again, and of a batch with
// how many these are, whoever waits between the attempts.
func TestObserver_RetriesSayOfWhatTheyAre(t *testing.T) {
	for workers, want := range map[int][]courier.RetryEvent{
		1: {{Record: "order 2", Records: 2, Attempt: 1, Err: errTest}},
		2: {{Record: "order 2", Records: 1, Attempt: 1, Err: errTest}, {Record: "order 3", Records: 1, Attempt: 1, Err: errTest}},
	} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				tries := map[int]int{}
				applier := courier.NewRetryableApplier[int](eachOfBatch[int]{courier.ProcessFunc(func(_ context.Context, r int) error {
					if tries[r]++; r >= 2 && tries[r] == 1 {
						return errTest
					}
					return nil
				})}, courier.RetryPolicy{Jitter: courier.NoJitter})
				source := namedShelf{newShelf(0, 1, 2, 3)}
				require.NoError(t, courier.NewPollingCoordinator[int](source, applier, quiet, courier.WithWorkers(workers), courier.WithApplyBatchSize(4),
					courier.WithObserver(told.Observer())).RunOnce(t.Context()))
				events := courierttest.EventsOf[courier.RetryEvent](&told)
				for i := range events {
					require.Equal(t, 100*time.Millisecond, events[i].Delay)
					events[i].Delay = 0
				}
				require.Equal(t, want, events)
			})
		})
	}
}

func TestObserver_AppliedTellsHowLongItTook(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		source.add(numbers(3)...)
		stop := start(t, make(s, courier.WithObserver(told.Observer())))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		var took time.Duration
		records := 0
		for _, e := range courierttest.EventsOf[courier.ApplyEvent](&told) {
			took, records = took+e.Elapsed, records+e.Records
		}
		require.Equal(t, 3*time.Second, took)
		require.Equal(t, 3, records)
	})
}

// A failure tells more than a refusal, and the first one the most.
func TestObserver_AppliedNamesTheFirstFailure(t *testing.T) {
	for name, c := range map[string]struct {
		errs []error // of the records from 0 on
		want string
	}{
		"behind a refusal": {[]error{rateLimited{}, errTest, errTest}, "order 1"},
		"before a refusal": {[]error{errTest, rateLimited{}, errTest}, "order 0"},
		"only refusals":    {[]error{nil, rateLimited{}, rateLimited{}}, "order 1"},
	} {
		t.Run(name, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			s := courier.ProcessFunc(func(_ context.Context, r int) error { return c.errs[r] })
			_ = courier.NewPollingCoordinator(namedShelf{newShelf(0, 1, 2)}, s, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context())
			applied := courierttest.EventsOf[courier.ApplyEvent](&told)
			require.Len(t, applied, 1)
			require.Equal(t, c.want, applied[0].Record)
			require.Equal(t, c.errs[int(c.want[len(c.want)-1]-'0')], applied[0].Err)
		})
	}
}

// A release that ends its goroutine is told as one that failed, and what it was to give
// back is not in hand any more.
func TestObserver_IsToldOfAReleaseThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := goneRelease{newLeasing(1)}
		c := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(context.Context, int) error { return errTest }),
			quiet, unspread, courier.WithObserver(told.Observer()))
		stop := start(t, c)
		time.Sleep(time.Minute)
		require.Zero(t, c.Stats().InHand)
		require.NoError(t, stop())
		var events []courier.ReleaseEvent
		for _, e := range told.Events() {
			if e, ok := e.(courier.ReleaseEvent); ok {
				events = append(events, e)
			}
		}
		require.Len(t, events, 1)
		require.Equal(t, 1, events[0].Records)
		require.ErrorIs(t, events[0].Err, courier.ErrPanic)
	})
}

type goneRelease struct{ *leasing[int] }

func (goneRelease) Release(context.Context, []int, time.Duration) error {
	runtime.Goexit()
	return nil
}

// A record without a name goes by its value where that is no secret, or by its place,
// which counts from 1: in a stream from the first record since Start.
func TestObserver_NamesOfRecords(t *testing.T) {
	long := strings.Repeat("é", 100)
	for want, record := range map[string]any{
		"order 7": "order 7", "7": 7, "-7": int8(-7), "8": uint16(8), "1.5": 1.5, "true": true,
		strings.Repeat("é", 32) + "…":             long,
		strings.Repeat("é", 31) + "x…":            strings.Repeat("é", 31) + "x" + long,
		"record 2 of the batch (the first is 1)":  struct{ secret string }{"s"},
		"record 2 of the batch (the first is 1) ": []byte("secret"),
		"1m0s": time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			told.PerRecord = true
			n := 0
			a := courier.ProcessFunc(func(_ context.Context, _ any) error {
				if n++; n == 2 {
					return errTest
				}
				return nil
			})
			source := courier.BatchSourceFunc[any]{FetchFunc: func(context.Context) ([]any, error) { return []any{record, record}, nil }, MarkFunc: nop[[]any]}
			_ = courier.NewPollingCoordinator(source, a, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context())
			want := strings.TrimSpace(want)
			require.Equal(t, want, courierttest.EventsOf[courier.FailEvent](&told)[0].Record)
			require.Equal(t, want, courierttest.EventsOf[courier.ApplyEvent](&told)[0].Record)
			require.Equal(t, want, courierttest.EventsOf[courierttest.RecordEnded](&told)[1].Record)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		told.PerRecord = true
		type secret struct{ n int }
		ch := make(chan secret, 100)
		for i := range 100 {
			ch <- secret{i}
		}
		a := courier.ProcessFunc(func(_ context.Context, r secret) error {
			if r.n == 76 {
				return errTest
			}
			return nil
		})
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]secret]), a, quiet, courier.WithStreamWorkers(3), courier.WithBatchSize(7), courier.WithObserver(told.Observer()))
		stop := start(t, c)
		synctest.Wait()
		const want = "record 77 since Start (the first is 1)"
		require.Equal(t, want, courierttest.EventsOf[courier.FailEvent](&told)[0].Record)
		ended := courierttest.EventsOf[courierttest.RecordEnded](&told)
		require.Len(t, ended, 100)
		for _, e := range ended {
			require.Equal(t, e.Err != nil, e.Record == want)
		}
		time.Sleep(time.Minute)
		require.Error(t, courierttest.EventsOf[courier.FailEvent](&told)[3].Err)
		require.Equal(t, want, courierttest.EventsOf[courier.FailEvent](&told)[3].Record, "again and again")
		_ = stop()
	})
}

// A pause that goes on is one, however often the coordinator looks.
func TestObserver_AForcedOpenBreakerIsOnePause(t *testing.T) {
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		if shape == "RunOnce" {
			return // which asks the breaker once
		}
		for _, records := range []int{0, 20} {
			var told courierttest.ObserverRecorder
			var log bytes.Buffer
			b := courier.NewBreaker(courier.BreakerPolicy{})
			c, run := with(courier.NewCircuitBreakerApplier(courier.ProcessFunc(nop[int]), b), numbers(records), courier.WithObserver(told.Observer()), courier.WithLogger(timeless(&log)))
			b.ForceOpen()
			run(time.Hour)
			pauses := courierttest.EventsOf[courier.PauseEvent](&told)
			require.Len(t, pauses, 1)
			require.ErrorIs(t, pauses[0].Err, courier.ErrForcedOpen)
			require.ErrorIs(t, c.Ready(), courier.ErrForcedOpen)
			require.Empty(t, courierttest.EventsOf[courier.ResumeEvent](&told))
			b.Reset()
			run(time.Minute)
			require.Equal(t, []courier.ResumeEvent{{Pauses: 1}}, courierttest.EventsOf[courier.ResumeEvent](&told))
			require.Equal(t, 2, strings.Count(log.String(), "\n"), log.String())
			b.ForceOpen()
			run(time.Minute)
			require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), 2)
			b.ForceClosed()
			run(time.Minute)
			require.Len(t, courierttest.EventsOf[courier.ResumeEvent](&told), 2)
		}
	})
}

// In an outage there is a pause for each time that the breaker opens, and the intake is
// open again once it has closed: not while somebody else's probe is out, and not after a
// probe that has told nothing.
func TestObserver_PausesAreThoseOfTheBreaker(t *testing.T) {
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		if shape == "RunOnce" {
			return
		}
		var told courierttest.ObserverRecorder
		opened := 0
		var down fault
		down.set(errTest)
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, ProbeTimeout: time.Hour, OnStateChange: func(_ context.Context, c courier.BreakerChange) {
			if c.To == courier.BreakerOpen {
				opened++
			}
		}})
		a := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return down.get() }), b)
		c, run := with(a, numbers(20), courier.WithObserver(told.Observer()), courier.WithClock(slow{}))
		run(10 * time.Minute)
		require.Greater(t, opened, 5)
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), opened)
		// Somebody else's probe is out for half an hour, and comes back without a verdict.
		time.Sleep(time.Until(b.RetryAt()))
		permit, err := b.Acquire(t.Context())
		require.NoError(t, err)
		run(30 * time.Minute)
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), opened)
		require.Empty(t, courierttest.EventsOf[courier.ResumeEvent](&told))
		down.set(courier.Skip(errTest)) // of which a probe learns nothing
		_ = b.Report(t.Context(), permit, courier.Skip(errTest))
		run(10 * time.Minute)
		require.Equal(t, courier.BreakerHalfOpen, b.State())
		require.Empty(t, courierttest.EventsOf[courier.ResumeEvent](&told))
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), opened)
		permit, err = b.Acquire(t.Context()) // and somebody else's probe goes well
		require.NoError(t, err)
		require.NoError(t, b.Report(t.Context(), permit, nil))
		c.(interface{ Wake() }).Wake()
		run(time.Minute)
		require.Equal(t, []courier.ResumeEvent{{Pauses: opened}}, courierttest.EventsOf[courier.ResumeEvent](&told))
	})
}

// slow is a clock whose timers are late.
type slow struct{}

func (slow) Now() time.Time                         { return time.Now() }
func (slow) After(d time.Duration) <-chan time.Time { return time.After(d + time.Millisecond) }
