package courier

import "context"

// ahead fetches the next batches of a source that leases while one is applied.
// Its methods are the poller's; a nil one fetches nothing.
type ahead[T any] struct {
	source Source[T]
	watch  *watch
	lease  *lease[T]
	ctx    context.Context

	wanted  chan aheadRequest
	fetched chan fetchResult[T] // parallel to them
	pending int                 // asked for and not taken

	busy   bool
	dry    bool // the last fetch was not full: those that were asked for behind it are not made
	result fetchResult[T]
}

type aheadRequest struct {
	limit int
	fresh bool // nothing was asked for before it that is not taken
}

// ask has as many batches fetched as there is room for.
func (a *ahead[T]) ask(limit int) {
	for a != nil && a.pending < cap(a.wanted) {
		a.wanted <- aheadRequest{limit, a.pending == 0}
		a.pending++
	}
}

// take gives the poller the next batch that was asked for, and waits for it.
func (a *ahead[T]) take(p *poller[T]) bool {
	for a != nil && a.pending > 0 {
		a.pending--
		if r := <-a.fetched; !r.skipped {
			p.records, p.fetchErr, p.fetchedAt = a.lease.taken(r.records), r.err, r.began
			return true
		}
	}
	return false
}

func (a *ahead[T]) loop() {
	for {
		if a.busy {
			a.busy = false
			a.lease.fetched(a.result.records)
			a.fetched <- a.result
		}
		r, ok := <-a.wanted
		if !ok {
			return
		}
		if a.dry = a.dry && !r.fresh; a.dry {
			a.fetched <- fetchResult[T]{skipped: true}
			continue
		}
		a.busy, a.dry, a.result = true, true, fetchResult[T]{}
		a.result.began = a.watch.clock.Now()
		guard(&a.result.err, func() (err error) {
			a.result.records, err = a.source.Fetch(a.ctx, r.limit)
			a.dry = err != nil || len(a.result.records) < r.limit
			return err
		})
	}
}
