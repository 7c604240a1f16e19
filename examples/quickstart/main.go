package main

import (
	"context"
	"fmt"

	"github.com/erfanmomeniii/courier"
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	pending := []string{"order 1", "order 2", "order 3"} // a table, an API, a queue

	fetch := func(context.Context) ([]string, error) { return pending, nil }
	process := func(_ context.Context, order string) error {
		_, err := fmt.Println("shipped", order) // publish it, insert it, POST it
		return err
	}
	mark := func(_ context.Context, done []string) error {
		pending = pending[len(done):]
		stop() // a service goes on until SIGTERM: see signal.NotifyContext
		return nil
	}
	fmt.Println(courier.SyncWithRetry(fetch, process, mark, 5).Start(ctx))
}
