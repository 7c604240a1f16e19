package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/erfanmomeniii/courier"
)

func main() {
	ctx, stop := context.WithCancel(context.Background()) // a service: signal.NotifyContext
	pending := []string{"order 1", "order 2", "order 3"}  // a table, an API, a queue
	fetch := func(context.Context) ([]string, error) { return slices.Clone(pending), nil }
	process := func(_ context.Context, order string) error {
		_, err := fmt.Println("shipped", order) // publish it, insert it, POST it
		return err
	}
	mark := func(_ context.Context, done []string) error {
		pending = slices.DeleteFunc(pending, func(o string) bool { return slices.Contains(done, o) })
		stop() // this program ends after one batch
		return nil
	}
	fmt.Println(courier.SyncWithRetry(fetch, process, mark, 5).Start(ctx))
}
