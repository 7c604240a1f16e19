// Outbox shows Courier at work in one process, with nothing to install: orders
// and their outbox rows are written to a SQLite file (or to PostgreSQL, MySQL or MariaDB), and relayed to a NATS
// server that goes down on the way, some of them poison. At the end it reads
// the stream back and tells whether every order is there, once.
//
// Run it with -h for the flags. What Courier does is in relay.go.
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
	exitVerdict   = 1 // an order is missing, or counted twice
	exitCannotRun = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		usage(stdout)
		return 0
	}
	console := newConsole(stderr)
	if err == nil {
		err = play(ctx, o, stdout, console)
	}
	if err == nil {
		return 0
	}
	console.line("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	if errors.Is(err, errVerdict) {
		return exitVerdict
	}
	return exitCannotRun
}

// play is one run: it opens what is needed, relays, and tells how it went.
func play(ctx context.Context, o options, stdout io.Writer, console *console) error {
	total := o.orders
	if o.in != "" { // all of it, before anything is opened or written
		var err error
		if total, err = validate(readFile(o.in)); err != nil {
			return err
		}
	}
	d, err := open(ctx, o, console)
	if err != nil {
		return err
	}
	defer d.close()
	err = d.transfer(ctx, total)

	// What is there is reported even if something failed or a signal came.
	found, reportErr := verify(context.WithoutCancel(ctx), d.db, d.js, d.stream)
	if reportErr != nil {
		return errors.Join(err, reportErr)
	}
	found.repeated = d.sink.Duplicates()
	found.measure(d.counts)
	found.print(stdout)
	if err := errors.Join(err, found.err()); err != nil {
		return err
	}
	if o.crash > 0 {
		console.line("-crash %d: fewer orders than that were delivered, so the process lived on", o.crash)
	}
	_, err = fmt.Fprintln(stdout, found.conclusion(o.db+o.pg+o.mysql))
	return err
}
