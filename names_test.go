package courier_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// In an outage there is one PauseEvent for each time that the breaker opens, with any
// number of workers, of plain and batch appliers, in a branch, in front of it or hidden.
// The events and Stats name the record, the branch and the breaker.
func TestObserver_OnePauseForEachOpenPeriod(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		for _, workers := range []int{1, 8} {
			for _, batches := range []bool{false, true} {
				for _, stack := range []string{"plain", "resilient", "fan-out", "fan-out of two", "shown", "hidden", "hidden in a branch"} {
					t.Run(fmt.Sprintf("%s, %d workers, batches %v, %s", shape, workers, batches, stack), func(t *testing.T) {
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
								require.ErrorContains(t, p.Err, `courier: breaker "crm" open, next probe at`)
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
		t.Run(fmt.Sprint("batches ", batches), func(t *testing.T) {
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
