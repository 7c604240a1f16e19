package courier_test

// Durations at their ends: nothing overflows into no wait at all, or into one for
// ever, and every wait that is told of is one that can be waited.

import (
	"context"
	"math"
	"sync/atomic"
	"testing"
	"time"

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
