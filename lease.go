package courier

import (
	"errors"
	"time"
)

// This room is about the leases of records in hand, for sources that want them renewed:
// one loop beside the work, over what engine.Leases has in hand.

// ErrRevoked is why a source lists a record as lost that it hands over to another process
// in order, as a consumer does when its group is rebalanced: nothing went wrong, and the
// log says so. The error of each such record in the [BatchError] of Renew wraps it.
var ErrRevoked = errors.New("courier: the record is handed over to another process, in agreement with this one")

// renewEvery asks a source how often to renew its leases.
func renewEvery[T any](source Renewer[T]) (every time.Duration) {
	var ignored error // a source that panics over it gets no renewals
	isolate(&ignored, func() error {
		every = source.RenewEvery()
		return nil
	})
	return every
}

// revokedBy returns the channel by which a source has its leases renewed at once, nil if
// it has none.
func revokedBy[T any](source Renewer[T]) (revoked <-chan struct{}) {
	if r, ok := source.(Revoker); ok {
		var ignored error // likewise
		isolate(&ignored, func() error {
			revoked = r.Revoked()
			return nil
		})
	}
	return revoked
}

// renewLeases has the leases of what is in hand renewed until the end of the run, by time
// and when the source asks for it: then once more when a fetch has brought records that
// this has missed. It goes by a timer: a lease runs out though a clock is set back. lost is
// called after some were lost.
func (p *pipeline[T]) renewLeases(lost func()) {
	var due <-chan time.Time
	for {
		if due == nil && p.renewEvery > 0 {
			due = p.clock.After(p.renewEvery)
		}
		select {
		case <-due:
			due = nil
		case _, open := <-p.revoked:
			if !open {
				p.revoked = nil
			}
			p.leases.Ask()
		case <-p.missed:
		case <-p.renewing.Done():
		}
		if p.renewing.Err() != nil {
			return
		}
		p.renew(lost)
	}
}

func (p *pipeline[T]) renew(lost func()) {
	records, numbers := p.leases.Renewable()
	if len(records) == 0 {
		return
	}
	var err error
	isolate(&err, func() error { return p.renewer.Renew(p.renewing, records) })
	if p.renewing.Err() != nil {
		return // the run is at its end
	}
	event := RenewEvent{Records: len(records), Err: err}
	if list, listed := batchErrorIn(err); listed && list != nil {
		for _, f := range list.Failures {
			if f.Index < 0 || f.Index >= len(numbers) || !p.leases.Lose(numbers[f.Index]) {
				continue
			}
			event.Lost++
			if errors.Is(f.Err, ErrRevoked) {
				event.Revoked++
			}
		}
	}
	if event.Lost > 0 {
		lost()
	}
	p.watch.renewed(p.renewing, event)
}

// dropped has records out of hand that are neither marked nor given back.
func (p *pipeline[T]) dropped(numbers ...uint64) {
	p.leases.Leave(numbers...)
	p.watch.count.inHand.Add(-int64(len(numbers)))
}
