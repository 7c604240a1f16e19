package courier_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A process function that hangs until its context ends holds a record up for the
// timeout, in all three functions, and by the clock of the coordinator.
func TestWithAttemptTimeout(t *testing.T) {
	for name, attempts := range map[string]int{"Sync": 1, "SyncWithRetry": 3, "RunOnce": 1} {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				source := newShelf(1, 2, 3)
				calls := 0
				fetch := func(ctx context.Context) ([]int, error) { return source.Fetch(ctx, 100) }
				process := func(ctx context.Context, n int) error {
					if n != 2 {
						return nil
					}
					calls++
					began := time.Now()
					<-ctx.Done()
					require.Equal(t, 7*time.Second, time.Since(began))
					require.ErrorIs(t, context.Cause(ctx), courier.ErrAttemptTimeout)
					return ctx.Err()
				}
				opts := []courier.Option{quiet, courier.WithAttemptTimeout(7 * time.Second)}
				if name == "RunOnce" {
					err := courier.RunOnce(t.Context(), fetch, process, source.Mark, opts...)
					require.ErrorIs(t, err, courier.ErrAttemptTimeout)
				} else {
					opts = append(opts, courier.WithInterval(time.Hour))
					c := courier.Sync(fetch, process, source.Mark, opts...)
					if name == "SyncWithRetry" {
						c = courier.SyncWithRetry(fetch, process, source.Mark, attempts, opts...)
					}
					stop := start(t, c)
					time.Sleep(time.Minute)
					require.NoError(t, stop())
				}
				require.Equal(t, []int{2}, source.left())
				require.Equal(t, attempts, calls)
			})
		})
	}
}

// Anywhere else, and with a value of no use, it is a configuration error.
func TestWithAttemptTimeout_IsRefused(t *testing.T) {
	source, a := newShelf(1), courier.ProcessFunc(nop[int])
	fetch := func(ctx context.Context) ([]int, error) { return source.Fetch(ctx, 100) }
	second := courier.WithAttemptTimeout(time.Second)
	for name, err := range map[string]error{
		"polling":   courier.NewPollingCoordinator(source, a, second).Start(t.Context()),
		"streaming": courier.NewStreamingCoordinator(source, a, second).Start(t.Context()),
		"zero":      courier.Sync(fetch, nop[int], source.Mark, courier.WithAttemptTimeout(0)).Start(t.Context()),
		"negative":  courier.SyncWithRetry(fetch, nop[int], source.Mark, 3, courier.WithAttemptTimeout(-1)).Start(t.Context()),
		"RunOnce":   courier.RunOnce(t.Context(), fetch, nop[int], source.Mark, courier.WithAttemptTimeout(-1)),
	} {
		require.ErrorIs(t, err, courier.ErrConfig, name)
		require.ErrorContains(t, err, "courier: WithAttemptTimeout is ", name)
	}
	require.Zero(t, source.fetchCount())
}
