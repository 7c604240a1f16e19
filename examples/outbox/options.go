package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"slices"
	"time"
)

// options is what the command line says.
type options struct {
	orders, poison int
	in, out        string
	db, pg, mysql  string
	batch, crash   int
	outage         time.Duration
	preload        bool
}

func flags(o *options) *flag.FlagSet {
	f := flag.NewFlagSet("outbox", flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors and usage are printed by run
	f.IntVar(&o.orders, "n", 10_000, "write `N` orders; with -db, what is missing up to N")
	f.IntVar(&o.poison, "poison", 3, "make `N` of the orders ones that cannot be delivered")
	f.DurationVar(&o.outage, "outage", 3*time.Second, "take the embedded server down for this `time` halfway; 0 is not at all")
	f.StringVar(&o.in, "in", "", "relay the rows of a `FILE`, .csv or .jsonl, instead of made-up orders")
	f.StringVar(&o.out, "out", "", "deliver to the NATS server at this `URL` instead of an embedded one")
	f.StringVar(&o.db, "db", "", "keep the database at this `PATH`, and the embedded server's store beside it")
	f.StringVar(&o.pg, "pg", "", "keep orders and outbox in the PostgreSQL database of this `DSN` instead of a SQLite file")
	f.StringVar(&o.mysql, "mysql", "", "keep orders and outbox in the MySQL or MariaDB database of this `DSN` instead of a SQLite file")
	f.IntVar(&o.crash, "crash", 0, "kill the process (SIGKILL) in the batch that brings the delivered orders to `N`; needs -db, -pg or -mysql")
	f.IntVar(&o.batch, "batch", 1000, "relay up to `N` rows at a time")
	f.BoolVar(&o.preload, "preload", false, "write everything before the relay starts, to measure the relay alone")
	return f
}

const usageHead = `Outbox writes orders to a database, each with its outbox row in one
transaction, and Courier relays them to NATS JetStream, through an outage of the
server and past orders that are poison. At the end the stream is read back.

  outbox                                     10,000 orders, an outage of 3s, 3 poison orders
  outbox -n 50000 -outage 0 -poison 0 -preload
                                             how fast the relay is
  outbox -db /tmp/orders.db -crash 4000      dies halfway …
  outbox -db /tmp/orders.db                  … and the next start loses nothing
  outbox -pg postgres://user@host/database   in PostgreSQL, where several may run at once
  outbox -mysql "user@tcp(host)/database"    in MySQL or MariaDB, likewise
  outbox -in rows.csv                        rows of any shape
  outbox -out nats://127.0.0.1:4222          to a server outside (nats-server -js)

Exit status: 0 all is well, 1 an order is missing or counted twice, 2 the program
cannot run. Flags:
`

func usage(w io.Writer) {
	f := flags(new(options))
	f.SetOutput(w)
	_, _ = io.WriteString(w, usageHead)
	f.PrintDefaults()
}

func parse(args []string) (options, error) {
	var o options
	f := flags(&o)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: see outbox -h", err)
	}
	set := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { set[f.Name] = true })
	if !set["poison"] {
		o.poison = min(o.poison, max(o.orders, 0))
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q: everything has a flag, see outbox -h", f.Arg(0))
	case o.orders < 0:
		return o, fmt.Errorf("-n %d: pass 0 or more", o.orders)
	case o.poison < 0 || o.poison > o.orders:
		return o, fmt.Errorf("-poison %d: pass from 0 to the number of orders, which is %d", o.poison, o.orders)
	case o.batch < 1:
		return o, fmt.Errorf("-batch %d: pass 1 or more", o.batch)
	case o.outage < 0:
		return o, fmt.Errorf("-outage %v: pass 0 or more", o.outage)
	case o.crash < 0:
		return o, fmt.Errorf("-crash %d: pass 1 or more", o.crash)
	case o.crash > 0 && o.db+o.pg+o.mysql == "":
		return o, errors.New("-crash: pass -db PATH too, or -pg or -mysql DSN, so that the next start finds what this one leaves")
	case o.db != "" && o.pg != "":
		return o, errors.New("-pg: leave out -db, the orders are in one database or the other")
	case o.mysql != "" && o.db+o.pg != "":
		return o, errors.New("-mysql: leave out -db and -pg, the orders are in one database or the other")
	case o.in != "" && (set["n"] || set["poison"]):
		return o, errors.New("-in: leave out -n and -poison, which are for made-up orders")
	case o.out != "" && set["outage"] && o.outage > 0:
		return o, errors.New("-out: leave out -outage, the program cannot take a server outside down")
	}
	if o.out != "" {
		o.outage = 0
		return o, o.checkOut()
	}
	return o, nil
}

// where names the database that is kept.
func (o *options) where() string {
	switch {
	case o.pg != "":
		return "the database of -pg"
	case o.mysql != "":
		return "the database of -mysql"
	}
	return o.db
}

func (o *options) checkOut() error {
	u, err := url.Parse(o.out)
	if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
		return errors.New("-out: it is not a URL of a NATS server, such as nats://127.0.0.1:4222")
	}
	return nil
}
