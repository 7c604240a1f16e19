package courier_test

// Hazards of the decorators, found by attack: what a hung probe, a short budget,
// a time in a record's own error, a dead branch or a queue hidden in a closure
// does to the others.

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// P-1: a batch that fails as one counts against no record of it.
func TestP1_AFailedBatchThatOpensTheBreakerIsNoRecordsAttempt(t *testing.T) {
	s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return errTest }}
	for n, counted := range map[int]bool{1: true, 2: false} {
		err := asBatch(courier.NewCircuitBreakerApplier[int](s, newBreaker(1))).ApplyBatch(t.Context(), numbers(n))
		var open *courier.OpenError
		require.ErrorAs(t, err, &open)
		require.Equal(t, counted, courier.Counted(open), "a batch of %d", n)
	}
	s.failBatch = func(context.Context, []int, int) error { return failures(0, 0) }
	b := newBreaker(2)
	for range 3 {
		_ = asBatch(courier.NewCircuitBreakerApplier[int](s, b)).ApplyBatch(t.Context(), numbers(2))
		require.EqualValues(t, "closed", b.State(), "one record is listed twice, and the other got through")
	}
}

// A time in a record's own error is the record's, whatever became of it.
func TestD3_ARecordsOwnTimePausesNobody(t *testing.T) {
	full := courier.DLQ[int](&dlqFunc{send: func(context.Context, courier.DeadLetter[int]) error { return courier.ErrDLQFull }})
	own := func() courier.Applier[int] {
		at := time.Now().Add(24 * time.Hour)
		return failsOn(map[int]error{0: &tooMany{at}})
	}
	for name, stack := range map[string]func() courier.Applier[int]{
		"full queue": func() courier.Applier[int] { return courier.NewDLQApplier(own(), full, courier.DLQPolicy[int]{}) },
		"cut retry": func() courier.Applier[int] {
			return courier.NewRetryableApplier(own(), courier.RetryPolicy{MaxElapsed: time.Nanosecond, Jitter: courier.NoJitter})
		},
		"budget": func() courier.Applier[int] {
			return courier.NewRetryableApplier(own(), courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9})})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(10)...)
				run(t, source, stack(), time.Hour)
				require.Equal(t, []int{0}, source.left())
			})
		})
	}
}

// D3, P-3: a record that is refused, and never attempted, tells nothing of the
// destination when it is the probe. The next probe is another record, whatever the
// batch size: else this one would keep the breaker half-open, and all others waiting.
func TestP3_Polling_AProbeThatWasNotAttemptedIsNotTheNextOne(t *testing.T) {
	for _, batch := range []int{2, 10} { // of one, the record would hide all others
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(10)...)
				applier, queue := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
					switch r {
					case 0:
						return rateLimited{}
					case 1:
						return errTest
					}
					return nil
				}), nil)
				stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, courier.WithBatchSize(batch)))
				time.Sleep(time.Hour)
				require.NoError(t, stop())
				letters, err := queue.Receive(t.Context(), 10)
				require.NoError(t, err)
				require.Equal(t, []int{0}, source.left())
				require.Len(t, letters, 1)
				require.Equal(t, 1, letters[0].Record)
			})
		})
	}
}

// versions is a source whose leases cannot be renewed, and whose records no two
// fetches return alike: each is its number, and how many were handed out before.
type versions struct {
	*leasing[int]
	handed int
}

func (s *versions) Fetch(ctx context.Context, limit int) (records [][2]int, err error) {
	list, err := s.leasing.Fetch(ctx, limit)
	for _, r := range list {
		s.handed++
		records = append(records, [2]int{r, s.handed})
	}
	return records, err
}

func (s *versions) Mark(ctx context.Context, records [][2]int) error {
	return s.leasing.Mark(ctx, numbersOf(records))
}

func (s *versions) Release(ctx context.Context, records [][2]int, after time.Duration) error {
	return s.leasing.Release(ctx, numbersOf(records), after)
}

func numbersOf(records [][2]int) (list []int) {
	for _, r := range records {
		list = append(list, r[0])
	}
	return list
}

// D3, P-3: likewise where nobody can tell which record was the probe.
func TestP3_Polling_AProbeThatWasNotAttemptedAndHasNoNameIsNotTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &versions{leasing: newLeasing(numbers(10)...)}
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r [2]int) error {
			switch r[0] {
			case 0, 2:
				return errTest
			case 1:
				return rateLimited{}
			}
			return nil
		}), nil)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Subset(t, []int{0, 1, 2}, source.left())
	})
}

// D3, P-3: nor does it tell a stream that the destination is well, which would have the
// records that an outage left in hand wait for another minute, and at the next refusal
// for one more.
func TestP3_Stream_AProbeThatWasNotAttemptedKeepsNoRecordsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(5)...)
		source.wait = true
		began := time.Now()
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			switch {
			case r == 0:
				return rateLimited{}
			case time.Since(began) < time.Minute:
				return errTest
			}
			return nil
		}), nil)
		stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet))
		time.Sleep(6 * time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{0}, source.left())
	})
}

// D3, P-3: a run that begins while the breaker is half-open has another record be the
// probe than the run before it: else one bad record at the head would have every run end
// over it, and no other record be delivered.
func TestP3_RunOnce_ABadRecordIsNotTheProbeOfEveryRun(t *testing.T) {
	for i := range 12 {
		successes, batch, refusing := []int{1, 3}[i%2], []int{1, 3, 100}[i/2%3], i >= 6
		t.Run(fmt.Sprint("successes ", successes, ", batch ", batch, ", another is refused ", refusing), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(10)...)
				applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
					switch {
					case r == 0:
						return errTest
					case r == 1 && refusing:
						return rateLimited{}
					}
					return nil
				}), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: successes, OpenFor: 30 * time.Second}})
				c := courier.NewPollingCoordinator(source, applier, quiet, courier.WithBatchSize(batch))
				for i := range 100 {
					source.add(10 + i)
					began := time.Now()
					_ = c.RunOnce(t.Context())
					require.Less(t, time.Since(began), time.Minute)
					time.Sleep(time.Minute)
				}
				left := slices.DeleteFunc(source.left(), func(r int) bool { return r >= 10 || r == 1 && refusing })
				require.Subset(t, []int{0}, left)
			})
		})
	}
}

// C-7: a run takes no longer than its drain timeout for breakers, whatever the
// interval is and however many successes a breaker wants.
func TestC7_RunOnceWaitsForNoInterval(t *testing.T) {
	for _, successes := range []int{1, 2, 3} {
		for _, poison := range []int{1, 2} {
			for _, opts := range [][]courier.Option{nil, {courier.WithFixedInterval()}, {courier.WithWorkers(3)}} {
				t.Run(fmt.Sprintf("%d successes, %d poison, %d options", successes, poison, len(opts)), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
							if r < poison {
								return errTest
							}
							return nil
						}}
						source := newShelf(numbers(poison + 1)...)
						a, _ := courier.ResilientApplier[int](s, &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: successes}})
						began := time.Now()
						_ = courier.NewPollingCoordinator[int](source, a, append(opts, quiet, courier.WithInterval(24*time.Hour))...).RunOnce(t.Context())
						require.Less(t, time.Since(began), 20*time.Second)
						require.Equal(t, []int{poison}, s.got())
					})
				})
			}
		}
	}
}

// D6: after the breaker has opened anew, a suspect is a probe as before: it is left
// to others only while the breaker wants more successes than it had.
func TestD6_ASecondOutageLeavesNoSuspectAlone(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		began := time.Now()
		down := func(at time.Duration) bool {
			return at < time.Second/2 || at > 10*time.Second && at < 20*time.Second
		}
		s := &sink[int]{fail: func(context.Context, int, int) error {
			if down(time.Since(began)) {
				return errTest
			}
			return nil
		}}
		source.add(0)
		a := courier.NewCircuitBreakerApplier[int](s, courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, DisableJitter: true}))
		var opts []courier.Option
		if !source.wait {
			opts = append(opts, courier.WithFastPolling())
		}
		stop := start(t, make(a, opts...))
		time.Sleep(11 * time.Second)
		source.add(1)
		time.Sleep(24 * time.Second)
		require.ElementsMatch(t, []int{0, 1}, s.got())
		require.NoError(t, stop())
	})
}

// The error of a run lists every record that was not applied, also those that it did
// not come to.
func TestRunOnce_ListsWhatItDidNotReach(t *testing.T) {
	for _, batch := range []int{2, 100} {
		courierttest.Bubble(t, func(t *testing.T) {
			source := newShelf(numbers(7)...)
			s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
				if r < 2 {
					return nil
				}
				return errTest
			}}
			a, _ := courier.ResilientApplier[int](s, nil)
			c := courier.NewPollingCoordinator[int](beyond{newLeasing(numbers(7)...)}, a, quiet, courier.WithBatchSize(batch), courier.WithDrainTimeout(3*time.Second))
			if batch > 7 {
				c = courier.NewPollingCoordinator[int](source, a, quiet, courier.WithDrainTimeout(3*time.Second))
			}
			var list *courier.BatchError
			require.ErrorAs(t, c.RunOnce(t.Context()), &list)
			var indices []int
			for _, f := range list.Failures {
				indices = append(indices, f.Index)
			}
			require.Equal(t, []int{2, 3, 4, 5, 6}, indices)
			require.ErrorIs(t, list, errTest)
			require.ErrorContains(t, list.Failures[4].Err, "before this record was attempted")
		})
	}
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
