package courier_test

// Clocks without a monotonic reading that somebody sets: no wait of the library is
// longer than was asked, nor shorter where the clock is set back.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// longWait is what most of them ask for.
const longWait = 10 * time.Second

// wait is one wait of the library: begin begins it, and has over called at its end.
type wait struct {
	asked time.Duration // longWait for 0
	least time.Duration // asked for 0
	begin func(t *testing.T, clock courier.Clock, over func())
}

// poll asks every 100 ms whether it is over.
func poll(t *testing.T, over func(), ask func() bool) {
	go func() {
		for !ask() {
			select {
			case <-t.Context().Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
		over()
	}()
}

// onSecond calls over when it is called for the second time, and returns an error
// before.
func onSecond(over func(), err error) func() error {
	n := 0
	var mu sync.Mutex
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 1 {
			return err
		}
		over()
		return nil
	}
}

func exactBreaker(clock courier.Clock, more ...func(p *courier.BreakerPolicy)) *courier.Breaker {
	p := courier.BreakerPolicy{FailureThreshold: 1, OpenFor: longWait, DisableJitter: true, Random: half, Clock: clock}
	for _, f := range more {
		f(&p)
	}
	return courier.NewBreaker(p)
}

// guarded parks in a queue that takes one record, and then none for a while.
func guarded(a courier.Applier[int], clock courier.Clock, over func()) courier.Applier[int] {
	return courier.NewDLQApplier(a, courier.DLQ[int](&courier.MemoryDLQ[int]{}), courier.DLQPolicy[int]{
		ParkWindow: 2, MinParked: 1, ParkPause: longWait, Clock: clock, OnPark: func(context.Context, courier.DeadLetter[int]) { over() },
	})
}

func applierOf(call func() error) courier.Applier[int] {
	return courier.ProcessFunc(func(context.Context, int) error { return call() })
}

// asked is a failure that asks for the time that the others do.
func askedFor() error { return courier.RetryAfter(errTest, longWait) }

func clockWaits() map[string]wait {
	waits := map[string]wait{
		"breaker, open": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			b := exactBreaker(clock)
			_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1)
			poll(t, over, b.Ready)
		}},
		"breaker, calls": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			b := exactBreaker(clock)
			a := courier.NewCircuitBreakerApplier(applierOf(onSecond(over, errTest)), b)
			poll(t, func() {}, func() bool { return a.Apply(t.Context(), 1) == nil })
		}},
		"breaker, probe timeout": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			b := exactBreaker(clock, func(p *courier.BreakerPolicy) { p.OpenFor, p.ProbeTimeout = 1, longWait })
			_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1)
			time.Sleep(time.Nanosecond)
			_, err := b.Acquire(t.Context()) // and never reported
			require.NoError(t, err)
			poll(t, over, b.Ready)
		}},
		"breaker, window": {asked: longWait * 95 / 100, begin: func(t *testing.T, clock courier.Clock, over func()) {
			b := exactBreaker(clock, func(p *courier.BreakerPolicy) { p.FailureThreshold, p.FailureRate, p.Window = 0, 1, longWait })
			_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1)
			poll(t, over, func() bool { return b.Metrics().Calls == 0 })
		}},
		"budget": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			budget := courier.NewRetryBudget(courier.BudgetPolicy{Floor: 0.1, Burst: 1, Clock: clock})
			a := courier.NewRetryableApplier(always(errTest), courier.RetryPolicy{MaxAttempts: 2, InitialDelay: 1, Budget: budget})
			require.ErrorIs(t, a.Apply(t.Context(), 1), courier.ErrExhausted) // with the only retry there is
			poll(t, over, func() bool { return errors.Is(a.Apply(t.Context(), 1), courier.ErrExhausted) })
		}},
		"guard": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			parked := 0
			a := guarded(always(courier.Permanent(errTest)), clock, func() { parked++ })
			_, _ = a.Apply(t.Context(), 1), a.Apply(t.Context(), 2)
			poll(t, over, func() bool { _ = a.Apply(t.Context(), 3); return parked == 2 })
		}},
		"retry": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			policy := courier.RetryPolicy{InitialDelay: longWait, Jitter: courier.NoJitter, Clock: clock}
			go func() {
				_ = courier.NewRetryableApplier(applierOf(onSecond(over, errTest)), policy).Apply(t.Context(), 1)
			}()
		}},
		"retry, until it is given up": {asked: 8 * time.Second, begin: func(t *testing.T, clock courier.Clock, over func()) {
			policy := courier.RetryPolicy{InitialDelay: 4 * time.Second, Multiplier: 1, Jitter: courier.NoJitter, MaxElapsed: longWait, Clock: clock,
				OnGiveUp: func(context.Context, *courier.RetryError) { over() }}
			go func() { _ = courier.NewRetryableApplier(always(errTest), policy).Apply(t.Context(), 1) }()
		}},
		"attempt timeout": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			a := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }), longWait, clock)
			go func() { _ = a.Apply(t.Context(), 1); over() }()
		}},
		"call of the queue": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			queue := &dlqFunc{send: func(ctx context.Context, _ courier.DeadLetter[int]) error { <-ctx.Done(); over(); return ctx.Err() }}
			go func() {
				_ = courier.NewDLQApplier(always(courier.Permanent(errTest)), courier.DLQ[int](queue), courier.DLQPolicy[int]{Clock: clock}).Apply(t.Context(), 1)
			}()
		}},
		"polling, interval": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			fetched := onSecond(over, nil)
			courierttest.Start(t, courier.Sync(func(context.Context) ([]int, error) { return nil, fetched() }, nop[int], nop[[]int], quiet,
				courier.WithFixedInterval(), courier.WithInterval(longWait), courier.WithClock(clock)))
		}},
		"polling, lease": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			source := &renewable{leasing: newLeasing(1), every: longWait, renew: func(context.Context, []int) error { over(); return nil }}
			courierttest.Start(t, courier.NewPollingCoordinator(source, courier.ProcessFunc(func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }), quiet, courier.WithClock(clock)))
		}},
		"stream, lease": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			source := &renewable{leasing: newLeasing(1), every: longWait, renew: func(context.Context, []int) error { over(); return nil }}
			source.wait = true
			courierttest.Start(t, courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }), quiet, courier.WithClock(clock)))
		}},
		"polling, suspects": {asked: time.Minute, begin: func(t *testing.T, clock courier.Clock, over func()) {
			courierttest.Start(t, courier.NewPollingCoordinator(newShelf(0, 1), suspect(clock, over), quiet, courier.WithInterval(time.Second), courier.WithFixedInterval(), courier.WithClock(clock)))
		}},
		"stream, suspects": {asked: time.Minute, begin: func(t *testing.T, clock courier.Clock, over func()) {
			ch := make(chan int, 2)
			ch <- 0
			ch <- 1
			courierttest.Start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), suspect(clock, over), quiet, courier.WithClock(clock)))
		}},
		"polling, key of a lease": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			first := onSecond(func() {}, errTest)
			var r courierttest.Recorder[int]
			courierttest.Start(t, courier.NewPollingCoordinator(r.LeasingSource(time.Hour, 1, 2), courier.ProcessFunc(func(_ context.Context, r int) error {
				if r == 1 {
					return first()
				}
				over()
				return nil
			}), quiet, courier.WithFixedInterval(), courier.WithInterval(longWait), courier.WithOrderKey(func(int) string { return "k" }), courier.WithClock(clock)))
		}},
		"stream, flush": {begin: func(t *testing.T, clock courier.Clock, over func()) {
			ch := make(chan int, 2)
			ch <- 1
			ch <- 2
			courierttest.Start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, func(context.Context, []int) error { over(); return nil }),
				courier.ProcessFunc(func(ctx context.Context, r int) error {
					if r == 2 {
						<-ctx.Done()
					}
					return ctx.Err()
				}), quiet, courier.WithFlushInterval(longWait), courier.WithClock(clock)))
		}},
	}
	stacks := map[string]func(clock courier.Clock, over func()) courier.Applier[int]{
		"breaker": func(clock courier.Clock, over func()) courier.Applier[int] {
			return courier.NewCircuitBreakerApplier(applierOf(onSecond(over, errTest)), exactBreaker(clock))
		},
		"resilient": func(clock courier.Clock, over func()) courier.Applier[int] {
			calls := 0
			a, _ := courier.ResilientApplier(applierOf(func() error {
				if calls++; calls <= 2 {
					return errTest
				}
				over()
				return nil
			}), &courier.ResilientConfig[int]{Clock: clock, Retry: courier.RetryPolicy{InitialDelay: 1},
				Breaker: courier.BreakerPolicy{FailureThreshold: 2, OpenFor: longWait, Random: half}})
			return a
		},
		"fan-out of breakers": func(clock courier.Clock, over func()) courier.Applier[int] {
			return courier.NewFanOutApplier(
				courier.NewCircuitBreakerApplier(applierOf(onSecond(over, errTest)), exactBreaker(clock)),
				courier.NewCircuitBreakerApplier(applierOf(onSecond(func() {}, errTest)), exactBreaker(clock, func(p *courier.BreakerPolicy) { p.OpenFor = 6 * time.Second })))
		},
		"breaker beside a slow branch": func(clock courier.Clock, over func()) courier.Applier[int] {
			return courier.NewFanOutApplier(courier.NewCircuitBreakerApplier(applierOf(onSecond(over, errTest)), exactBreaker(clock)), slowBranch())
		},
		"guard beside a slow branch": func(clock courier.Clock, over func()) courier.Applier[int] {
			parked := 0
			return courier.NewFanOutApplier(guarded(always(courier.Permanent(errTest)), clock, func() {
				if parked++; parked == 2 {
					over()
				}
			}), slowBranch())
		},
		"guard": func(clock courier.Clock, over func()) courier.Applier[int] {
			parked := 0
			return guarded(always(courier.Permanent(errTest)), clock, func() {
				if parked++; parked == 2 {
					over()
				}
			})
		},
	}
	for name, stack := range stacks {
		records, least, asked := 1, longWait, longWait
		if strings.HasPrefix(name, "guard") {
			records = 2
		}
		if strings.HasSuffix(name, "slow branch") { // after which the pause begins
			asked = 2 * longWait
		}
		waits["polling, "+name] = wait{least: least, asked: asked, begin: func(t *testing.T, clock courier.Clock, over func()) {
			courierttest.Start(t, courier.NewPollingCoordinator(newShelf(numbers(records)...), stack(clock, over), quiet, courier.WithClock(clock)))
		}}
		waits["polling, "+name+", leasing by key"] = wait{least: least, asked: asked, begin: func(t *testing.T, clock courier.Clock, over func()) {
			var r courierttest.Recorder[int]
			courierttest.Start(t, courier.NewPollingCoordinator(r.LeasingSource(time.Hour, numbers(records)...), stack(clock, over), quiet, courier.WithOrderKey(func(int) string { return "k" }), courier.WithClock(clock)))
		}}
		waits["stream, "+name] = wait{least: least, asked: asked, begin: func(t *testing.T, clock courier.Clock, over func()) {
			ch := make(chan int, 2)
			for _, n := range numbers(records) {
				ch <- n
			}
			courierttest.Start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), stack(clock, over), quiet, courier.WithClock(clock)))
		}}
	}
	for shape, build := range map[string]func(fetch func(ctx context.Context) error, apply, mark func() error, o ...courier.Option) courierttest.Starter{
		"polling": func(fetch func(ctx context.Context) error, apply, mark func() error, o ...courier.Option) courierttest.Starter {
			shelf := newShelf(1)
			return courier.Sync(func(ctx context.Context) ([]int, error) {
				if err := fetch(ctx); err != nil {
					return nil, err
				}
				return shelf.Fetch(ctx, 1)
			}, func(context.Context, int) error { return apply() }, func(ctx context.Context, records []int) error {
				if err := mark(); err != nil {
					return err
				}
				return shelf.Mark(ctx, records)
			}, o...)
		},
		"stream": func(fetch func(ctx context.Context) error, apply, mark func() error, o ...courier.Option) courierttest.Starter {
			ch := make(chan int, 1)
			ch <- 1
			return courier.NewStreamingCoordinator(struct {
				fetchedBy
				sourceMark
			}{func(ctx context.Context, limit int) ([]int, error) {
				if err := fetch(ctx); err != nil {
					return nil, err
				}
				return courier.NewChannelSource(ch, nop[[]int]).Fetch(ctx, limit)
			}, func(context.Context, []int) error { return mark() }}, applierOf(apply), o...)
		},
	} {
		fine := func() error { return nil }
		waits[shape+", fetch"] = wait{begin: func(t *testing.T, clock courier.Clock, over func()) {
			fetched := onSecond(over, askedFor())
			courierttest.Start(t, build(func(context.Context) error { return fetched() }, fine, fine, quiet, courier.WithClock(clock)))
		}}
		waits[shape+", mark"] = wait{begin: func(t *testing.T, clock courier.Clock, over func()) {
			courierttest.Start(t, build(func(context.Context) error { return nil }, fine, onSecond(over, askedFor()), quiet, courier.WithClock(clock)))
		}}
		waits[shape+", drain"] = wait{begin: func(t *testing.T, clock courier.Clock, over func()) {
			var c courierttest.Starter
			hangs := courier.ProcessFunc(func(ctx context.Context, _ int) error { <-ctx.Done(); over(); return ctx.Err() })
			if shape == "polling" {
				c = courier.NewPollingCoordinator(newShelf(1), hangs, quiet, courier.WithClock(clock))
			} else {
				ch := make(chan int, 1)
				ch <- 1
				c = courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), hangs, quiet, courier.WithClock(clock))
			}
			run := courierttest.Start(t, c)
			synctest.Wait()
			go func() { _ = run.Stop() }()
		}}
	}
	for name, opts := range map[string][]courier.Option{
		"stream, held":          nil,
		"stream, held, by key":  {courier.WithOrderKey(func(int) string { return "k" })},
		"stream, held, ordered": {courier.WithOrderedMarks()},
	} {
		waits[name] = wait{begin: func(t *testing.T, clock courier.Clock, over func()) {
			courierttest.Start(t, channelOf(applierOf(onSecond(over, askedFor())), append(opts, courier.WithClock(clock))...))
		}}
	}
	return waits
}

type fetchedBy func(ctx context.Context, limit int) ([]int, error)

func (f fetchedBy) Fetch(ctx context.Context, limit int) ([]int, error) { return f(ctx, limit) }

// slowBranch takes 5 seconds for its first record.
func slowBranch() courier.Applier[int] {
	var once sync.Once
	return courier.ProcessFunc(func(context.Context, int) error {
		once.Do(func() { time.Sleep(longWait / 2) })
		return nil
	})
}

// suspect is a stack that leaves record 0 alone for a while, over which its breaker
// has opened: record 1 was applied since, and one success does not close it.
func suspect(clock courier.Clock, over func()) courier.Applier[int] {
	again := onSecond(over, errTest)
	return courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
		if r == 0 {
			return again()
		}
		return nil
	}), exactBreaker(clock, func(p *courier.BreakerPolicy) { p.OpenFor, p.Successes = 1, 2 }))
}

func TestClock_AStepMakesNoWaitLonger(t *testing.T) { // B-17
	type step struct {
		at float64 // of the wait
		by time.Duration
	}
	for name, w := range clockWaits() {
		if w.asked == 0 {
			w.asked = longWait
		}
		if w.least == 0 {
			w.least = w.asked
		}
		for when, steps := range map[string][]step{
			"no step":         nil,
			"back soon":       {{0.1, -time.Hour}},
			"back halfway":    {{0.5, -time.Hour}},
			"back at the end": {{0.9, -time.Hour}},
			"back twice":      {{0.3, -time.Hour}, {0.7, -25 * time.Hour}},
			"back by half":    {{0.5, -w.asked / 2}},
			"back by a bit":   {{0.5, -w.asked / 30}},
			"there and back":  {{0.2, time.Hour}, {0.8, -time.Hour}},
		} {
			t.Run(name+"/"+when, func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					clock := &wallClock{}
					began := time.Now()
					var mu sync.Mutex
					var took time.Duration
					w.begin(t, clock, func() {
						mu.Lock()
						defer mu.Unlock()
						if took == 0 {
							took = time.Since(began)
						}
					})
					forward := false
					for _, s := range steps {
						time.Sleep(time.Until(began.Add(time.Duration(s.at * float64(w.asked)))))
						clock.step(s.by)
						forward = forward || s.by > 0
					}
					time.Sleep(3 * w.asked)
					mu.Lock()
					defer mu.Unlock()
					require.NotZero(t, took, "it waits still")
					require.LessOrEqual(t, took, w.asked*11/10+200*time.Millisecond)
					if !forward { // of which nothing tells that the time has not passed
						require.GreaterOrEqual(t, took, w.least*99/100)
					}
				})
			})
		}
	}
}

// Many waits at a time, whatever the clock does meanwhile: none that a stream's
// records have asked for is longer than that, and only one that began after a step
// may be shorter, by what that has hidden.
func TestClock_StepsBetweenManyWaits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			clock := &wallClock{}
			var mu sync.Mutex
			type record struct {
				asked       time.Duration
				began, over time.Time
			}
			var records []*record
			var events, steps []time.Time
			ch := make(chan int, 100)
			opts := []courier.Option{quiet, courier.WithClock(clock), courier.WithRandom(func() float64 { return 0 }), courier.WithFlushInterval(time.Second)}
			if rapid.Bool().Draw(t, "by key") {
				opts = append(opts, courier.WithOrderKey(func(r int) string { return fmt.Sprint(r) }))
			}
			c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), courier.ProcessFunc(func(_ context.Context, r int) error {
				mu.Lock()
				defer mu.Unlock()
				if one := records[r]; one.began.IsZero() {
					one.began = time.Now()
					return courier.RetryAfter(errTest, one.asked)
				} else if one.over.IsZero() {
					one.over = time.Now()
				}
				return nil
			}), opts...)
			stop := start(t, c)
			for range rapid.IntRange(1, 12).Draw(t, "events") {
				time.Sleep(time.Duration(rapid.IntRange(1, 30).Draw(t, "seconds")) * time.Second)
				if rapid.IntRange(0, 2).Draw(t, "event") == 0 {
					clock.step(-time.Duration(rapid.IntRange(2, 5000).Draw(t, "step")) * time.Second)
					steps = append(steps, time.Now())
					continue
				}
				mu.Lock()
				events = append(events, time.Now())
				records = append(records, &record{asked: time.Duration(rapid.IntRange(1, 100).Draw(t, "asked")) * time.Second})
				ch <- len(records) - 1
				mu.Unlock()
			}
			time.Sleep(101 * time.Second)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			// How much of the time a step may have hidden from what began after it.
			for _, r := range records {
				events = append(events, r.over)
			}
			for i, r := range records {
				hidden := time.Duration(0)
				for _, step := range steps {
					if step.After(r.began) {
						continue
					}
					before, after := step.Add(-time.Minute), r.over
					for _, e := range events {
						if e.Before(step) && e.After(before) {
							before = e
						}
						if e.After(step) && e.Before(after) {
							after = e
						}
					}
					hidden += after.Sub(before)
				}
				if took := r.over.Sub(r.began); took > r.asked || took < r.asked-hidden {
					t.Errorf("record %d waited %v, and asked for %v; the steps may have hidden %v", i, took, r.asked, hidden)
				}
			}
		})
	})
}

// A clock that moves in steps of its own is no clock that is set back, and does not
// run the faster for that it is waited for.
func TestClock_CoarseSteps(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		clock := coarseClock{}
		began := time.Now()
		var took time.Duration
		stack := suspect(clock, func() { took = time.Since(began) })
		stop := start(t, courier.NewPollingCoordinator(newShelf(0, 1), stack, quiet, courier.WithInterval(100*time.Millisecond), courier.WithFixedInterval(), courier.WithClock(clock)))
		time.Sleep(2 * time.Minute)
		require.NoError(t, stop())
		require.InDelta(t, time.Minute, took, float64(time.Second))
	})
}

// coarseClock tells the time to a half second.
type coarseClock struct{}

func (coarseClock) Now() time.Time                         { return time.Now().UTC().Truncate(500 * time.Millisecond) }
func (coarseClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// A clock that is set forward has passed an alarm that was set for later: the next one
// is set all the same.
func TestClock_AnAlarmThatAStepHasPassed(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		clock := &wallClock{}
		var mu sync.Mutex
		began := make(map[int]time.Time)
		took := make(map[int]time.Duration)
		ch := make(chan int, 2)
		ch <- 0
		courierttest.Start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), courier.ProcessFunc(func(_ context.Context, r int) error {
			mu.Lock()
			defer mu.Unlock()
			if began[r].IsZero() {
				began[r] = time.Now()
				return courier.RetryAfter(errTest, []time.Duration{10 * longWait, longWait}[r])
			}
			took[r] = time.Since(began[r])
			return nil
		}), quiet, courier.WithClock(clock), courier.WithRandom(func() float64 { return 0 })))
		time.Sleep(time.Second)
		clock.step(time.Hour)
		ch <- 1
		time.Sleep(20 * longWait)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, longWait, took[1])
	})
}

// The clocks of a stack may be older than the coordinator, and have been set back before.
func TestClock_OfABreakerThatIsOlderThanItsCoordinator(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		clock := &wallClock{}
		b := exactBreaker(clock)
		_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1)
		time.Sleep(longWait)
		require.NoError(t, courier.NewCircuitBreakerApplier(always(nil), b).Apply(t.Context(), 1))
		clock.step(-time.Hour)
		began, took := time.Now(), time.Duration(0)
		call := onSecond(func() { took = time.Since(began) }, errTest)
		stop := start(t, courier.NewPollingCoordinator(newShelf(0), courier.NewCircuitBreakerApplier(applierOf(call), b), quiet,
			courier.WithInterval(time.Second), courier.WithFixedInterval(), courier.WithClock(clock)))
		time.Sleep(longWait / 2)
		clock.step(-time.Hour)
		time.Sleep(3 * longWait)
		require.NoError(t, stop())
		require.InDelta(t, longWait, took, float64(longWait/10))
	})
}

// A redrive waits for a breaker for no longer after its clock was set back.
func TestClock_ARedriveWaitsAfterAStep(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		clock := &wallClock{}
		queue := &courier.MemoryDLQ[int]{}
		for n := range 3 {
			require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[int]{Record: n, Error: errTest}))
		}
		b := exactBreaker(clock, func(p *courier.BreakerPolicy) { p.OpenFor = time.Second })
		a := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, n int) error {
			switch n {
			case 0:
				return errTest
			case 1:
				clock.step(-time.Hour)
				return errTest
			}
			return nil
		}), b)
		result, err := courier.Redrive(t.Context(), courier.DLQ[int](queue), a, &courier.RedriveConfig[int]{Clock: clock})
		require.NoError(t, err)
		require.Equal(t, 1, result.Succeeded)
	})
}

// A time that is told is one of the clock as it is now, also where it was set back before.
func TestClock_TimesThatAreTold(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		clock := &wallClock{}
		apply := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 1 {
				return courier.Later(errTest, longWait/2)
			}
			return errTest
		}), exactBreaker(clock))
		opts := []courier.Option{courier.WithClock(clock), courier.WithObserver(told.Observer())}
		if !source.wait {
			opts = append(opts, courier.WithInterval(time.Second))
		}
		c := make(apply, opts...)
		stop := start(t, c)
		time.Sleep(5 * time.Second)
		clock.step(-time.Hour)
		time.Sleep(5 * time.Second)
		source.add(1)
		time.Sleep(1500 * time.Millisecond)
		next := c.Stats().NextAttempt
		require.WithinDuration(t, clock.Now().Add(longWait/2), next, 2*time.Second)
		source.add(2)
		time.Sleep(1500 * time.Millisecond)
		pauses := courierttest.EventsOf[courier.PauseEvent](&told)
		require.Len(t, pauses, 1)
		require.WithinDuration(t, clock.Now().Add(longWait), pauses[0].Until, 2*time.Second)
		require.NoError(t, stop())
	})
	synctest.Test(t, func(t *testing.T) {
		clock := &wallClock{}
		a := guarded(always(courier.Permanent(errTest)), clock, func() {})
		for n := range 4 {
			err := a.Apply(t.Context(), n)
			if rate := (*courier.ParkRateError)(nil); errors.As(err, &rate) {
				require.Equal(t, clock.Now().Add(longWait), rate.Until)
				clock.step(-time.Hour)
				clock.Now()
			}
		}
		require.ErrorIs(t, a.Apply(t.Context(), 5), courier.ErrParkRate)
	})
}
