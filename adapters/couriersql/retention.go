package couriersql

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// WithRetention keeps rows that are marked, as [WithKeep] does, for the time d, and then
// deletes them: while a source fetches, some minutes after a row is old enough, or for days of
// retention some hours ([Outbox.Prune] deletes them at any time). A thousand rows are deleted
// in a transaction, with a pause after each, in a goroutine that [Outbox.Close] ends. In
// PostgreSQL one relay of all does it at a time. If it fails, that is logged once and tried
// again, and the relay goes on. d is a minute or more.
func WithRetention(d time.Duration) Option {
	return func(o *Outbox) {
		if d < time.Minute {
			o.misconfigured("WithRetention", fmt.Sprintf("of %v deletes what was hardly kept: pass a minute or more, or nothing to delete rows when they are marked", d))
			return
		}
		o.keep = true
		o.pruner = &pruner{database: o.database, age: d, opened: o.opened}
		o.pruner.prune = func(ctx context.Context, before time.Time) (int, error) {
			return o.prune(ctx, pruneBatch, true, o.grammar.pruneAlone, o.grammar.time(before.UnixMicro()))
		}
	}
}

// pruner deletes what is older than an age. It is asked now and then whether it is time, and
// is one goroutine for as long as it deletes.
type pruner struct {
	*database
	age    time.Duration
	prune  func(ctx context.Context, before time.Time) (deleted int, err error)
	opened func(c closer, has bool)

	mu     sync.Mutex
	next   time.Time          // zero before the first look
	stop   context.CancelFunc // nil while nothing is deleted
	ended  chan struct{}      // is closed when that ends
	failed bool               // the last time, which was logged
}

// every is how often it deletes. A row is so kept a little longer than it was to be.
func (p *pruner) every() time.Duration { return min(max(p.age/24, time.Minute), 6*time.Hour) }

// look deletes if it is time. The first look is no time yet: a program that starts has better
// things to do. A nil pruner keeps all.
func (p *pruner) look() {
	if p == nil {
		return
	}
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.next.Sub(now)
	switch {
	case p.next.IsZero() || left > p.every(): // the clock may have been set back
		p.next = now.Add(p.every())
		return
	case left > 0 || p.stop != nil:
		return
	}
	p.next = now.Add(p.every())
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	p.stop, p.ended = stop, ended
	p.opened(p, true)
	go func() {
		defer close(ended)
		_, err := p.prune(ctx, now.Add(-p.age))
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case err == nil && p.failed:
			p.log.Info("couriersql: old rows are deleted again", "table", p.table)
			p.failed = false
		case err != nil && ctx.Err() == nil && !p.failed:
			p.log.Warn("couriersql: rows that are older than their retention could not be deleted; that is tried again, and all else goes on",
				"table", p.table, "retention", p.age, "error", err)
			p.failed = true
		}
		stop()
		p.stop = nil
		p.opened(p, false)
	}()
}

// close ends it, and waits until it has ended.
func (p *pruner) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	stop, ended := p.stop, p.ended
	p.mu.Unlock()
	if stop != nil {
		stop()
		<-ended
	}
}
