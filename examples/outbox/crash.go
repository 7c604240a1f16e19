package main

import (
	"context"
	"errors"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// crashing is the sink of a process that dies at the worst moment: what it has
// just delivered is in the stream, and not marked in the outbox. The next start
// delivers it again, and the stream tells it by its message ID.
type crashing struct {
	*couriernats.Sink[couriersql.Message]
	after     int
	delivered int // one coordinator, one goroutine
	console   *console
}

func (c *crashing) Apply(ctx context.Context, record couriersql.Message) error {
	err := c.Sink.Apply(ctx, record)
	c.count(1, err)
	return err
}

func (c *crashing) ApplyBatch(ctx context.Context, records []couriersql.Message) error {
	err := c.Sink.ApplyBatch(ctx, records)
	c.count(len(records), err)
	return err
}

func (c *crashing) count(records int, err error) {
	var failed *courier.BatchError
	switch {
	case errors.As(err, &failed):
		records -= len(failed.Failures)
	case err != nil:
		records = 0
	}
	if c.delivered += records; c.delivered < c.after {
		return
	}
	c.console.line("-crash %d: %s orders are delivered, the last %s of them not marked; killing this process. Start it again with the same -db and without -crash.",
		c.after, humanize.Comma(int64(c.delivered)), humanize.Comma(int64(records)))
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Kill() // SIGKILL: nothing is closed, flushed or deferred
	}
	select {} // not one instruction more, however long the signal takes
}
