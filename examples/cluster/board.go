package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/mattn/go-isatty"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// errVerdict is the error, to errors.Is, of a run that lost an order, or whose
// relays delivered more twice than they may.
var errVerdict = errors.New("the books do not balance")

// board is who delivered what, as it is read from the stream.
type board struct {
	opts options

	mu       sync.Mutex
	changed  chan struct{} // closed, and made anew, with each message
	names    []string
	relays   map[string]*line
	seen     map[string]bool
	repeated int
	disorder int // orders that came first after a later one
	highest  string
}

type line struct {
	delivered, repeated int
	dead                bool
	last                time.Time
}

func newBoard(o options) *board {
	return &board{opts: o, changed: make(chan struct{}), relays: map[string]*line{}, seen: map[string]bool{}}
}

func (b *board) started(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names = append(b.names, name)
	b.relays[name] = new(line)
}

func (b *board) killed(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.relays[name].dead = true
}

// read takes in the stream from its beginning, as it fills.
func (b *board) read(ctx context.Context, js jetstream.JetStream) (jetstream.ConsumeContext, error) {
	consumer, err := js.OrderedConsumer(ctx, streamName, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return nil, err
	}
	return consumer.Consume(func(m jetstream.Msg) {
		b.note(m.Headers().Get(relayHeader), couriernats.RecordID(m.Headers()))
	})
}

func (b *board) note(relay, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.relays[relay]
	l.last = time.Now()
	if b.seen[id] {
		l.repeated++
		b.repeated++
	} else {
		l.delivered++
		b.seen[id] = true
		if id < b.highest {
			b.disorder++
		}
		b.highest = max(b.highest, id)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait returns once n orders have arrived. It gives up when none does any more.
func (b *board) wait(ctx context.Context, n int) error {
	for {
		b.mu.Lock()
		have, changed := len(b.seen), b.changed
		b.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.New("stopped by a signal")
		case <-time.After(patience):
			return fmt.Errorf("%w: nothing has arrived for %v, and %d orders have not", errVerdict, patience, b.opts.orders-have)
		}
	}
}

// show draws the table again and again on a terminal, and once, at the end,
// elsewhere. The function that it returns ends that.
func (b *board) show(w io.Writer) (stop func()) {
	file, ok := w.(*os.File)
	terminal := ok && isatty.IsTerminal(file.Fd())
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		lines := 0
		draw := func() {
			text := b.table()
			if lines > 0 {
				_, _ = fmt.Fprintf(w, "\x1b[%dA\x1b[J", lines)
			}
			_, _ = io.WriteString(w, text)
			lines = strings.Count(text, "\n")
		}
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if terminal {
					draw()
				}
			case <-done:
				draw()
				return
			}
		}
	})
	return sync.OnceFunc(func() { close(done); group.Wait() })
}

func (b *board) table() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(table, "relay\tstate\tdelivered\tdelivered again\t\n")
	for _, name := range b.names {
		l := b.relays[name]
		state := "stands by"
		switch {
		case l.dead:
			state = "killed"
		case time.Since(l.last) < time.Second:
			state = "delivers"
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t\n", name, state, humanize.Comma(int64(l.delivered)), humanize.Comma(int64(l.repeated)))
	}
	_, _ = fmt.Fprintf(table, "all\t\t%s\t%s\t\n", humanize.Comma(int64(len(b.seen))), humanize.Comma(int64(b.repeated)))
	_ = table.Flush()
	return text.String()
}

// verdict is the end of the run.
func (b *board) verdict(w io.Writer, pending int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	allowed := b.opts.kills * b.opts.batch
	missing := b.opts.orders - len(b.seen)
	switch {
	case missing > 0 || pending > 0:
		return fmt.Errorf("%w: %d orders are missing, and %d wait in the outbox", errVerdict, missing, pending)
	case b.repeated > allowed:
		return fmt.Errorf("%w: %d deliveries were repeated, and the killed relays had at most %d in hand", errVerdict, b.repeated, allowed)
	case b.opts.strict && b.disorder > 0:
		return fmt.Errorf("%w: %d orders came first after a later one", errVerdict, b.disorder)
	}
	order := ""
	if b.opts.strict {
		order = " in order"
	}
	_, err := fmt.Fprintf(w, "\nAll %s orders arrived%s. %d relays were killed; %s deliveries were repeated, of at most %s that were in hand.\n",
		humanize.Comma(int64(b.opts.orders)), order, b.opts.kills, humanize.Comma(int64(b.repeated)), humanize.Comma(int64(allowed)))
	return err
}
