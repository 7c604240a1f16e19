package courier_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// Which context each call is made under, and each event told, before and after a stop:
// records are applied until the drain timeout; marks, and what the source is told, begin
// under one that lives, for an apply as well that has not heeded its own.
func TestD8_TheContextOfEachCall(t *testing.T) {
	const drain = time.Second // as inNotedShapes has it
	for name, apply := range map[string]time.Duration{"soon": 60 * time.Millisecond, "in time": 500 * time.Millisecond, "too late": 1500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			inNotedShapes(t, func(t *testing.T, shape string, n *noted, with func(...courier.Option) (running, func() func() error)) {
				n.fails = false
				n.takes = 100 * time.Millisecond
				n.source.add(numbers(5)...)
				var began, cancelled time.Time
				n.work = func(ctx context.Context, r int) error {
					switch r {
					case 0:
						if strings.HasSuffix(shape, "fail") { // the note of it is under way as the work ends
							return errTest
						}
					case 1:
						began = time.Now()
						context.AfterFunc(ctx, func() { cancelled = time.Now() })
						time.Sleep(apply)
						return errTest
					case 2:
						time.Sleep(apply / 2)
						return errTest
					}
					return nil
				}
				marks := 0
				n.source.markErr = func(int) error {
					if marks++; marks == 1 {
						return errTest
					}
					return nil
				}
				opts := []courier.Option{courier.WithStallAfter(200 * time.Millisecond)}
				if strings.HasPrefix(shape, "streaming") { // for the marks to come after the stop
					opts = append(opts, courier.WithFlushInterval(time.Minute))
				}
				_, run := with(opts...)
				stop := run()
				time.Sleep(50 * time.Millisecond)
				stopped := time.Now()
				require.NoError(t, stop())
				synctest.Wait()
				require.True(t, began.Before(stopped))
				if name == "too late" {
					require.Equal(t, stopped.Add(drain), cancelled)
				} else {
					require.False(t, cancelled.Before(began.Add(apply)))
				}
				var tries []notedCall
				renewed := false
				for _, c := range n.of("fetch", "apply", "mark", "release", "fail", "renew") {
					require.Equal(t, shape, c.ctx.Value(callerKey{}), c.what)
					if c.what != "apply" || c.began.Before(stopped.Add(drain)) {
						require.NoError(t, c.over, c.what)
					}
					switch c.what {
					case "mark", "release", "fail": // a stop waits for them
						require.NoError(t, c.late, c.what)
					}
					switch c.what {
					case "mark":
						tries = append(tries, c)
					case "renew":
						renewed = renewed || len(tries) == 1
					}
				}
				if len(tries) > 0 || !strings.HasSuffix(shape, "fail") { // of which nothing else is applied
					require.GreaterOrEqual(t, len(tries), 2)
					between := tries[1].began.Sub(tries[0].ended)
					require.GreaterOrEqual(t, between, paceOf(1))
					require.LessOrEqual(t, between, paceOf(1)+n.takes) // a release may be under way
				}
				require.Equal(t, strings.HasSuffix(shape, "renew"), renewed, "leases are renewed between two tries of a mark")
				told := map[bool]int{}
				for _, e := range n.events {
					require.Equal(t, shape, e.ctx.Value(callerKey{}), "%#v", e.event)
					switch e.event.(type) {
					case courier.FetchEvent, courier.MarkEvent, courier.ReleaseEvent, courier.RenewEvent:
						require.NoError(t, e.over, "%#v", e.event)
					case courier.StopEvent: // when all is over
					default: // under the context of the work, as long as that goes on
						if e.busy && e.at.Before(stopped.Add(drain)) {
							told[e.at.After(stopped)]++
							require.NoError(t, e.over, "%#v", e.event)
						}
					}
				}
				if name != "soon" {
					require.Positive(t, told[true])
				}
			})
		})
	}
}

// What a decorator's hooks are called under has the values of the call.
func TestHooks_HaveTheValuesOfTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // the branches are applied at the same time
		told := map[string]bool{}
		hook := func(name string) func(context.Context) {
			return func(ctx context.Context) {
				mu.Lock()
				defer mu.Unlock()
				told[name] = ctx.Value(callerKey{}) == "the call"
			}
		}
		retry := courier.NewRetryableApplier(always(errTest), courier.RetryPolicy{
			MaxAttempts: 2,
			OnRetry:     func(ctx context.Context, _ courier.RetryEvent) { hook("OnRetry")(ctx) },
			OnGiveUp:    func(ctx context.Context, _ *courier.RetryError) { hook("OnGiveUp")(ctx) },
		})
		queue := heardDLQ{&courier.MemoryDLQ[int]{}, hook("Send")}
		dlq := courier.NewDLQApplier(retry, courier.DLQ[int](queue), courier.DLQPolicy[int]{
			OnPark: func(ctx context.Context, _ courier.DeadLetter[int]) { hook("OnPark")(ctx) },
		})
		breaker := courier.NewCircuitBreakerApplier(always(errTest), courier.NewBreaker(courier.BreakerPolicy{
			FailureThreshold: 1,
			OnStateChange:    func(ctx context.Context, _ courier.BreakerChange) { hook("OnStateChange")(ctx) },
		}))
		fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{
			Branches:        []courier.Branch[int]{{Name: "a", Applier: dlq}, {Name: "b", Applier: breaker, Optional: true}},
			OnBranchFailure: func(ctx context.Context, _ int, _ string, _ error) { hook("OnBranchFailure")(ctx) },
		})
		ctx := context.WithValue(t.Context(), callerKey{}, "the call")
		require.NoError(t, fan.Apply(ctx, 1))
		require.Equal(t, map[string]bool{"OnRetry": true, "OnGiveUp": true, "Send": true, "OnPark": true, "OnStateChange": true, "OnBranchFailure": true}, told)
	})
}

// What a coordinator, and what the decorators tell its observer, has the values of the
// context of the run.
func TestObserver_EveryEventHasTheValuesOfTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &noted{source: newLeasing(1, 2), nth: map[string]int{}, tries: map[int]int{}, state: map[int]string{}}
		n.fetch = n.source.Fetch
		n.work = func(context.Context, int) error { return errTest }
		applier := courier.NewDLQApplier(courier.NewRetryableApplier[int](n, courier.RetryPolicy{MaxAttempts: 2}), courier.DLQ[int](&courier.MemoryDLQ[int]{}), courier.DLQPolicy[int]{})
		c := courier.NewPollingCoordinator[int](notedLease{n}, applier, quiet, n.observer())
		n.stats = c.Stats
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), callerKey{}, "the run"))
		time.AfterFunc(time.Minute, c.Pause)
		time.AfterFunc(2*time.Minute, c.Resume)
		time.AfterFunc(3*time.Minute, cancel)
		require.NoError(t, c.Start(ctx))
		kinds := map[string]bool{}
		for _, e := range n.events {
			kinds[fmt.Sprintf("%T", e.event)] = true
			require.Equal(t, "the run", e.ctx.Value(callerKey{}), "%#v", e.event)
		}
		for _, kind := range []string{"Fetch", "Apply", "Mark", "Retry", "Park", "Pause", "Resume", "Stop"} {
			require.True(t, kinds["courier."+kind+"Event"], kind)
		}
	})
}

// heardDLQ tells of the context of Send.
type heardDLQ struct {
	*courier.MemoryDLQ[int]
	sent func(context.Context)
}

func (q heardDLQ) Send(ctx context.Context, letter courier.DeadLetter[int]) error {
	q.sent(ctx)
	return q.MemoryDLQ.Send(ctx, letter)
}
