// Command api copies the items of an HTTP API into a table of SQLite. The cursor of the
// API and the dead letters are in the same database.
//
//	go run ./examples/api                 # an API of its own; stop it with Ctrl-C
//	go run ./examples/api -db items.db -url http://127.0.0.1:8080/items
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

func main() {
	file := flag.String("db", filepath.Join(os.TempDir(), "items.db"), "the database")
	url := flag.String("url", "", "the API; without it the program serves one of 300 items")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *url == "" {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		go func() { _ = http.Serve(listener, &api{items: 300}) }()
		*url = fmt.Sprintf("http://%s/items", listener.Addr())
	}
	if err := run(ctx, *file, *url, http.DefaultTransport, nil); err != nil {
		log.Fatal(err)
	}
}

// run copies items until ctx ends. It calls started, unless that is nil, with the readiness probe.
func run(ctx context.Context, file, url string, transport http.RoundTripper, started func(ready func() error)) error {
	t, err := open(ctx, file)
	if err != nil {
		return err
	}
	defer t.db.Close()
	cursor, err := t.cursor(ctx)
	if err != nil {
		return err
	}
	source := &feed{
		client: &http.Client{Transport: transport, Timeout: 10 * time.Second},
		url:    url, save: t.saveCursor, saved: cursor, next: cursor,
	}
	dead := couriersql.NewDLQ(t.db, couriersql.SQLite, couriersql.DLQConfig[entry]{
		Table:    "dead_items",
		Identity: func(e entry) string { return strconv.Itoa(e.ID) },
	})
	if err := dead.Migrate(ctx); err != nil {
		return err
	}
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(t.upsert), &courier.ResilientConfig[entry]{
		AttemptTimeout: 10 * time.Second,
		DLQ:            dead,
	})
	coordinator := courier.NewPollingCoordinator(source, applier,
		courier.WithWorkers(4), courier.WithOrderKey(func(e entry) string { return strconv.Itoa(e.ID) }))

	ready := func() error {
		err := coordinator.Ready()
		var refused *statusError
		if !errors.Is(err, courier.ErrOpen) && errors.As(err, &refused) && refused.code == http.StatusTooManyRequests {
			return nil // it waits for the quota, and works
		}
		return err
	}
	if started != nil {
		started(ready)
	}
	err = coordinator.Start(ctx)
	stats := coordinator.Stats()
	fmt.Printf("%d items read, %d stored, %d dead letters, next cursor %q\n", stats.Fetched, stats.Applied-stats.Parked, stats.Parked, cmp.Or(source.saved, "none"))
	return err
}
