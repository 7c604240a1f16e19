// Cluster runs three relay processes on one outbox in PostgreSQL, kills them in
// turn with SIGKILL while orders are written, and shows who delivered what. At
// the end it tells whether every order arrived, from what is in the stream.
//
// Without -pg it starts a private PostgreSQL from the installed binaries, and a
// NATS server in its own process. Run it with -h for the flags. What Courier
// does is in relay.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// The exit statuses beside 0.
const (
	exitVerdict   = 1 // an order is missing, or more came twice than were in hand
	exitCannotRun = 2
)

// relayVariable makes this program a relay, with its value as configuration.
const relayVariable = "COURIER_CLUSTER_RELAY"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if text := os.Getenv(relayVariable); text != "" {
		os.Exit(runRelay(ctx, text))
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options is what the command line says.
type options struct {
	orders, relays, kills, batch int
	pg                           string
	strict                       bool
}

func flags(o *options) *flag.FlagSet {
	f := flag.NewFlagSet("cluster", flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors and usage are printed by run
	f.IntVar(&o.orders, "n", 30_000, "write `N` orders")
	f.IntVar(&o.relays, "relays", 3, "run `N` relay processes")
	f.IntVar(&o.kills, "kills", 6, "kill a relay `N` times, in turn")
	f.IntVar(&o.batch, "batch", 200, "relay up to `N` rows at a time")
	f.StringVar(&o.pg, "pg", "", "use the PostgreSQL server of this `DSN`, in a schema that is dropped at the end")
	f.BoolVar(&o.strict, "strict", false, "one relay delivers at a time, in order, and the others stand by")
	return f
}

func parse(args []string) (o options, err error) {
	f := flags(&o)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: see cluster -h", err)
	}
	for name, n := range map[string]int{"n": o.orders, "relays": o.relays, "batch": o.batch} {
		if n < 1 {
			return o, fmt.Errorf("-%s %d: pass 1 or more", name, n)
		}
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q: everything has a flag, see cluster -h", f.Arg(0))
	case o.kills < 0 || o.kills >= o.orders:
		return o, fmt.Errorf("-kills %d: pass 0 or more, and fewer than there are orders", o.kills)
	}
	return o, nil
}

const usageHead = `Cluster runs relay processes on one outbox in PostgreSQL and kills them in turn.

  cluster                    three relays, 30,000 orders, six kills
  cluster -strict            one of them at a time, in order
  cluster -pg DSN            on a server of yours

Exit status: 0 all is well, 1 an order is missing, or more came twice than the
killed relays had in hand, 2 the program cannot run. Flags:
`

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		f := flags(new(options))
		f.SetOutput(stdout)
		_, _ = io.WriteString(stdout, usageHead)
		f.PrintDefaults()
		return 0
	}
	if err == nil {
		err = play(ctx, o, stdout, stderr)
	}
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, "cluster:", strings.ReplaceAll(err.Error(), "\n", "; "))
	if errors.Is(err, errVerdict) {
		return exitVerdict
	}
	return exitCannotRun
}
