package courier_test

// Bad input (D12): faults of a pipeline that show while it runs, nil values, and numbers and
// durations at their limits.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

var anyEnd = rapid.SampledFrom([]time.Duration{1, time.Millisecond, time.Minute, math.MaxInt64 / 2, math.MaxInt64 - 1, math.MaxInt64})

// anyAsked is what somebody may ask for with RetryAfter.
var anyAsked = rapid.SampledFrom([]time.Duration{math.MinInt64, -1, 0, 1, time.Second, time.Hour, math.MaxInt64 - 1, math.MaxInt64})

func TestR2_ARetryWaitsAsLongAsItMay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			policy := courier.RetryPolicy{MaxAttempts: 4, Jitter: courier.Jitter(rapid.IntRange(0, 3).Draw(t, "jitter"))}
			policy.InitialDelay = anyEnd.Draw(t, "InitialDelay")
			policy.MaxDelay = max(policy.InitialDelay, anyEnd.Draw(t, "MaxDelay"))
			policy.MaxRetryAfter = anyEnd.Draw(t, "MaxRetryAfter")
			policy.MaxElapsed = rapid.OneOf(rapid.Just(time.Duration(0)), anyEnd).Draw(t, "MaxElapsed")
			policy.Multiplier = rapid.SampledFrom([]float64{1, 2, math.MaxFloat64}).Draw(t, "Multiplier")
			random := rapid.SampledFrom([]float64{0, 0.5, math.Nextafter(1, 0)}).Draw(t, "random")
			policy.Random = func() float64 { return random }
			asked := anyAsked.Draw(t, "asked")
			lasts := rapid.SampledFrom([]time.Duration{0, 1, time.Second}).Draw(t, "an attempt")
			began := time.Now()
			var retries []courier.RetryEvent
			var at []time.Time
			policy.OnRetry = func(_ context.Context, e courier.RetryEvent) { retries = append(retries, e) }
			var gaveUp *courier.RetryError
			policy.OnGiveUp = func(_ context.Context, e *courier.RetryError) { gaveUp = e }
			ctx, cancel := context.WithCancel(t.Context()) // and no deadline, which the retry would see coming
			defer cancel()
			const end = time.Hour + 7*time.Millisecond + 3 // an instant at which no wait ends, so that one thing happens at a time
			over := time.AfterFunc(end, cancel)
			defer over.Stop()
			_ = courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
				time.Sleep(lasts)
				at = append(at, time.Now()) // its end
				return courier.RetryAfter(errTest, asked)
			}), policy).Apply(ctx, 1)

			for i, e := range retries {
				least := min(max(0, asked), policy.MaxRetryAfter)
				if e.Delay < least || e.Delay > max(least, policy.MaxDelay) {
					t.Errorf("retry %d waits %v: want from %v to %v", i+1, e.Delay, least, max(least, policy.MaxDelay))
				}
				if i+1 < len(at) && at[i+1].Sub(at[i])-lasts != e.Delay {
					t.Errorf("retry %d came after %v, and was to wait %v", i+1, at[i+1].Sub(at[i])-lasts, e.Delay)
				}
				if limit := policy.MaxElapsed; limit > 0 && e.Delay > limit-at[i].Sub(began) {
					t.Errorf("retry %d waits %v, %v after the call, of which %v is the limit", i+1, e.Delay, at[i].Sub(began), limit)
				}
			}
			took := time.Since(began)
			switch {
			case took > end+lasts:
				t.Errorf("it took %v, beyond the end of the context", took)
			case gaveUp == nil:
				t.Error("it was not given up")
			case gaveUp.Reason == courier.ReasonDeadline && took != at[len(at)-1].Sub(began):
				t.Error("it waited before it gave up over the time")
			case gaveUp.Elapsed < 0 || gaveUp.Elapsed > took:
				t.Errorf("Elapsed is %v, of %v", gaveUp.Elapsed, took)
			}
		})
	})
}

// A coordinator whose durations are anything works off what can be, stops in time,
// and is in no loop: it does no more calls than its shortest durations explain.
func TestConfig_DurationsOfAnyLengthMakeNoLoop(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			shortest := time.Hour
			end := func(what string) time.Duration {
				d := anyEnd.Draw(t, what)
				shortest = min(shortest, d)
				return d
			}
			asked := anyAsked.Draw(t, "asked")
			retry := courier.RetryPolicy{InitialDelay: end("InitialDelay"), MaxRetryAfter: end("MaxRetryAfter"), MaxElapsed: end("MaxElapsed")}
			retry.MaxDelay = max(retry.InitialDelay, end("MaxDelay"))
			breaker := courier.BreakerPolicy{OpenFor: end("OpenFor"), ProbeTimeout: end("ProbeTimeout"), FailureThreshold: 2, FailureRate: 0.5, Window: end("Window"), SlowCall: end("SlowCall"), SlowCallRate: 1}
			breaker.MaxOpenFor, breaker.MaxRetryAfter = max(breaker.OpenFor, end("MaxOpenFor")), end("BreakerPolicy.MaxRetryAfter")
			a := courier.ProcessFunc(func(_ context.Context, r int) error {
				if r%2 == 1 {
					return courier.RetryAfter(errTest, asked)
				}
				return nil
			})
			stack, _ := courier.ResilientApplier(a, &courier.ResilientConfig[int]{Retry: retry, Breaker: breaker, Parking: courier.DLQPolicy[int]{ParkPause: end("ParkPause"), MinParked: 1, ParkWindow: 2}})
			if rapid.Bool().Draw(t, "plain") {
				stack = a
			}
			var calls atomic.Int64
			opts := []courier.Option{quiet, courier.WithDrainTimeout(anyEnd.Draw(t, "drain timeout")), courier.WithBatchSize(2), courier.WithObserver(courier.Observer{
				Fetched: func(_ context.Context, e courier.FetchEvent) {
					calls.Add(1)
					inTime(t, "RetryIn of a fetch", e.RetryIn)
				},
				Marked: func(_ context.Context, e courier.MarkEvent) { calls.Add(1); inTime(t, "RetryIn of a mark", e.RetryIn) },
				Released: func(_ context.Context, e courier.ReleaseEvent) {
					calls.Add(1)
					inTime(t, "After of a release", e.After)
				},
				Retried: func(_ context.Context, e courier.RetryEvent) { calls.Add(1); inTime(t, "Delay of a retry", e.Delay) },
			})}
			var c courierttest.Starter
			var r courierttest.Recorder[int]
			var pending func() []int
			if rapid.Bool().Draw(t, "stream") {
				s := r.StreamSource(0, 1, 2, 3)
				c, pending = courier.NewStreamingCoordinator(s, stack, append(opts, courier.WithFlushInterval(end("flush interval")))...), s.Pending
			} else {
				s := r.Source(0, 1, 2, 3)
				c, pending = courier.NewPollingCoordinator(s, stack, append(opts, courier.WithInterval(end("interval")))...), s.Pending
			}
			stop := start(t, c)
			lasts := min(time.Hour, 1000*shortest)
			time.Sleep(lasts)
			if n := calls.Load(); n > 10*int64(lasts/shortest)+1000 {
				t.Errorf("%d calls in %v", n, lasts)
			}
			began := time.Now()
			if err := stop(); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 0 {
				t.Errorf("it took %v to stop, with nothing in work", took)
			}
			if len(pending()) > 3 && stack == a {
				t.Errorf("nothing was settled: %v", pending())
			}
		})
	})
}

func inTime(t *rapid.T, what string, d time.Duration) {
	if d < 0 {
		t.Errorf("%s is %v", what, d)
	}
}

// inner builds a pipeline for each record, as for tenants of their own, one of which
// cannot be built.
func inner(ctx context.Context, r int) error {
	policy := courier.RetryPolicy{}
	if r == bad {
		policy.MaxAttempts = -1
	}
	return courier.NewRetryableApplier(courier.ProcessFunc(nop[int]), policy).Apply(ctx, r)
}

// D12, D3, D5: a configuration fault that comes while a coordinator runs is of
// somebody else's pipeline, since those of its own are known before. Its record stays
// pending, nothing is held against it, and the others are delivered.
func TestD12_AFaultOfAnotherPipelineIsItsRecords(t *testing.T) {
	for name, apply := range map[string]func(context.Context, int) error{
		"an inner pipeline": inner,
		"wrapped": func(_ context.Context, r int) error {
			if r == bad {
				return errors.Join(errTest, &courier.ConfigError{Field: "tenant", Problem: "has no address"})
			}
			return nil
		},
	} {
		one := courier.ProcessFunc(apply)
		together := &batchSink[int]{sink: sink[int]{fail: func(ctx context.Context, r, _ int) error { return apply(ctx, r) }}, failBatch: func(ctx context.Context, records []int, _ int) error {
			var failed courier.BatchError
			for i, r := range records {
				if err := apply(ctx, r); err != nil {
					failed.Add(i, err)
				}
			}
			return failed.ErrorOrNil()
		}}
		for i, a := range []courier.Applier[int]{one, together} {
			for _, p := range few(pipelines...) {
				for _, run := range runs {
					t.Run(fmt.Sprintf("%s %s %s, %s", name, p.name, run.name, batched(i == 1)), func(t *testing.T) {
						courierttest.Bubble(t, func(t *testing.T) {
							var h heard
							var r courierttest.Recorder[int]
							source, err := run.run(t, &r, p.wrap(a), h.options(), 0, 1, bad, 3, 4)
							require.NoError(t, err)
							left := source.Pending()
							if len(left) == 2 && left[1] == 9+later { // RunOnce has not seen the last one
								left = left[:1]
							}
							require.Equal(t, []int{bad}, left)
							told := false
							for _, err := range h.errs {
								told = told || errors.Is(err, courier.ErrConfig)
							}
							require.True(t, told)
						})
					})
				}
			}
		}
	}
}

// RunOnce returns it as the record's error, and a redrive stops at it as at
// everything that was not attempted: the letter stays as it is.
func TestD12_AFaultOfAnotherPipelineIsTold(t *testing.T) {
	source := newShelf(0, 1, bad, 3)
	err := courier.NewPollingCoordinator(source, courier.ProcessFunc(inner), quiet).RunOnce(t.Context())
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 1)
	require.Equal(t, 2, list.Failures[0].Index)
	require.ErrorIs(t, list.Failures[0].Err, courier.ErrConfig)
	require.Equal(t, []int{bad}, source.left())

	q := queueOf(0, bad, 3)
	before, _ := q.Receive(t.Context(), 9)
	result, err := courier.Redrive(t.Context(), q, courier.ProcessFunc(inner), nil)
	require.ErrorIs(t, err, courier.ErrRedrive)
	require.ErrorIs(t, err, courier.ErrConfig)
	require.Equal(t, 1, result.Succeeded)
	require.Zero(t, result.Failed)
	after, _ := q.Receive(t.Context(), 9)
	require.Equal(t, before[1:], after)
}

// A fault of the stack itself that a decorator of the user's own hides from the
// coordinator is found out at the first record. Nothing is lost, parked or counted,
// nobody is kept busy, and the log and the observer say it.
func TestD12_AFaultThatIsHiddenRefusesEveryRecord(t *testing.T) {
	hidden := courier.NewRetryableApplier(courier.ProcessFunc(nop[int]), courier.RetryPolicy{MaxAttempts: -1})
	own := courier.ProcessFunc(func(ctx context.Context, r int) error { return hidden.Apply(ctx, r) })
	for _, stream := range []bool{false, true} {
		courierttest.Bubble(t, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			var r courierttest.Recorder[int]
			stack, q := courier.ResilientApplier(own, nil)
			var c interface {
				courierttest.Starter
				Stats() courier.Stats
			}
			var pending func() []int
			opts := []courier.Option{quiet, courier.WithObserver(told.Observer())}
			if stream {
				source := r.StreamSource(numbers(10)...)
				pending = source.Pending
				c = courier.NewStreamingCoordinator(source, stack, opts...)
			} else {
				source := r.Source(numbers(10)...)
				pending = source.Pending
				c = courier.NewPollingCoordinator(source, stack, opts...)
			}
			courierttest.RunFor(t, c, time.Hour)
			require.Equal(t, numbers(10), pending())
			n, _ := q.Count(t.Context())
			require.Zero(t, n)
			require.Zero(t, c.Stats().Failed)
			require.Zero(t, c.Stats().Marked)
			require.Less(t, len(courierttest.EventsOf[courier.FetchEvent](&told)), 1000, "it keeps a processor busy")
			refusals := courierttest.EventsOf[courier.FailEvent](&told)
			require.NotEmpty(t, refusals)
			require.Equal(t, courier.ClassNotAttempted, refusals[0].Class)
			require.ErrorIs(t, refusals[0].Err, courier.ErrConfig)
		})
	}
}

// callback is an applier and a source that is a function.
type callback func()

func (f callback) Apply(context.Context, int) error          { f(); return nil }
func (f callback) Fetch(context.Context, int) ([]int, error) { f(); return nil, nil }
func (f callback) Mark(context.Context, []int) error         { f(); return nil }

// pipe is an applier that is a channel.
type pipe chan int

func (p pipe) Apply(_ context.Context, r int) error { p <- r; return nil }

// lookup is an applier that is a map, which may be nil.
type lookup map[int]error

func (l lookup) Apply(_ context.Context, r int) error { return l[r] }

// broken is an applier, a source and a queue that cannot even say whether it is well.
type broken struct {
	*shelf[int]
	courier.DLQ[int]
	end func()
}

func (b broken) Apply(context.Context, int) error { return nil }
func (b broken) Validate() error                  { b.end(); return nil }

// unmarked is a queue that does not say whether it marks records.
type unmarked struct{ *courier.MemoryDLQ[int] }

func (u *unmarked) MarksRecords() bool { return countOf(u.MemoryDLQ) > 0 }

// D12: nothing behind an interface, which is not nil for that, is one clear error that
// names the field, wherever it is given; and so is a Validate that does not return.
func TestD12_NothingBehindAnInterface(t *testing.T) {
	type starter = interface{ Start(context.Context) error }
	var (
		clock  *courierttest.Clock
		timer  clockFunc
		noSink *sink[int]
		source = newShelf[int]()
		ok     = courier.ProcessFunc(nop[int])
		over   = func(a courier.Applier[int]) starter { return courier.NewPollingCoordinator(source, a, quiet) }
		parks  = func(q courier.DLQ[int]) courier.Applier[int] {
			return courier.NewDLQApplier(ok, q, courier.DLQPolicy[int]{})
		}
		bundle = func(c courier.ResilientConfig[int]) starter {
			a, _ := courier.ResilientApplier(ok, &c)
			return over(a)
		}
	)
	for _, test := range []struct {
		field string
		make  func() starter
	}{
		{"WithClock", func() starter { return courier.NewPollingCoordinator(source, ok, courier.WithClock(clock)) }},
		{"WithClock", func() starter { return courier.NewPollingCoordinator(source, ok, courier.WithClock(timer)) }},
		{"WithClock", func() starter { return courier.NewStreamingCoordinator(source, ok, courier.WithClock(clock)) }},
		{"WithClock", func() starter {
			return courier.SyncWithRetry(func(context.Context) ([]int, error) { return nil, nil }, nop[int], nop[[]int], 3, courier.WithClock(clock))
		}},
		{"RetryPolicy.Clock", func() starter { return over(courier.NewRetryableApplier(ok, courier.RetryPolicy{Clock: clock})) }},
		{"RetryPolicy.Clock", func() starter {
			return over(courier.NewRetryableApplier(ok, courier.RetryPolicy{Clock: clock, MaxElapsed: time.Second}))
		}},
		{"BreakerPolicy.Clock", func() starter {
			b := courier.NewBreaker(courier.BreakerPolicy{Clock: clock})
			b.ForceOpen()
			b.Reset()
			b.Metrics()
			b.Ready()
			return over(courier.NewCircuitBreakerApplier(ok, b))
		}},
		{"BudgetPolicy.Clock", func() starter {
			return over(courier.NewRetryableApplier(ok, courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Clock: clock})}))
		}},
		{"DLQPolicy.Clock", func() starter {
			return over(courier.NewDLQApplier(ok, courier.DLQ[int](queueOf()), courier.DLQPolicy[int]{Clock: clock}))
		}},
		{"clock", func() starter { return over(courier.NewAttemptTimeoutApplier(ok, time.Second, clock)) }},
		{"ResilientConfig.Clock", func() starter { return bundle(courier.ResilientConfig[int]{Clock: clock, AttemptTimeout: time.Second}) }},
		{"RetryPolicy.Clock", func() starter {
			return bundle(courier.ResilientConfig[int]{Retry: courier.RetryPolicy{Clock: clock}})
		}},
		{"BreakerPolicy.Clock", func() starter {
			return bundle(courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Clock: clock}})
		}},
		{"DLQPolicy.Clock", func() starter {
			return bundle(courier.ResilientConfig[int]{Parking: courier.DLQPolicy[int]{Clock: clock}})
		}},
		{"ResilientConfig.DLQ", func() starter { return bundle(courier.ResilientConfig[int]{DLQ: (*courier.MemoryDLQ[int])(nil)}) }},

		{"source", func() starter { return courier.NewPollingCoordinator[int]((*shelf[int])(nil), ok) }},
		{"source", func() starter { return courier.NewPollingCoordinator[int](callback(nil), ok) }},
		{"source", func() starter { return courier.NewStreamingCoordinator[int](callback(nil), ok) }},
		{"source", func() starter { return courier.NewStreamingCoordinator((*courier.ChannelSource[int])(nil), ok) }},
		{"source", func() starter { return courier.NewPollingCoordinator[int]((*courier.BatchSourceFunc[int])(nil), ok) }},
		{"applier", func() starter { return over(noSink) }},
		{"applier", func() starter { return over(callback(nil)) }},
		{"applier", func() starter { return over(pipe(nil)) }},
		{"process", func() starter { return over(courier.ProcessFunc[int](nil)) }},
		{"process", func() starter { return over(courier.WithRetry(courier.ProcessFunc[int](nil))) }},
		{"branches[1]", func() starter { return over(courier.NewFanOutApplier[int](ok, noSink)) }},
		{"branches[1]", func() starter { return over(courier.NewFanOutApplier[int](ok, pipe(nil))) }},
		{"dlq", func() starter { return over(parks((*courier.MemoryDLQ[int])(nil))) }},
		{"dlq", func() starter { return over(parks((*unmarked)(nil))) }},
		{"dlq", func() starter { return over(courier.NewFanOutApplier(ok, parks((*unmarked)(nil)))) }},
		{"breaker", func() starter { return over(courier.NewCircuitBreakerApplier(ok, nil)) }},
		{"coordinator", func() starter { return (*courier.PollingCoordinator[int])(nil) }},
		{"coordinator", func() starter { return (*courier.StreamingCoordinator[int])(nil) }},

		{"source", func() starter {
			return courier.NewPollingCoordinator[int](broken{shelf: source, end: func() { panic("boom") }}, ok)
		}},
		{"source", func() starter {
			return courier.NewStreamingCoordinator[int](broken{shelf: source, end: runtime.Goexit}, ok)
		}},
		{"applier", func() starter { return over(courier.WithRetry[int](broken{end: func() { panic(fs.ErrClosed) }})) }},
		{"dlq", func() starter { return over(parks(broken{end: func() { panic("boom") }})) }},
		{"branches[0]", func() starter { return over(courier.NewFanOutApplier[int](broken{end: runtime.Goexit}, ok)) }},
	} {
		t.Run(test.field, func(t *testing.T) {
			var c starter
			require.NotPanics(t, func() { c = test.make() })
			err := c.Start(t.Context())
			var bad *courier.ConfigError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, test.field, bad.Field, "%v", err)
			require.Zero(t, source.fetchCount())
		})
	}
	require.NoError(t, courier.WithRetry[int](lookup(nil)).Apply(t.Context(), 1), "a nil map can be read")
	require.NoError(t, courier.WithRetry[int](lookup(nil)).(courier.Validator).Validate())
	fan := courier.NewFanOutApplier(ok, parks(&unmarked{}))
	require.ErrorIs(t, fan.(courier.Validator).Validate(), courier.ErrConfig, "what does not say whether it marks may")

	var bad *courier.ConfigError
	for field, call := range map[string]func() error{
		"RedriveConfig.Clock": func() error {
			_, err := courier.Redrive(t.Context(), courier.DLQ[int](queueOf(1)), ok, &courier.RedriveConfig[int]{Clock: clock})
			return err
		},
		"queue": func() error {
			_, err := courier.Redrive(t.Context(), courier.DLQ[int]((*courier.MemoryDLQ[int])(nil)), ok, nil)
			return err
		},
		"applier": func() error {
			_, err := courier.Redrive(t.Context(), courier.DLQ[int](queueOf(1)), courier.Applier[int](callback(nil)), nil)
			return err
		},
		"breaker": func() error {
			var b *courier.Breaker
			permit, err := b.Acquire(t.Context())
			require.ErrorIs(t, b.Report(t.Context(), permit, errTest), errTest)
			require.ErrorIs(t, new(courier.Breaker).Report(t.Context(), permit, errTest), errTest)
			return err
		},
	} {
		require.ErrorAs(t, call(), &bad)
		require.Equal(t, field, bad.Field)
	}
}

type clockFunc func() time.Time

func (f clockFunc) Now() time.Time                         { return f() }
func (f clockFunc) After(d time.Duration) <-chan time.Time { return time.After(d) }

// D12: so is a context that is nil, and nothing is fetched, applied or kept.
func TestD12_ANilContext(t *testing.T) {
	type wrapped struct{ context.Context }
	ok := courier.ProcessFunc(nop[int])
	source := newShelf(1)
	one, s := oddSink(endings[0], nil, false)
	together, _ := oddSink(endings[0], nil, true)
	for name, ctx := range map[string]context.Context{"nil": nil, "a nil pointer": (*wrapped)(nil)} {
		for at, err := range map[string]error{
			"Start":           courier.NewPollingCoordinator(source, ok, quiet).Start(ctx),
			"Start of stream": courier.NewStreamingCoordinator(source, ok, quiet).Start(ctx),
			"RunOnce":         courier.RunOnce(ctx, func(context.Context) ([]int, error) { panic("fetched") }, nop[int], nop[[]int], quiet),
			"Stop":            courier.NewPollingCoordinator(source, ok, quiet).Stop(ctx),
			"Redrive":         second(courier.Redrive(ctx, courier.DLQ[int](queueOf(1)), one, nil)),
		} {
			var bad *courier.ConfigError
			require.ErrorAs(t, err, &bad, "%s %s", at, name)
			require.Equal(t, "ctx", bad.Field)
		}
		for _, err := range courier.Letters(ctx, courier.DLQ[int](queueOf(1))) {
			require.ErrorIs(t, err, courier.ErrConfig)
		}
	}
	var none context.Context
	for _, p := range pipelines[1:] {
		for _, a := range []courier.Applier[int]{one, together} {
			stack := p.wrap(a)
			for _, err := range []error{stack.Apply(none, 1), asBatch(stack).ApplyBatch(none, []int{1, 2})} {
				require.ErrorIs(t, err, courier.ErrConfig, p.name)
				require.ErrorContains(t, err, "ctx", p.name)
			}
		}
	}
	require.Zero(t, s.called())
	require.Zero(t, source.fetchCount())

	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1})
	_, err := b.Acquire(none)
	require.ErrorIs(t, err, courier.ErrConfig)
	permit, err := b.Acquire(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, b.Report(none, permit, errTest), courier.ErrOpen)
	require.Equal(t, courier.ClassRetryable, courier.Classify(none, errTest))
}

func second[T any](_ T, err error) error { return err }

func TestD12_ZeroValuesOfTheResilienceTypes(t *testing.T) {
	_, err := new(courier.Breaker).Acquire(t.Context())
	require.ErrorIs(t, err, courier.ErrConfig)
	require.NotPanics(t, func() { new(courier.Breaker).Metrics(); new(courier.Breaker).Ready() })
	require.ErrorIs(t, courier.NewRetryableApplier(always(nil), courier.RetryPolicy{Budget: new(courier.RetryBudget)}).Apply(t.Context(), 1), courier.ErrConfig)
	timeout, _ := courier.ResilientApplier(courier.WithCircuitBreaker(always(nil)), &courier.ResilientConfig[int]{AttemptTimeout: 1})
	require.ErrorIs(t, timeout.Apply(t.Context(), 1), courier.ErrConfig, "it would be outside the breaker")
	negative, _ := courier.ResilientApplier(always(nil), &courier.ResilientConfig[int]{AttemptTimeout: -1})
	require.ErrorContains(t, negative.Apply(t.Context(), 1), "ResilientConfig.AttemptTimeout is -1ns")
	rated, _ := courier.ResilientApplier(always(nil), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{FailureRate: 0.01, MinCalls: 1}})
	require.ErrorIs(t, rated.Apply(t.Context(), 1), courier.ErrConfig)
	b := newBreaker(2)
	twice := courier.NewCircuitBreakerApplier(courier.NewFanOutApplier(courier.NewCircuitBreakerApplier(always(nil), b)), b)
	require.ErrorIs(t, twice.Apply(t.Context(), 1), courier.ErrConfig)
	b.ForceOpen()
	_, err = b.Acquire(t.Context())
	require.NotContains(t, err.Error(), "0001-01-01")
}

func TestD12_HugeNumbersAndNilPointers(t *testing.T) {
	var noSource *courier.BatchSourceFunc[int]
	var noSink *sink[int]
	var noQueue *courier.MemoryDLQ[int]
	source := newShelf[int]()
	ok := courier.ProcessFunc(nop[int])
	for _, test := range []struct {
		field string
		c     interface{ Start(context.Context) error }
	}{
		{"WithBatchSize", courier.NewPollingCoordinator(source, ok, courier.WithBatchSize(math.MaxInt))},
		{"WithStreamWorkers", courier.NewStreamingCoordinator(source, ok, courier.WithStreamWorkers(math.MaxInt))},
		{"source", courier.NewPollingCoordinator[int](noSource, ok)},
		{"applier", courier.NewPollingCoordinator[int](source, noSink)},
		{"applier", courier.NewPollingCoordinator(source, courier.WithRetry[int](noSink))},
		{"dlq", courier.NewPollingCoordinator(source, courier.NewDLQApplier(ok, courier.DLQ[int](noQueue), courier.DLQPolicy[int]{}))},
	} {
		err := test.c.Start(t.Context())
		var bad *courier.ConfigError
		require.ErrorAs(t, err, &bad, test.field)
		require.Equal(t, test.field, bad.Field)
	}
}
