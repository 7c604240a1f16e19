// Command service is a coordinator as a process runs it: SIGTERM stops it, an
// HTTP probe asks whether it is ready, and at the end it says what it has done.
//
//	go run ./examples/service -listen 127.0.0.1:8080
//	curl -i http://127.0.0.1:8080/ready
//	kill -TERM <pid>
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/erfanmomeniii/courier"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "where the readiness probe asks")
	flag.Parse()
	// A second signal, once the first has stopped the coordinator, kills as ever.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, *listen, os.Stdout); err != nil {
		slog.Error("service", "error", err)
		os.Exit(1)
	}
}

// run works until ctx ends, and then until what is in work is done and marked.
func run(ctx context.Context, listen string, out io.Writer) error {
	orders := &queue{pending: []int{}}
	process := func(ctx context.Context, order int) error {
		select {
		case <-time.After(50 * time.Millisecond): // the work
			return nil
		case <-ctx.Done(): // only once the drain timeout has passed
			return ctx.Err()
		}
	}
	coordinator := courier.Sync(orders.fetch, process, orders.mark,
		courier.WithFastPolling(), courier.WithWorkers(4), courier.WithDrainTimeout(20*time.Second))

	probe := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := coordinator.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ready")
	})}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = probe.Serve(listener) })
	_, _ = fmt.Fprintf(out, "ready? http://%s/ready\n", listener.Addr())

	err = coordinator.Start(ctx) // returns when what was in work is marked
	stats := coordinator.Stats()
	_, _ = fmt.Fprintf(out, "stopped: %d fetched, %d applied, %d marked, %d in hand, %d left pending\n",
		stats.Fetched, stats.Applied, stats.Marked, stats.InHand, orders.left())

	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err = errors.Join(err, probe.Shutdown(last))
	serving.Wait()
	return err
}
