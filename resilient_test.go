package courier_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// C-6 and P-1 to P-4: 100 healthy records and one poison record that looks
// transient, through outages of any length, for every legal threshold. No
// healthy record is parked, the poison record is, nothing is applied twice, and
// no call is made while the breaker is open.
func TestC6_AnOutageParksNoHealthyRecordAndPoisonIsParked(t *testing.T) {
	for _, outage := range []time.Duration{0, 30 * time.Second, time.Minute, 24 * time.Hour} {
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

// What thresholds outside the legal range do, which is why ResilientApplier
// refuses them: below it poison is never parked, above it an outage parks the
// record at its head.
func TestP4_ThresholdsOutsideTheRange(t *testing.T) {
	for threshold, healthyParked := range map[int]int{1: 0, 6: 1} {
		t.Run(fmt.Sprint(threshold), func(t *testing.T) {
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
// another record comes.
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

// An outage whose symptom is a panic is an outage.
func TestResilient_APanickingOutageParksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		source := newShelf(numbers(10)...)
		stack, dlq := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
			if time.Since(began) < time.Hour {
				panic("nil connection")
			}
			return nil
		}), nil)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(2 * time.Hour)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Empty(t, parked)
		require.Empty(t, source.left())
	})
}

func TestResilient_TheDefaultThresholdFollowsMaxAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		stack, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			return errTest
		}), &courier.ResilientConfig[int]{Retry: courier.RetryPolicy{MaxAttempts: 3}})
		require.ErrorIs(t, stack.Apply(t.Context(), 1), courier.ErrOpen)
		require.Equal(t, 3, calls)
	})
}

func TestResilient_UsesTheGivenQueueAndClock(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	queue := &courier.MemoryDLQ[int]{Capacity: 1}
	stack, dlq := courier.ResilientApplier(always(courier.Permanent(errTest)), &courier.ResilientConfig[int]{DLQ: queue, Clock: stopped(now)})
	require.Same(t, queue, dlq)
	require.NoError(t, stack.Apply(t.Context(), 1))
	parked, _ := queue.Receive(t.Context(), 1)
	require.Equal(t, now, parked[0].FailedAt)
}

// stopped is a clock on which nothing ever comes due.
type stopped time.Time

func (c stopped) Now() time.Time                     { return time.Time(c) }
func (stopped) After(time.Duration) <-chan time.Time { return nil }

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

// C-6: a row that cannot be decoded, and a record that there is nothing to do for, say
// nothing of the destination. They open no way for the others while that is down.
func TestC6_AnOutageAmongRecordsThatAreNotForTheDestination(t *testing.T) {
	for n := range 8 {
		stream, batches, skips := n&1 > 0, n&2 > 0, n&4 > 0
		t.Run(fmt.Sprintf("stream %v, batches %v, skips %v", stream, batches, skips), func(t *testing.T) {
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
