package courier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
)

// Records of one customer are shipped in order, those of several at the same
// time.
func ExampleWithOrderKey() {
	orders := []string{"ann/1", "bob/1", "ann/2", "bob/2", "ann/3"}
	var mu sync.Mutex
	shipped := map[string][]string{}
	ship := courier.ProcessFunc(func(_ context.Context, order string) error {
		customer, number, _ := strings.Cut(order, "/")
		if order == "bob/1" {
			return errors.New("address unknown")
		}
		mu.Lock()
		defer mu.Unlock()
		shipped[customer] = append(shipped[customer], number)
		return nil
	})
	source := courier.BatchSourceFunc[string]{
		FetchFunc: func(context.Context) ([]string, error) { return orders, nil },
		MarkFunc: func(_ context.Context, done []string) error {
			fmt.Println("marked", done)
			return nil
		},
	}
	customer := func(order string) string { name, _, _ := strings.Cut(order, "/"); return name }

	err := courier.NewPollingCoordinator(source, ship, courier.WithWorkers(2), courier.WithOrderKey(customer), quiet).RunOnce(context.Background())
	fmt.Println("ann", shipped["ann"], "bob", shipped["bob"])
	var list *courier.BatchError
	if errors.As(err, &list) {
		for _, failed := range list.Failures {
			fmt.Println(orders[failed.Index], failed.Err)
		}
	}
	// Output:
	// marked [ann/1 ann/2 ann/3]
	// ann [1 2 3] bob []
	// bob/1 address unknown
	// bob/2 not attempted: an earlier record of the same key is not settled
}

// What runs can be paused, asked and stopped from outside.
func ExamplePollingCoordinator_Stop() {
	ctx := context.Background()
	pending := []int{1, 2, 3}
	marked := make(chan struct{})
	coordinator := courier.Sync(
		func(context.Context) ([]int, error) { return pending, nil },
		func(context.Context, int) error { return nil },
		func(_ context.Context, done []int) error {
			pending = slices.DeleteFunc(pending, func(n int) bool { return slices.Contains(done, n) })
			close(marked)
			return nil
		},
		courier.WithInterval(time.Hour), quiet)
	fmt.Println(coordinator.Ready())

	var running sync.WaitGroup
	running.Go(func() { _ = coordinator.Start(ctx) })
	<-marked
	fmt.Println(coordinator.Ready())
	coordinator.Pause()
	fmt.Println(coordinator.Ready())
	fmt.Println(coordinator.Stop(ctx))
	running.Wait()

	stats := coordinator.Stats()
	fmt.Println(stats.Fetched, "fetched,", stats.Applied, "applied,", stats.Marked, "marked")
	// Output:
	// courier: the coordinator is not running
	// <nil>
	// courier: the coordinator is paused, until Resume is called
	// <nil>
	// 3 fetched, 3 applied, 3 marked
}

// A process function that hangs shows: Ready names the record until the call returns.
// Nothing is cancelled; for that an attempt has a timeout.
func ExampleWithStallAfter() {
	ctx, stop := context.WithCancel(context.Background())
	hang, stalled, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	coordinator := courier.NewStreamingCoordinator(
		courier.NewChannelSource(ordersOf("order 1", "order 2"), func(context.Context, []string) error { return nil }),
		courier.ProcessFunc(func(_ context.Context, order string) error {
			if order == "order 2" {
				<-hang // a client without a timeout
			}
			return nil
		}),
		courier.WithStallAfter(100*time.Millisecond), quiet,
		courier.WithObserver(courier.Observer{Stalled: func(_ context.Context, e courier.StallEvent) {
			if e.Over {
				close(over)
				return
			}
			fmt.Println(e.Record, "has been in work for long, in attempt", e.Attempt)
			close(stalled)
		}}))

	var running sync.WaitGroup
	running.Go(func() { _ = coordinator.Start(ctx) })
	<-stalled
	stats := coordinator.Stats()
	fmt.Println(stats.OldestRecord, stats.OldestInWork >= 100*time.Millisecond, coordinator.Ready() != nil)
	close(hang)
	<-over
	fmt.Println(coordinator.Ready())
	stop()
	running.Wait()
	// Output:
	// order 2 has been in work for long, in attempt 1
	// order 2 true true
	// <nil>
}

func ordersOf(orders ...string) <-chan string {
	ch := make(chan string, len(orders))
	for _, order := range orders {
		ch <- order
	}
	return ch
}

// An observer is a struct of functions: set those that you want to hear of.
func ExampleWithObserver() {
	metrics := courier.Observer{
		Applied: func(_ context.Context, e courier.ApplyEvent) { fmt.Println(e.Applied, "applied,", e.Failed, "failed") },
		Marked:  func(_ context.Context, e courier.MarkEvent) { fmt.Println(e.Records, "marked") },
	}
	_ = courier.RunOnce(context.Background(),
		func(context.Context) ([]int, error) { return []int{1, 2, 3}, nil },
		func(_ context.Context, n int) error {
			if n == 2 {
				return errors.New("no stock")
			}
			return nil
		},
		func(context.Context, []int) error { return nil },
		courier.WithObserver(metrics), quiet)
	// Output:
	// 2 applied, 1 failed
	// 2 marked
}

// Marks in the order fetched, for a source that keeps a position.
func ExampleWithOrderedMarks() {
	offsets := make(chan int, 4)
	for i := range 4 {
		offsets <- i
	}
	close(offsets)
	source := courier.NewChannelSource(offsets, func(_ context.Context, done []int) error {
		fmt.Println("commit up to", done[len(done)-1])
		return nil
	})
	process := courier.ProcessFunc(func(context.Context, int) error { return nil })
	fmt.Println(courier.NewStreamingCoordinator(source, process,
		courier.WithStreamWorkers(4), courier.WithOrderedMarks(), courier.WithFlushInterval(time.Hour)).Start(context.Background()))
	// Output:
	// commit up to 3
	// <nil>
}

// api hands out up to three records a request, whatever one asks for.
type api struct {
	pending []int
	more    bool
}

func (a *api) Fetch(_ context.Context, limit int) ([]int, error) {
	n := min(limit, 3, len(a.pending))
	a.more = n < len(a.pending)
	return a.pending[:n:n], nil
}

func (a *api) Mark(_ context.Context, records []int) error {
	a.pending = a.pending[len(records):]
	return nil
}

// More makes the source a Pager.
func (a *api) More() bool { return a.more }

// A source whose fetches end before the limit says so, and is fetched from again at
// once instead of after the interval.
func ExamplePager() {
	ctx, stop := context.WithCancel(context.Background())
	source := &api{pending: []int{1, 2, 3, 4, 5, 6, 7}}
	process := courier.ProcessFunc(func(_ context.Context, n int) error {
		fmt.Println(n)
		if n == 7 {
			stop()
		}
		return nil
	})
	c := courier.NewPollingCoordinator(source, process, courier.WithInterval(time.Hour))
	if err := c.Start(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 1
	// 2
	// 3
	// 4
	// 5
	// 6
	// 7
}
