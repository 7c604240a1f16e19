package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// errDrained ends a run in which nothing is left to do.
var errDrained = errors.New("the outbox is drained")

// watched is the source of the outbox, watched: it counts what is marked, and
// tells when the outbox is drained. A relay in production runs for ever and
// needs none of this.
type watched struct {
	*couriersql.Source
	counts  *counts
	written <-chan struct{} // closed once nothing more is written
	drained func()
}

func (w *watched) Fetch(ctx context.Context, limit int) ([]couriersql.Row, error) {
	last := false
	select {
	case <-w.written: // before the fetch, which then sees all there ever is
		last = true
	default:
	}
	start := time.Now()
	rows, err := w.Source.Fetch(ctx, limit)
	switch {
	case len(rows) > 0:
		w.counts.fetched(start)
	case last && err == nil:
		w.drained()
	}
	return rows, err
}

func (w *watched) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := w.Source.Mark(ctx, rows)
	if err == nil {
		w.counts.marked(len(rows))
	}
	return err
}

// counts is how far a run is.
type counts struct {
	expected atomic.Int64 // rows to relay, as far as is known
	settled  atomic.Int64 // of them, delivered or dead-lettered, and marked
	half     chan struct{}
	halfway  sync.Once

	// The times of the relay, which are its own until it has returned.
	first, batch, last time.Time     // the first fetch, the latest one, the last mark
	busy               time.Duration // from fetch to mark, over all batches that were marked
}

func newCounts(expected int64) *counts {
	c := &counts{half: make(chan struct{})}
	c.expected.Store(expected)
	return c
}

// skipped tells of an order that an earlier run has written.
func (c *counts) skipped() { c.expected.Add(-1) }

func (c *counts) fetched(start time.Time) {
	c.batch = start
	if c.first.IsZero() {
		c.first = start
	}
}

func (c *counts) marked(rows int) {
	c.last = time.Now()
	c.busy += c.last.Sub(c.batch)
	if 2*c.settled.Add(int64(rows)) >= c.expected.Load() {
		c.halfway.Do(func() { close(c.half) })
	}
}
