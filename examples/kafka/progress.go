package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// say tells in the table what happens.
func (d *demo) say(what string) { d.saying <- what }

// show prints a line of the table whenever something happens, and every half a second.
func (d *demo) show(ctx context.Context, w io.Writer) {
	const row = "%6s  %8s  %8s  %8s  %8s   %-45s %s\n"
	_, _ = fmt.Fprintf(w, row, "time", "written", "in work", "received", "letters", "received by the last members", "")
	began := time.Now()
	line := func(what string) {
		c, err := d.count(context.WithoutCancel(ctx))
		if err != nil {
			return // the next line tells
		}
		number := func(n int64) string { return humanize.Comma(n) }
		text := fmt.Sprintf(row, fmt.Sprintf("%.1fs", time.Since(began).Seconds()), number(d.written.Load()), number(c.pending), number(c.received), c.letters, c.members, what)
		_, _ = io.WriteString(w, strings.TrimRight(text, " \n")+"\n")
	}
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case what := <-d.saying:
			line(what)
		case <-ticker.C:
			line("")
		case <-ctx.Done():
			line("all is done")
			return
		}
	}
}

// counted is one line of the table.
type counted struct {
	pending, received int64
	letters, members  string
}

func (d *demo) count(ctx context.Context) (c counted, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	pending, err := d.shop.outbox.Pending(ctx)
	if err != nil {
		return c, err
	}
	c.pending = int64(pending)
	if err := d.received.QueryRowContext(ctx, `SELECT count(DISTINCT id) FROM received`).Scan(&c.received); err != nil {
		return c, err
	}
	rows, err := column(d.received.QueryContext(ctx, `SELECT member || ' ' || count(*) FROM received GROUP BY member ORDER BY max(seq) DESC LIMIT 5`))
	if err != nil {
		return c, err
	}
	c.letters, c.members = "?", cmp.Or(strings.Join(rows, "  "), "-")
	if d.kafka.gate.isOpen() {
		if ends, err := d.kafka.ends(ctx, d.kafka.deadLetters); err == nil {
			n := int64(0)
			for _, end := range ends {
				n += end
			}
			c.letters = humanize.Comma(n)
		}
	}
	return c, nil
}
