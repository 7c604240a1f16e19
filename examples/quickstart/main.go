package main

import (
	"context"
	"fmt"
	"log"
	"slices"

	"github.com/erfanmomeniii/courier"
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	pending := []string{"order 1", "order 2", "order 3"} // a table, an API, a queue
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
	coordinator := courier.SyncWithRetry(fetch, process, mark, 5) // up to 5 attempts a record
	if err := coordinator.Start(ctx); err != nil {                // runs until ctx ends
		log.Fatal(err)
	}
}
