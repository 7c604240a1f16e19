package courier_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/erfanmomeniii/courier"
)

func ExampleNewStreamingCoordinator() {
	events := make(chan string, 3)
	events <- "signed up"
	events <- "ordered"
	events <- "paid"
	close(events)

	source := courier.NewChannelSource(events, func(_ context.Context, done []string) error {
		fmt.Println("marked", done)
		return nil
	})
	process := courier.ProcessFunc(func(_ context.Context, event string) error {
		fmt.Println("processed", event)
		return nil
	})
	coordinator := courier.NewStreamingCoordinator(source, process, courier.WithStreamWorkers(1))
	fmt.Println(coordinator.Start(context.Background())) // the end of the channel ends it
	// Output:
	// processed signed up
	// processed ordered
	// processed paid
	// marked [signed up ordered paid]
	// <nil>
}

// A channel takes nothing back. Records that could not be applied by the end
// come back with Start's error.
func ExampleUnsettledError() {
	events := make(chan int, 1)
	events <- 7
	close(events)
	source := courier.NewChannelSource(events, func(context.Context, []int) error { return nil })
	refuse := courier.ProcessFunc(func(context.Context, int) error { return errors.New("no room") })

	err := courier.NewStreamingCoordinator(source, refuse, quiet).Start(context.Background())
	var left *courier.UnsettledError[int]
	if errors.As(err, &left) {
		fmt.Println(left.Records, left.Err)
	}
	// Output: [7] no room
}
