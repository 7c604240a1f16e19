package courier

import (
	"context"
	"slices"
	"sync"
	"time"
)

// This room is about the leases of records in hand, for sources that want them
// renewed.

// renewEvery asks a source how often that is.
func renewEvery[T any](source Renewer[T]) (every time.Duration) {
	var ignored error // a source that panics over it gets no renewals
	isolate(&ignored, func() error {
		every = source.RenewEvery()
		return nil
	})
	return every
}

// lostIn returns which of the records that were to be renewed are lost.
func lostIn(err error) (lost []int) {
	if list, listed := batchErrorIn(err); listed && list != nil {
		for _, f := range list.Failures {
			lost = append(lost, f.Index)
		}
	}
	return lost
}

// lease renews the records that a poller has in hand, beside the work.
type lease[T any] struct {
	source Renewer[T]
	every  time.Duration
	clock  Clock
	watch  *watch
	ctx    context.Context
	ended  chan struct{}

	mu     sync.Mutex
	batch  *leased[T]   // in work; nil while it changes
	behind *leased[T]   // fetched with it and not in work yet
	ahead  []*leased[T] // fetched ahead
}

// leased is records that are in hand together.
type leased[T any] struct {
	records []T
	batch   *batch[T]    // the account of those in work
	lost    map[int]bool // of the others
}

// hold tells which records are in hand from now on, none for a nil batch. A nil
// lease holds nothing.
func (l *lease[T]) hold(b *batch[T], behind []T) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batch, l.behind = nil, &leased[T]{records: behind}
	if b != nil {
		l.batch = &leased[T]{records: b.ledger.Records, batch: b}
	}
}

// fetched adds records that were fetched ahead.
func (l *lease[T]) fetched(records []T) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead = append(l.ahead, &leased[T]{records: records})
}

// taken takes the first of them away, and returns what is not lost of it.
func (l *lease[T]) taken(records []T) []T {
	if l == nil {
		return records
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.ahead[0]
	l.ahead = l.ahead[1:]
	return first.kept(records)
}

// left returns what is not lost of the records behind the batch.
func (l *lease[T]) left(records []T) []T {
	if l == nil || l.behind == nil {
		return records
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.behind.kept(records)
}

func (p *leased[T]) kept(records []T) []T {
	if p.lost == nil {
		return records
	}
	kept := make([]T, 0, len(records))
	for i, record := range records {
		if !p.lost[i] {
			kept = append(kept, record)
		}
	}
	return kept
}

// inHand returns all that is to be renewed.
func (l *lease[T]) inHand() (parts []*leased[T]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, part := range append([]*leased[T]{l.batch, l.behind}, l.ahead...) {
		if part != nil && len(part.records) > 0 {
			parts = append(parts, part)
		}
	}
	return parts
}

// lose has a record of a part left alone. One of a batch that is not in work any
// more has its verdict.
func (l *lease[T]) lose(part *leased[T], i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case part == l.batch:
		part.batch.lose(i)
	case part.batch == nil:
		if part.lost == nil {
			part.lost = make(map[int]bool)
		}
		part.lost[i] = true
	}
}

func (l *lease[T]) loop() {
	for {
		select {
		case <-l.clock.After(l.every):
			l.renew()
		case <-l.ended:
			return
		}
	}
}

func (l *lease[T]) renew() {
	var records []T
	var part []*leased[T] // of each record
	var place []int       // in it
	for _, p := range l.inHand() {
		for i, record := range p.records {
			records, part, place = append(records, record), append(part, p), append(place, i)
		}
	}
	if len(records) == 0 {
		return
	}
	var err error
	isolate(&err, func() error { return l.source.Renew(l.ctx, records) })
	lost := lostIn(err)
	for _, i := range lost {
		if i >= 0 && i < len(records) {
			l.lose(part[i], place[i])
		}
	}
	l.watch.renewed(l.ctx, RenewEvent{Records: len(records), Lost: len(lost), Err: err})
}

// holder is the goroutine that renews for a stream.
type holder[T any] struct {
	*stream[T]
	busy   bool
	result error
}

func (h *holder[T]) loop() {
	for {
		if h.busy {
			h.busy = false
			h.renewed <- h.result
		}
		records, ok := <-h.leases
		if !ok {
			return
		}
		h.busy, h.result = true, nil
		guard(&h.result, func() error { return h.renewer.Renew(h.life.settle, records) })
	}
}

// renew has the leases of what is in hand and not marked extended when it is
// time.
func (s *stream[T]) renew(now time.Time) {
	if s.renewEvery <= 0 || s.leased != nil {
		return
	}
	if s.inHand == 0 {
		s.renewAt = time.Time{}
		return
	}
	if s.renewAt.IsZero() {
		s.renewAt = now.Add(s.renewEvery)
	}
	if now.Before(s.renewAt) {
		return
	}
	s.renewAt = now.Add(s.renewEvery)
	s.unpack()
	var items []item[T]
	for _, list := range append(s.inLanes(), s.queue, s.held) {
		items = append(items, list...)
	}
	for _, sh := range s.out {
		for i := sh.taken; i < sh.end; i++ {
			items = append(items, sh.item(i))
		}
	}
	byNumber(items) // the lanes come in any order
	var records []T
	for _, it := range items {
		records, s.leased = append(records, it.record), append(s.leased, it.number)
	}
	records = append(records, s.line.settled...) // these have no number any more, and cannot be lost
	if s.leased == nil {
		s.leased = []uint64{}
	}
	s.leases <- records
}

// finishRenewal lets go of the records whose leases are lost: those with a
// worker when it comes to them.
func (s *stream[T]) finishRenewal(err error) {
	n := len(s.leased)
	lost := make(map[uint64]bool)
	for _, i := range lostIn(err) {
		if i >= 0 && i < n {
			lost[s.leased[i]] = true
		}
	}
	s.leased = nil
	for _, sh := range s.out {
		for i := sh.taken; i < sh.end; i++ {
			if lost[sh.item(i).number] {
				sh.account.lose(i)
			}
		}
	}
	keep := func(items []item[T]) []item[T] {
		return slices.DeleteFunc(items, func(it item[T]) bool {
			if lost[it.number] {
				s.drop(&it)
			}
			return lost[it.number]
		})
	}
	s.unpack()
	s.queue = keep(s.queue)
	for _, l := range s.lanes {
		l.waiting = keep(l.waiting)
	}
	for _, it := range s.held {
		if s.lanes != nil && lost[it.number] {
			s.lanes[it.key].held--
		}
	}
	s.held = keep(s.held)
	for key := range s.lanes {
		s.openLane(key)
	}
	s.watch.renewed(s.life.settle, RenewEvent{Records: n, Lost: len(lost), Err: err})
}
