package courier_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
)

func ExampleSync() {
	ctx, stop := context.WithCancel(context.Background())
	pending := []int{1, 2, 3}
	coordinator := courier.Sync(
		func(context.Context) ([]int, error) { return pending, nil },
		func(_ context.Context, n int) error {
			fmt.Println("processed", n)
			return nil
		},
		func(_ context.Context, done []int) error {
			fmt.Println("marked", done)
			pending = pending[len(done):]
			stop()
			return nil
		},
		courier.WithInterval(time.Second),
	)
	fmt.Println(coordinator.Start(ctx)) // blocks until ctx ends
	// Output:
	// processed 1
	// processed 2
	// processed 3
	// marked [1 2 3]
	// <nil>
}

func ExampleSyncWithRetry() {
	ctx, stop := context.WithCancel(context.Background())
	calls := 0
	coordinator := courier.SyncWithRetry(
		func(context.Context) ([]string, error) { return []string{"a"}, nil },
		func(ctx context.Context, record string) error {
			if calls++; calls < 3 {
				return errors.New("not yet")
			}
			fmt.Println("processed at attempt", courier.AttemptFromContext(ctx))
			return nil
		},
		func(context.Context, []string) error { stop(); return nil },
		5, // attempts
	)
	fmt.Println(coordinator.Start(ctx))
	// Output:
	// processed at attempt 3
	// <nil>
}

func ExampleRunOnce() {
	errUnpaid := errors.New("not paid")
	err := courier.RunOnce(context.Background(),
		func(context.Context) ([]string, error) { return []string{"order 1", "order 2", "order 3"}, nil },
		func(_ context.Context, order string) error {
			if order == "order 2" {
				return fmt.Errorf("%s: %w", order, errUnpaid)
			}
			return nil
		},
		func(_ context.Context, done []string) error {
			fmt.Println("marked", done)
			return nil
		},
		quiet)
	fmt.Println(err)
	fmt.Println(errors.Is(err, errUnpaid))
	// Output:
	// marked [order 1 order 3]
	// courier: 1 of the batch's records failed: index 1: order 2: not paid
	// true
}

func ExampleNewPollingCoordinator() {
	ctx, stop := context.WithCancel(context.Background())
	source := courier.BatchSourceFunc[int]{
		FetchFunc: func(context.Context) ([]int, error) { return []int{1, 2}, nil },
		MarkFunc:  func(_ context.Context, done []int) error { fmt.Println("marked", done); stop(); return nil },
	}
	process := courier.ProcessFunc(func(_ context.Context, n int) error { fmt.Println("processed", n); return nil })

	resilient, dlq := courier.ResilientApplier(process, nil) // retry, breaker, dead letter queue
	coordinator := courier.NewPollingCoordinator(source, resilient)
	fmt.Println(coordinator.Start(ctx))

	parked, _ := dlq.Receive(context.Background(), 100)
	fmt.Println(len(parked), "parked")
	// Output:
	// processed 1
	// processed 2
	// marked [1 2]
	// <nil>
	// 0 parked
}

// A process function that heeds its context, as database and HTTP clients do, holds a
// record up for no longer than the timeout.
func ExampleWithAttemptTimeout() {
	err := courier.RunOnce(context.Background(),
		func(context.Context) ([]string, error) { return []string{"order 7"}, nil },
		func(ctx context.Context, record string) error {
			<-ctx.Done() // the server does not answer
			return ctx.Err()
		},
		func(context.Context, []string) error { return nil },
		courier.WithAttemptTimeout(10*time.Millisecond))
	fmt.Println(errors.Is(err, courier.ErrAttemptTimeout))
	// Output: true
}
