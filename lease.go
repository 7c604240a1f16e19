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

// lease renews the records that a poller has in hand, beside the work. The methods
// but loop are the poller's; a nil one holds nothing.
type lease[T any] struct {
	source Renewer[T]
	every  time.Duration
	clock  Clock
	watch  *watch
	ctx    context.Context
	cancel context.CancelCauseFunc // ends ctx, and with it the loop

	mu    sync.Mutex
	fetch *leased[T]   // in hand; nil when there is none
	batch *batch[T]    // of it, in work; nil while that changes
	base  int          // where the batch begins
	size  int          // how long it is
	over  bool         // it was applied, as far as it will be
	ahead []*leased[T] // fetches in hand behind it
	aside *leased[T]   // in hand as well, while those are taken to be given back
	waits *leased[T]   // likewise: what waits for its next attempt
}

// leased is what one fetch brought, and what is lost of it.
type leased[T any] struct {
	records []T
	numbers []uint64 // of records that are kept in hand from pass to pass; else nil
	lost    map[int]bool
}

// find returns the index of the record with a number, or -1.
func (f *leased[T]) find(number uint64) int {
	if f == nil || number == 0 {
		return -1
	}
	return slices.Index(f.numbers, number)
}

// hold has the records of a pass in hand.
func (l *lease[T]) hold(held []pending[T]) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before, aside := l.fetch, l.aside
	l.aside = nil
	l.fetch = &leased[T]{records: recordsOf(held)}
	for i, h := range held {
		l.fetch.numbers = append(l.fetch.numbers, h.key.number)
		for _, f := range [...]*leased[T]{before, aside, l.waits} {
			if j := f.find(h.key.number); j >= 0 && f.lost[j] {
				l.fetch.setLost(i)
			}
		}
	}
	l.batch, l.base, l.size, l.over = nil, 0, 0, false
}

// waitBeside has records in hand that wait, beside the fetch.
func (l *lease[T]) waitBeside(waiting []pending[T]) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.waits
	l.waits = nil
	if len(waiting) == 0 {
		return
	}
	l.waits = &leased[T]{records: recordsOf(waiting)}
	for i, w := range waiting {
		l.waits.numbers = append(l.waits.numbers, w.key.number)
		for _, f := range [...]*leased[T]{l.fetch, before} {
			if j := f.find(w.key.number); j >= 0 && f.lost[j] {
				l.waits.setLost(i)
			}
		}
	}
}

// regain notes that the source has handed a record out again that waits.
func (l *lease[T]) regain(number uint64) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if j := l.waits.find(number); j >= 0 {
		delete(l.waits.lost, j)
	}
}

// lostWaiting reports whether the lease of a record that waits is lost.
func (l *lease[T]) lostWaiting(number uint64) bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	j := l.waits.find(number)
	return j >= 0 && l.waits.lost[j]
}

// number tells how the records of a fetch that was made ahead are known, for a
// renewal that is under way when some of them are kept for the next pass.
func (l *lease[T]) number(ids []recordKey) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fetch == nil || l.fetch.numbers != nil || len(ids) != len(l.fetch.records) {
		return
	}
	for _, id := range ids {
		l.fetch.numbers = append(l.fetch.numbers, id.number)
	}
}

// numberOne does so for one record of the batch.
func (l *lease[T]) numberOne(i int, number uint64) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fetch.numbers == nil {
		l.fetch.numbers = make([]uint64, len(l.fetch.records))
	}
	l.fetch.numbers[l.base+i] = number
}

// change and begin are before and after the next batch of it is made out.
func (l *lease[T]) change() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batch, l.base, l.size, l.over = nil, l.base+l.size, 0, false
}

func (l *lease[T]) begin(b *batch[T]) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batch, l.size = b, len(b.ledger.Records)
	for i := range l.size {
		if l.fetch.lost[l.base+i] {
			b.lose(i)
		}
	}
}

// finish is after the batch was applied, and before it is marked.
func (l *lease[T]) finish() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// left returns what is not lost of the records behind the batch.
func (l *lease[T]) left(records []pending[T]) []pending[T] {
	if l == nil || l.fetch == nil {
		return records
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := make([]pending[T], 0, len(records))
	for i, record := range records {
		if !l.fetch.lost[l.base+l.size+i] {
			kept = append(kept, record)
		}
	}
	return kept
}

// drop lets go of the fetch, which is settled.
func (l *lease[T]) drop() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fetch, l.batch, l.aside = nil, nil, nil
}

// addAhead adds what was fetched ahead, takeAhead takes the first of it in hand.
func (l *lease[T]) addAhead(records []T) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead = append(l.ahead, &leased[T]{records: records})
}

func (l *lease[T]) takeAhead() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fetch, l.batch, l.base, l.size, l.over = l.ahead[0], nil, 0, 0, false
	l.ahead = l.ahead[1:]
}

// putAside keeps the fetch in hand while those made ahead are taken. The next hold
// takes over what is lost of it.
func (l *lease[T]) putAside() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aside = l.fetch
}

// lose has a record left alone, of the batch in work or of one to come, and
// reports whether it was not settled: one that is marked meanwhile may be found
// gone.
func (l *lease[T]) lose(f *leased[T], i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f != l.fetch && f.numbers != nil {
		if j := l.waits.find(f.numbers[i]); j >= 0 { // it waits by now
			l.waits.setLost(j)
			return true
		}
		if j := l.fetch.find(f.numbers[i]); j >= 0 { // the next pass has it by now
			f, i = l.fetch, j
		}
	}
	if f == l.fetch {
		inBatch := i < l.base+l.size
		if inBatch && l.over {
			f.setLost(i) // it may be kept for the next pass
		}
		if i < l.base || inBatch && l.over {
			return false
		}
		if inBatch {
			l.batch.lose(i - l.base)
			return true
		}
	} else if f != l.aside && f != l.waits && !slices.Contains(l.ahead, f) {
		return false
	}
	f.setLost(i)
	return true
}

func (f *leased[T]) setLost(i int) {
	if f.lost == nil {
		f.lost = make(map[int]bool)
	}
	f.lost[i] = true
}

func (l *lease[T]) loop() {
	for {
		select {
		case <-l.clock.After(l.every):
		case <-l.ctx.Done():
		}
		if l.ctx.Err() != nil {
			return
		}
		l.renew()
	}
}

func (l *lease[T]) renew() {
	var records []T
	var of []*leased[T] // each record's fetch
	var place []int     // and its place in that
	l.mu.Lock()
	for _, f := range append([]*leased[T]{l.fetch, l.waits}, l.ahead...) {
		if f == nil {
			continue
		}
		from := 0
		if f == l.fetch {
			from = l.base
		}
		for i := from; i < len(f.records); i++ {
			if f == l.waits && f.lost[i] { // somebody else's by now
				continue
			}
			records, of, place = append(records, f.records[i]), append(of, f), append(place, i)
		}
	}
	l.mu.Unlock()
	if len(records) == 0 {
		return
	}
	var err error
	isolate(&err, func() error { return l.source.Renew(l.ctx, records) })
	if l.ctx.Err() != nil {
		return // the run is at its end
	}
	lost := 0
	for _, i := range lostIn(err) {
		if i >= 0 && i < len(records) && l.lose(of[i], place[i]) {
			lost++
		}
	}
	l.watch.renewed(l.ctx, len(records), lost, err)
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
		guard(&h.result, func() error { return h.renewer.Renew(h.renewing, records) })
	}
}

// renew has the leases of what is in hand and not marked extended when it is
// time. It goes by a timer: a lease runs out though a clock is set back.
func (s *stream[T]) renew() {
	if s.renewEvery <= 0 || s.leased != nil {
		return
	}
	if s.inHand == 0 {
		s.renewal, s.renewalDue = nil, false
		return
	}
	due := s.renewalDue
	if s.renewalDue = false; due || s.renewal == nil {
		s.renewal = s.config.clock.After(s.renewEvery)
	}
	if !due {
		return
	}
	s.unpack()
	var items []item[T]
	for _, list := range append(s.inLanes(), s.queue, s.held.items) {
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
	// What waits to be marked or given back has no number any more, and cannot be
	// lost.
	records = append(append(records, s.line.settled...), s.line.waiting()...)
	if s.job != nil && s.job.kind == markJob {
		records = append(records, s.job.records...)
	}
	for _, group := range s.back.groups {
		records = append(records, group.records...)
	}
	for _, f := range s.faulty {
		records = append(records, f.Record)
	}
	if len(records) == 0 {
		return
	}
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
	found := 0 // those that were not settled meanwhile
	for _, sh := range s.out {
		for i := sh.taken; i < sh.end; i++ {
			if lost[sh.item(i).number] {
				sh.account.lose(i)
				found++
			}
		}
	}
	ours := func(it item[T]) bool {
		if lost[it.number] {
			s.drop(&it)
			found++
		}
		return !lost[it.number]
	}
	s.unpack()
	s.queue = slices.DeleteFunc(s.queue, func(it item[T]) bool { return !ours(it) })
	for _, l := range s.lanes {
		l.waiting.keep(ours)
	}
	s.held.keep(func(it item[T]) bool {
		if !lost[it.number] {
			return true
		}
		if s.lanes != nil {
			s.lanes[it.key].held--
		}
		if s.isYoung(&it) {
			s.young--
		}
		return ours(it)
	})
	s.tellWaiting()
	for key := range s.lanes {
		s.openLane(key)
	}
	s.watch.renewed(s.life.settle, n, found, err)
}
