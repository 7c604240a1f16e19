package main

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// demo is what a run works with.
type demo struct {
	opts    options
	console *console
	log     *slog.Logger
	db      *database
	server  *broker // nil with -out
	js      jetstream.JetStream
	stream  jetstream.Stream
	sink    *couriernats.Sink[couriersql.Message]
	counts  *counts

	closers []func()
}

func (d *demo) atClose(f func()) { d.closers = append(d.closers, f) }

// close undoes what open did, the last first.
func (d *demo) close() {
	for i := len(d.closers) - 1; i >= 0; i-- {
		d.closers[i]()
	}
}

// open opens the database, starts the server unless there is one outside, and
// connects.
func open(ctx context.Context, o options, console *console) (_ *demo, err error) {
	d := &demo{
		opts:    o,
		console: console,
		log:     slog.New(slog.NewTextHandler(console, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()

	path, err := d.openDatabase(ctx)
	if err != nil {
		return nil, err
	}
	d.atClose(d.db.close)

	address := d.opts.out
	if address == "" {
		if d.server, err = startBroker(path+".jetstream", d.log); err != nil {
			return nil, err
		}
		d.atClose(d.server.stop)
		address = d.server.address()
	}
	if d.js, err = connect(address, d.log); err != nil {
		return nil, err
	}
	d.atClose(d.js.Conn().Close)
	if d.stream, err = openStream(ctx, d.js); err != nil {
		return nil, err
	}
	d.sink = couriernats.NewSink(d.js, message, couriernats.WithExpectStream(streamName))
	d.atClose(d.sink.Close)
	return d, nil
}

// openDatabase returns the path beside which the embedded server has its store.
func (d *demo) openDatabase(ctx context.Context) (path string, err error) {
	if d.opts.pg != "" || d.opts.mysql != "" {
		if d.opts.mysql != "" {
			d.db, err = openMySQL(ctx, d.opts.mysql)
		} else {
			d.db, err = openPostgres(ctx, d.opts.pg)
		}
		if err != nil {
			return "", err
		}
		return filepath.Join(os.TempDir(), "courier-outbox-"+d.db.name), nil
	}
	path = d.opts.db
	if path == "" {
		folder, err := os.MkdirTemp("", "courier-outbox-")
		if err != nil {
			return "", err
		}
		d.atClose(func() { _ = os.RemoveAll(folder) })
		path = filepath.Join(folder, "orders.db")
	}
	d.db, err = openDatabase(ctx, path)
	return path, err
}

// transfer writes the orders and relays them, both at once, while the broker
// goes down and comes back. It returns when the outbox is drained, ctx ends, or
// one of them fails.
func (d *demo) transfer(ctx context.Context, total int) error {
	d.counts = newCounts(int64(total))
	before, err := d.db.state(ctx)
	if err != nil {
		return err
	}
	d.counts.expected.Add(before.pending)
	if before.written > 0 {
		d.console.line("continuing with %s: %s orders written before, %s pending", d.opts.where(), humanize.Comma(before.written), humanize.Comma(before.pending))
	}

	// The first that ends the run says why.
	running, end := context.WithCancelCause(ctx)
	var group sync.WaitGroup
	written := make(chan struct{})
	write := func() {
		defer close(written)
		if err := d.db.writeAll(running, d.orders(), d.counts); err != nil {
			end(err)
		}
	}
	if d.opts.preload {
		d.console.line("writing %s orders first", humanize.Comma(int64(total)))
		write()
	} else {
		group.Go(write)
	}
	if d.opts.outage > 0 {
		group.Go(func() {
			if err := d.server.outage(running, d.counts.half, d.opts.outage); err != nil {
				end(err)
			}
		})
	}
	stopProgress := d.console.progress(d.counts, d.js.Conn().IsConnected)
	source := &watched{Source: d.db.outbox.Source(), counts: d.counts, written: written, drained: func() { end(errDrained) }}
	var sink courier.Applier[couriersql.Message] = d.sink
	if d.opts.crash > 0 {
		sink = &crashing{Sink: d.sink, after: d.opts.crash, console: d.console}
	}
	err = relay(running, source, sink, source.DLQ(), d.opts.batch, d.log) // the heart, in relay.go
	end(err)
	group.Wait()
	stopProgress()

	if cause := context.Cause(running); err == nil && ctx.Err() == nil && !errors.Is(cause, errDrained) {
		return cause // of the writer, or of the server that did not start again
	}
	return err
}

// orders are what there is to write.
func (d *demo) orders() iter.Seq2[order, error] {
	if d.opts.in != "" {
		return readFile(d.opts.in)
	}
	return generated(d.opts.orders, d.opts.poison, d.js.Conn().MaxPayload())
}
