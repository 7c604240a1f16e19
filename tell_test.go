package courier_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// teller is what tells of a coordinator.
type teller interface {
	running
	Ready() error
	Stats() courier.Stats
}

// inShapes runs a test with a coordinator of each shape, in a bubble. run has it work
// for some time; that of RunOnce makes a pass.
func inShapes(t *testing.T, test func(t *testing.T, shape string, make func(applier courier.Applier[int], records []int, opts ...courier.Option) (c teller, run func(time.Duration)))) {
	for _, shape := range []string{"polling", "polling a plain source", "streaming", "RunOnce"} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test(t, shape, func(applier courier.Applier[int], records []int, opts ...courier.Option) (teller, func(time.Duration)) {
					opts = append([]courier.Option{quiet}, opts...)
					leased := newLeasing(records...)
					leased.wait = shape == "streaming"
					var source courier.Source[int] = leased
					if shape == "polling a plain source" || shape == "RunOnce" {
						source = newShelf(records...)
					}
					if shape == "streaming" {
						c := courier.NewStreamingCoordinator(source, applier, opts...)
						return c, goesOn(t, c)
					}
					c := courier.NewPollingCoordinator(source, applier, opts...)
					if shape == "RunOnce" {
						return c, func(time.Duration) { _ = c.RunOnce(t.Context()) }
					}
					return c, goesOn(t, c)
				})
			})
		})
	}
}

// goesOn lets a coordinator run at the first call, until the test ends.
func goesOn(t *testing.T, c running) func(time.Duration) {
	began := false
	return func(d time.Duration) {
		if !began {
			began = true
			stop := start(t, c)
			t.Cleanup(func() { _ = stop() })
		}
		time.Sleep(d)
	}
}

func TestLog_TellsOfEveryPark(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, make func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		var log bytes.Buffer
		applier, queue := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			if r < 12 {
				return courier.Permanent(errors.New("no such customer"))
			}
			return nil
		}), nil)
		c, run := make(applier, numbers(40), courier.WithLogger(timeless(&log)))
		run(time.Minute)
		n, err := queue.(*courier.MemoryDLQ[int]).Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 12, n)
		const parked = `level=WARN msg="courier: the dead letter queue has taken a record, which is marked as done" reason=permanent error="courier: gave up after 1 attempt (permanent): no such customer"` + "\n"
		require.Contains(t, log.String(), parked)
		require.Contains(t, log.String(), "times=10")
		require.EqualError(t, c.Stats().LastError, "courier: gave up after 1 attempt (permanent): no such customer")
	})
}

// A letter that waits for another of its key has not failed itself.
func TestLog_AParkedKey(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, make func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		var log bytes.Buffer
		applier := courier.NewDLQApplierWith(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) }),
			courier.DLQ[int](courier.NewMemoryDLQ[int](0)), courier.DLQPolicy[int]{Key: func(int) string { return "all" }})
		c, run := make(applier, numbers(3), courier.WithLogger(timeless(&log)))
		run(time.Second)
		require.Equal(t, int64(3), c.Stats().Parked)
		require.Contains(t, log.String(), `reason="key parked"`)
		require.ErrorIs(t, c.Stats().LastError, errTest)
	})
}

// Outside of a coordinator nobody logs a park.
func TestLog_AParkWithoutACoordinator(t *testing.T) {
	applier, queue := courier.WithDLQ(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) }))
	require.NoError(t, applier.Apply(t.Context(), 1))
	letters, err := queue.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
}

// An outage in which no call succeeds shows in Stats.
func TestStats_LastErrorOfAnOutage(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, make func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }), nil)
		c, run := make(applier, numbers(5))
		run(time.Minute)
		require.ErrorIs(t, c.Stats().LastError, errTest)
		require.WithinDuration(t, time.Now(), c.Stats().LastErrorAt, time.Minute)
	})
}

// A breaker that an operator opens is no failure.
func TestStats_ForcedOpenIsNoError(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, make func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		b := courier.NewBreaker(courier.BreakerPolicy{})
		b.ForceOpen()
		c, run := make(courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return nil }), b), numbers(5))
		run(time.Minute)
		require.NoError(t, c.Stats().LastError)
	})
}

// A cron job that parks in memory loses the letters: RunOnce says so, once, and only
// where nobody has asked for such a queue.
func TestRunOnce_WarnsOfAQueueThatIsGoneWithTheProcess(t *testing.T) {
	const warning = "the dead letter queue is in memory"
	ok := courier.ProcessFunc(func(context.Context, int) error { return nil })
	resilient := func(dlq courier.DLQ[int]) courier.Applier[int] {
		a, _ := courier.ResilientApplier(ok, &courier.ResilientConfig[int]{DLQ: dlq})
		return a
	}
	simple, _ := courier.WithDLQ(courier.WithRetry(ok))
	for name, test := range map[string]struct {
		applier courier.Applier[int]
		warned  bool
	}{
		"ResilientApplier":        {resilient(nil), true},
		"in a fan-out":            {courier.NewFanOutApplier(ok, resilient(nil)), true},
		"WithDLQ":                 {simple, true},
		"a queue of the caller's": {resilient(courier.NewMemoryDLQ[int](0)), false},
		"none":                    {ok, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				c := courier.NewPollingCoordinator(newShelf(1), test.applier, courier.WithLogger(timeless(&log)))
				stop := start(t, c)
				synctest.Wait()
				require.NoError(t, stop())
				require.NotContains(t, log.String(), warning)
				for range 2 {
					require.NoError(t, c.RunOnce(t.Context()))
				}
				want := 0
				if test.warned {
					want = 1
				}
				require.Equal(t, want, strings.Count(log.String(), warning), log.String())
			})
		})
	}
}
