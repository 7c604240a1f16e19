// Kafka shows Courier on both sides of Kafka: orders are written to a database, each with
// its outbox row in one transaction; a relay process delivers the rows to Kafka; a group of
// consumer processes writes what it consumes into a table. Meanwhile members of the group
// come and go, the brokers are away, and the relay and a member are killed. At the end all
// of these places are read back, and compared.
//
// Without -brokers it starts a Kafka in its own process, without -pg it uses SQLite. Run it
// with -h for the flags. What Courier does is in relay.go and consumer.go.
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
	"time"
)

// The exit statuses beside 0.
const (
	exitVerdict   = 1 // an order is missing, out of order, or came twice without a reason
	exitCannotRun = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if text := os.Getenv(workerVariable); text != "" {
		os.Exit(runWorker(ctx, text))
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options is what the command line says.
type options struct {
	orders, pace, customers, poison, batch, kills, lose int
	brokers, pg                                         string
	outage                                              time.Duration
}

func flags(o *options) *flag.FlagSet {
	f := flag.NewFlagSet("kafka", flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors and usage are printed by run
	f.IntVar(&o.orders, "n", 6000, "write `N` orders")
	f.IntVar(&o.pace, "pace", 1000, "write `N` orders a second")
	f.IntVar(&o.customers, "customers", 50, "of `N` customers, whose orders stay in order")
	f.IntVar(&o.poison, "poison", 6, "make `N` of the orders ones that the relay or the consumers cannot process")
	f.IntVar(&o.batch, "batch", 200, "relay up to `N` rows at a time")
	f.DurationVar(&o.outage, "outage", time.Second, "take the brokers in the process away for this `time`; 0 is not at all")
	f.StringVar(&o.brokers, "brokers", "", "use the Kafka cluster at these `ADDRESSES`, separated by commas, with topics that are deleted at the end")
	f.StringVar(&o.pg, "pg", "", "use the PostgreSQL server of this `DSN`, in a schema that is dropped at the end")
	f.IntVar(&o.kills, "kills", 2, "kill `N` processes with SIGKILL, the relay and members of the group in turn")
	f.IntVar(&o.lose, "lose", 0, "delete `N` of the received orders before they are counted, to see the verdict")
	return f
}

func parse(args []string) (o options, err error) {
	f := flags(&o)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: see kafka -h", err)
	}
	for name, n := range map[string]int{"n": o.orders, "pace": o.pace, "customers": o.customers, "batch": o.batch} {
		if n < 1 {
			return o, fmt.Errorf("-%s %d: pass 1 or more", name, n)
		}
	}
	outageSet := false
	f.Visit(func(f *flag.Flag) { outageSet = outageSet || f.Name == "outage" })
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q: everything has a flag, see kafka -h", f.Arg(0))
	case o.poison < 0 || o.poison > o.orders:
		return o, fmt.Errorf("-poison %d: pass from 0 to the number of orders, which is %d", o.poison, o.orders)
	case o.kills < 0:
		return o, fmt.Errorf("-kills %d: pass 0 or more", o.kills)
	case o.lose < 0:
		return o, fmt.Errorf("-lose %d: pass 0 or more", o.lose)
	case o.outage < 0 || o.outage > longestOutage:
		return o, fmt.Errorf("-outage %v: pass from 0 to %v, so that the members of the group are not taken for dead", o.outage, longestOutage)
	case o.brokers != "" && outageSet && o.outage > 0:
		return o, errors.New("-brokers: leave out -outage, the program cannot take a cluster outside away")
	case o.brokers != "":
		o.outage = 0
	}
	return o, nil
}

const usageHead = `Kafka writes orders to a database, relays them to Kafka, and consumes them by a group of
processes, while members come and go, the brokers are away, and processes are killed.

  kafka                              SQLite, and a Kafka in the process
  kafka -pg DSN                      in PostgreSQL
  kafka -brokers localhost:9092      to a cluster of yours
  kafka -lose 1                      how a loss is reported

Exit status: 0 all is well; 1 an order is missing or out of order, or came twice though no
killed process had it in hand; 2 the program cannot run. Flags:
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
	_, _ = fmt.Fprintln(stderr, "kafka:", strings.ReplaceAll(err.Error(), "\n", "; "))
	if errors.Is(err, errVerdict) {
		return exitVerdict
	}
	return exitCannotRun
}
