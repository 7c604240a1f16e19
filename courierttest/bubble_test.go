package courierttest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"github.com/benbjohnson/clock"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// fixedClock stands still.
type fixedClock struct{}

func (fixedClock) Now() time.Time                       { return time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC) }
func (fixedClock) After(time.Duration) <-chan time.Time { return nil }

func TestRunForRunsInTheTimeOfTheBubble(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var r Recorder[string]
		source := r.Source("a", "b", "c")
		before := time.Now()
		RunFor(t, courier.NewPollingCoordinator(source, r.Applier(MustParse("error if call 2")), quiet), time.Hour)
		require.Equal(t, time.Hour, time.Since(before))
		AssertDeliveredOnce(t, &r)
		AssertMarkedAfterApplied(t, &r)
		AssertDrained(t, source)
		AssertNoGoroutines(t)
	})
}

func TestRunForEndsWithItsCoordinator(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var r Recorder[string]
		source := r.StreamSource("a", "b")
		source.End()
		before := time.Now()
		RunFor(t, courier.NewStreamingCoordinator(source, r.Applier(nil), quiet), time.Hour)
		require.Less(t, time.Since(before), time.Minute)
		AssertDeliveredOnce(t, &r)
	})
}

type starter func(ctx context.Context) error

func (s starter) Start(ctx context.Context) error { return s(ctx) }

func TestRunForReportsTheErrorOfStart(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		reports := reportsOf(t, func(tb TB) {
			RunFor(tb, starter(func(context.Context) error { return errors.New("boom") }), time.Second)
		})
		require.Equal(t, []string{"Start returned an error: boom"}, reports.failures)
	})
	reports := reportsOf(t, func(tb TB) { RunFor(tb, starter(nil), time.Second) })
	require.True(t, reports.fatal, "outside of a bubble")
}

func TestStartStopsAtTheEndOfTheTest(t *testing.T) {
	var run *Running
	t.Run("run", func(t *testing.T) {
		run = Start(t, starter(func(ctx context.Context) error {
			<-ctx.Done()
			return errors.New("stopped")
		}))
	})
	<-run.Ended()
	require.EqualError(t, run.Stop(), "stopped")
}

func TestGoroutinesThatAreLeft(t *testing.T) {
	end := make(chan struct{})
	begun := make(chan struct{})
	go func() {
		close(begun)
		<-end
	}()
	<-begun
	reports := reportsOf(t, func(tb TB) { AssertNoGoroutines(tb) })
	require.Len(t, reports.failures, 1)
	require.Contains(t, reports.failures[0], "TestGoroutinesThatAreLeft.func1")
	close(end)
	AssertNoGoroutines(t)

	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-ctx.Done() }()
		reports := &recording{t: t}
		AssertNoGoroutines(reports)
		require.Len(t, reports.failures, 1)
		require.Contains(t, reports.failures[0], "1 goroutines are left")
		cancel()
		AssertNoGoroutines(t)
	})
}

func TestClockMovesFromTimerToTimer(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		c := NewClock()
		began := c.Now()
		var woken []time.Duration
		sleep := func(d time.Duration) {
			<-c.After(d)
			woken = append(woken, c.Now().Sub(began))
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			sleep(3 * time.Second)
			sleep(time.Second)
			sleep(0)
			sleep(time.Minute)
		}()
		d, ok := c.Next()
		require.True(t, ok)
		require.Equal(t, 3*time.Second, d)
		require.Equal(t, []time.Duration{3 * time.Second}, woken)
		require.Equal(t, 1, c.Timers())
		c.Advance(time.Minute) // over the second, which makes the third
		require.Equal(t, []time.Duration{3 * time.Second, 4 * time.Second, 4 * time.Second}, woken)
		require.Equal(t, began.Add(63*time.Second), c.Now())
		d, ok = c.Next()
		require.True(t, ok)
		require.Equal(t, time.Second, d)
		<-done
		_, ok = c.Next()
		require.False(t, ok)
		require.Zero(t, c.Timers())
	})
}

// A coordinator is moved step by step: its attempts and its polls.
func TestClockMovesACoordinator(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		c := NewClock()
		r := Recorder[string]{Clock: c}
		source := r.Source("a")
		shop := r.Applier(MustParse("error if call 1..2"))
		retry := courier.NewRetryableApplier(shop, courier.RetryPolicy{Jitter: courier.NoJitter, Clock: c})
		run := Start(t, courier.NewPollingCoordinator(source, retry, quiet, courier.WithClock(c), courier.WithFixedInterval()))
		c.Settle()
		require.Equal(t, 1, shop.Faults.Calls())
		d, _ := c.Next()
		require.Equal(t, 100*time.Millisecond, d)
		require.Equal(t, 2, shop.Faults.Calls())
		d, _ = c.Next()
		require.Equal(t, 200*time.Millisecond, d)
		AssertDeliveredOnce(t, &r)
		source.Add("b")
		d, _ = c.Next()
		require.Equal(t, 5*time.Second, d)
		AssertDeliveredOnce(t, &r)
		require.NoError(t, run.Stop())
	})
}

func TestClockCarriesItsMock(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		c := NewClock()
		var _ clock.Clock = c.Mock()
		fired := c.Mock().After(time.Second)
		c.Advance(time.Second)
		require.Equal(t, c.Now(), <-fired)
	})
	require.Panics(t, func() { NewClock().Settle() }, "outside of a bubble")
}

// Many timers at one time, made while time moves.
func TestClockIsSafeForConcurrentUse(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		c := NewClock()
		done := make(chan struct{}, 8)
		for range 8 {
			go func() {
				for i := range 50 {
					<-c.After(time.Duration(i%3) * time.Millisecond)
				}
				done <- struct{}{}
			}()
		}
		c.Advance(time.Second)
		for range 8 {
			<-done
		}
	})
}

// TestLeakyBubble fails on purpose, in a process of its own.
func TestLeakyBubble(t *testing.T) {
	if os.Getenv("COURIERTTEST_LEAK") == "" {
		t.Skip("is run by TestBubbleReportsWhatIsLeft")
	}
	Bubble(t, func(*testing.T) { go func() { select {} }() })
}

func TestBubbleReportsWhatIsLeft(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestLeakyBubble$")
	cmd.Env = append(os.Environ(), "COURIERTTEST_LEAK=1")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "the test has ended, and 1 goroutines are left")
	require.Contains(t, string(out), "TestLeakyBubble.func1.1")
	require.NotContains(t, string(out), "panic:")
}
