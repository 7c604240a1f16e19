package courier_test

// Poison records beside an outage (P rules): suspects, probes and attempts.

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
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
		t.Run(fmt.Sprintf("%d successes, batch %d, %s", successes, batch, choose(refusing, "another is refused", "none is refused")), func(t *testing.T) {
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

// fetchFunc is a source with another Fetch.
type fetchFunc[T any] struct {
	courier.Source[T]
	fetch func(context.Context, int) ([]T, error)
}

func (f *fetchFunc[T]) Fetch(ctx context.Context, limit int) ([]T, error) { return f.fetch(ctx, limit) }

// The attempts of one retry are not another's: a process function that retries
// something of its own starts at none.
func TestP2_AttemptsBelongToTheRetryThatCountedThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &batchSink[int]{}
		var innerFailures int
		inner.fail = func(context.Context, int, int) error {
			if innerFailures++; innerFailures < 3 {
				return errTest
			}
			return nil
		}
		policy := plain
		policy.MaxAttempts = 3
		items := courier.NewRetryableApplier[int](inner, policy)
		began := time.Now()
		stack, dlq := courier.ResilientApplier(courier.ProcessFunc(func(ctx context.Context, r int) error {
			if time.Since(began) < time.Minute {
				return errTest
			}
			if r != 0 { // not the one with attempts behind it
				return nil
			}
			if err := asBatch(items).ApplyBatch(ctx, []int{1, 2, 3}); err != nil {
				return err
			}
			return items.Apply(ctx, 1)
		}), nil)
		source := newShelf(0, 1)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Empty(t, parked)
		require.Empty(t, source.left())
	})
}

func TestP2_PoisonInAFanOutBranchIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), poison: 7, applied: map[int]int{}}
		a, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
		source := newShelf(numbers(50)...)
		stop := start(t, courier.NewPollingCoordinator(source, courier.NewFanOutApplier[int](a, &sink[int]{}), quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Len(t, parked, 1)
		require.Equal(t, 7, parked[0].Record)
		require.Empty(t, source.left())
	})
}

func TestP3_ABreakerThatWantsSeveralSuccessesClosesBesideAPoisonRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), outage: time.Minute, poison: 0, applied: map[int]int{}}
		stack, dlq := courier.ResilientApplier(courier.Applier[int](d), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: 3}})
		source := newShelf(numbers(1000)...)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(15 * time.Minute)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Len(t, parked, 1)
		require.Empty(t, source.left())
	})
}

// A breaker that wants several successes gets them from records that come now
// and then, and not undone by the poison that is due between them.
func TestP3_SuspectsWaitWhileTheBreakerWantsMoreSuccesses(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &destination{began: time.Now(), poison: 0, applied: map[int]int{}}
				stack, dlq := courier.ResilientApplier(courier.Applier[int](d), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: 2, MaxOpenFor: 10 * time.Second}})
				source := newLeasing(0)
				source.wait = true
				var c interface{ Start(context.Context) error } = courier.NewPollingCoordinator(source.shelf, stack, quiet)
				if shape == "streaming" {
					c = courier.NewStreamingCoordinator(source, stack, quiet)
				}
				stop := start(t, c)
				for i := range 60 {
					time.Sleep(40 * time.Second)
					source.add(1 + i)
				}
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				parked, _ := dlq.Receive(t.Context(), 10)
				require.Len(t, parked, 1)
				require.Empty(t, source.left())
			})
		})
	}
}

// A suspect that somebody else has settled is not looked for for ever: the fetch
// for a probe asks for one record more than twice as many as there are suspects.
func TestP2_ASuspectThatIsGoneIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		stack, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
			if down.Load() {
				return errTest
			}
			return nil
		}), nil)
		source := newShelf[int]()
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet, courier.WithIdentity(strconv.Itoa)))
		firstProbe := func(records ...int) int {
			down.Store(true)
			source.add(records...)
			before := source.fetchCount()
			time.Sleep(time.Minute)
			source.mu.Lock()
			defer source.mu.Unlock()
			for _, limit := range source.limits[before:] {
				if limit != 100 {
					return limit
				}
			}
			return 0
		}
		require.Equal(t, 3, firstProbe(0, 1))
		require.NoError(t, source.Mark(t.Context(), []int{0, 1})) // by another process
		down.Store(false)
		time.Sleep(time.Minute)
		source.add(2) // the probe that shows the destination to be well
		time.Sleep(3 * time.Hour)
		require.Empty(t, source.left())
		require.Equal(t, 3, firstProbe(3, 4), "and no suspects of three hours ago")
		require.NoError(t, stop())
	})
}

// A source that hides what it has handed out for a while does not show a
// suspect in every fetch.
func TestP2_ASuspectIsRememberedWhileItsSourceHidesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), poison: 0, applied: map[int]int{}}
		stack, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
		source := newShelf(numbers(20)...)
		hidden := map[int]time.Time{}
		wrapped := &fetchFunc[int]{Source: source, fetch: func(_ context.Context, limit int) ([]int, error) {
			var records []int
			for _, r := range source.left() {
				if len(records) < limit && time.Now().After(hidden[r]) {
					hidden[r] = time.Now().Add(30 * time.Second)
					records = append(records, r)
				}
			}
			return records, nil
		}}
		stop := start(t, courier.NewPollingCoordinator(wrapped, stack, quiet))
		for i := range 30 {
			time.Sleep(time.Minute)
			source.add(100 + i)
		}
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Len(t, parked, 1)
		require.Equal(t, 0, parked[0].Record)
	})
}

func TestD10_Stream_TheEndHandsALonePoisonRecordBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		d := &destination{began: began, poison: 9, applied: map[int]int{}}
		stack, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
		var marked collector
		err := courier.NewStreamingCoordinator(courier.NewChannelSource(stream(10), marked.mark), stack, quiet).Start(t.Context())
		var left *courier.UnsettledError[int]
		require.ErrorAs(t, err, &left)
		require.Equal(t, []int{9}, left.Records)
		require.ErrorIs(t, err, courier.ErrOpen)
		require.Equal(t, numbers(9), marked.all())
		require.Less(t, time.Since(began), 10*time.Minute)
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Empty(t, parked)
	})
}

// What thresholds outside the legal range do, which is why ResilientApplier
// refuses them: below it poison is never parked, above it an outage parks the
// record at its head.
func TestP4_ThresholdsOutsideTheRange(t *testing.T) {
	for threshold, healthyParked := range map[int]int{1: 0, 6: 1} {
		t.Run(fmt.Sprint("threshold ", threshold), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &destination{began: time.Now(), outage: time.Hour, poison: 50, applied: map[int]int{}}
				retried := courier.WithRetry(courier.NewCircuitBreakerApplier(courier.Applier[int](d), courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: threshold})))
				stack, queue := withDLQ(retried)
				source := newShelf(numbers(100)...)
				stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
				time.Sleep(3 * time.Hour)
				require.NoError(t, stop())
				healthy, poison := 0, 0
				parked, _ := queue.Receive(t.Context(), 100)
				for _, letter := range parked {
					if letter.Record == 50 {
						poison++
					} else {
						healthy++
					}
				}
				require.Equal(t, healthyParked, healthy)
				require.Equal(t, threshold > 1, poison == 1)
			})
			refused, _ := courier.ResilientApplier(always(nil), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{FailureThreshold: threshold}})
			require.ErrorIs(t, refused.Apply(t.Context(), 1), courier.ErrConfig)
		})
	}
}

// A lone poison record stays pending: nothing tells it from an outage until
// others come. With five attempts one is enough.
func TestP3_ALonePoisonRecordStaysPendingUntilAnotherArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), poison: 0, applied: map[int]int{}}
		stack, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
		source := newShelf(0)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(time.Hour)
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Empty(t, parked)
		source.add(1)
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		parked, _ = dlq.Receive(t.Context(), 1)
		require.Len(t, parked, 1)
		require.Equal(t, 6, parked[0].Attempts, "P-2: the five before the pause count, and the last of them is made once more")
	})
}

// P-3: after the pause a lone poison record makes up to FailureThreshold attempts before the
// breaker opens again over it, so each record that gets through brings it that much nearer
// to its verdict.
func TestP3_EachRecordThatGetsThroughLetsALonePoisonRecordMakeMoreAttempts(t *testing.T) {
	for attempts, others := range map[int]int{5: 1, 6: 1, 10: 2, 20: 4, 50: 10} { // with the threshold of 5
		t.Run(strconv.Itoa(attempts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &destination{began: time.Now(), poison: 0, applied: map[int]int{}}
				stack, dlq := courier.ResilientApplier(courier.Applier[int](d), &courier.ResilientConfig[int]{
					Retry: courier.RetryPolicy{MaxAttempts: attempts},
				})
				source := newShelf(0)
				coordinator := courier.NewPollingCoordinator(source, stack, quiet)
				stop := start(t, coordinator)
				for n := range others {
					time.Sleep(time.Hour)
					parked, _ := dlq.Receive(t.Context(), 1)
					require.Emptyf(t, parked, "after %d others", n)
					require.ErrorIs(t, coordinator.Ready(), courier.ErrOpen)
					source.add(n + 1)
				}
				time.Sleep(time.Hour)
				require.NoError(t, stop())
				parked, _ := dlq.Receive(t.Context(), 1)
				require.Len(t, parked, 1)
			})
		})
	}
}

// P-3, D3: over a record that panics, or ends its goroutine, where no decorator
// makes an error of that, the breaker opens as over any other: the next probe is
// another record.
func TestP3_ARecordThatPanicsIsTheSuspect(t *testing.T) {
	for end, how := range map[string]func(){"panic": func() { panic(errTest) }, "goexit": runtime.Goexit} {
		for name, wrap := range map[string]func(courier.Applier[int], *courier.Breaker) courier.Applier[int]{
			"breaker": func(a courier.Applier[int], b *courier.Breaker) courier.Applier[int] {
				return courier.NewCircuitBreakerApplier(a, b)
			},
			"retry around it": func(a courier.Applier[int], b *courier.Breaker) courier.Applier[int] {
				return courier.WithRetry(courier.NewCircuitBreakerApplier(a, b))
			},
		} {
			for _, bad := range []int{2, 4} { // a record is refused behind them, or none is
				t.Run(fmt.Sprintf("%s, %s, the last %d of 4", end, name, bad), func(t *testing.T) {
					both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
						s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
							if r < bad {
								how()
							}
							return nil
						}}
						source.add(numbers(4)...)
						stop := start(t, make(wrap(s, courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, OpenFor: time.Minute}))))
						time.Sleep(time.Minute)
						source.add(4, 5)
						time.Sleep(time.Hour)
						require.NoError(t, stop())
						require.Equal(t, numbers(bad), slices.Sorted(slices.Values(source.left())))
					})
				})
			}
		}
	}
}

// P-2: what was used on a record counts behind an outage, on another one than that
// over which the breaker opened, too.
func TestP2_WhatWasUsedOnEveryRecordCounts(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var mu sync.Mutex
		calls := map[int]int{}
		applier, queue := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			mu.Lock()
			calls[r]++
			n := calls[r]
			mu.Unlock()
			time.Sleep(time.Duration(r) * 50 * time.Millisecond)
			if r == 1 || n <= 2 { // 1 is poison
				return errTest
			}
			return nil
		}), &courier.ResilientConfig[int]{
			Retry:   courier.RetryPolicy{MaxAttempts: 3, Jitter: courier.NoJitter},
			Breaker: courier.BreakerPolicy{FailureThreshold: 3, OpenFor: time.Minute},
		})
		source.add(0, 1)
		opts := []courier.Option{unspread, courier.WithWorkers(2)}
		if source.wait {
			opts = []courier.Option{unspread, courier.WithStreamWorkers(2)}
		}
		stop := start(t, make(applier, opts...))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		letters, err := queue.Receive(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		require.Equal(t, 3, calls[1], "the attempt before the outage, and two behind it")
		require.Equal(t, 3, letters[0].Attempts)
	})
}
