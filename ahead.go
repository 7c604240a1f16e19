package courier

import (
	"context"
	"time"
)

// ahead fetches the next batches of a source that leases while one is applied.
// Its methods but loop are the poller's; a nil one fetches nothing.
type ahead[T any] struct {
	source  Source[T]
	pager   Pager // nil if the source is none
	control *control
	watch   *watch
	lease   *lease[T]

	wanted  chan aheadRequest
	fetched chan fetchResult[T] // parallel to them
	pending int                 // asked for and not taken
	intake  context.Context     // of the fetches that are pending; nil when none are
	cancel  context.CancelCauseFunc

	taken  bool // the poller has the last batch that was asked for in hand
	busy   bool
	began  time.Time       // of the fetch
	dry    bool            // the last fetch was not full: those that were asked for behind it are not made
	under  context.Context // the fetch is made
	result fetchResult[T]
}

type aheadRequest struct {
	ctx   context.Context
	limit int
	fresh bool // nothing was asked for before it that is not taken
}

func newAhead[T any](c *PollingCoordinator[T], pager Pager, lease *lease[T]) *ahead[T] {
	n := c.config.prefetch
	return &ahead[T]{
		source: c.source, pager: pager, control: c.control, watch: c.watch, lease: lease,
		wanted: make(chan aheadRequest, n), fetched: make(chan fetchResult[T], n),
	}
}

// ask has as many batches fetched as there is room for, beside so many records in hand.
func (a *ahead[T]) ask(limit, inHand int) {
	if a == nil {
		return
	}
	most := min(cap(a.wanted), (limit*(1+cap(a.wanted))-inHand)/limit)
	if a.pending >= most {
		return
	}
	if a.intake == nil {
		a.intake, a.cancel = context.WithCancelCause(a.control.intake())
	}
	for a.pending < most {
		a.wanted <- aheadRequest{a.intake, limit, a.pending == 0}
		a.pending++
	}
}

// take gives the poller the next batch that was asked for, and waits for it.
func (a *ahead[T]) take() (r fetchResult[T], ok bool) {
	if a != nil {
		a.taken = false
	}
	for a != nil && a.pending > 0 {
		a.pending--
		r = <-a.fetched
		if a.pending == 0 {
			a.cancel(nil)
			a.intake, a.cancel = nil, nil
		}
		if !r.skipped {
			a.lease.takeAhead()
			a.taken = true
			return r, true
		}
	}
	return fetchResult[T]{}, false
}

// asked reports whether a batch was asked for that is not taken.
func (a *ahead[T]) asked() bool { return a != nil && a.pending > 0 }

// took reports whether the last take returned a batch.
func (a *ahead[T]) took() bool { return a != nil && a.taken }

// callOff has fetches end that are under way, and not made that are not.
func (a *ahead[T]) callOff() {
	if a != nil && a.intake != nil {
		a.cancel(ErrPaused)
	}
}

func (a *ahead[T]) loop() {
	for {
		if a.busy {
			a.busy = false
			a.watch.ends(&a.watch.fetching)
			a.watch.count.inHand.Add(int64(len(a.result.records)))
			a.result.cancelled = a.under.Err() != nil
			a.result.took = a.watch.since(true, a.began)
			a.lease.addAhead(a.result.records)
			a.fetched <- a.result
		}
		r, ok := <-a.wanted
		if !ok {
			return
		}
		a.dry = a.dry && !r.fresh
		if a.dry || r.ctx.Err() != nil || gateOf(a.control.breakers).closed {
			a.fetched <- fetchResult[T]{skipped: true}
			continue
		}
		a.busy, a.dry = true, true
		a.result, a.under = fetchResult[T]{}, r.ctx
		a.began = a.watch.clock.Now()
		a.watch.begins(&a.watch.fetching, "fetch")
		guard(&a.result.err, func() (err error) {
			a.result.records, err = a.source.Fetch(r.ctx, r.limit)
			a.result.more = err == nil && more(a.pager)
			a.dry = err != nil || len(a.result.records) < r.limit && !a.result.more
			return err
		})
	}
}
