package courier

import (
	"slices"
	"time"
)

// This file is about the records of a poller's pass, and those that stay in hand from one
// to the next over a breaker's pause: of a source that could not be known again if it
// returned them anew, and of RunOnce, which fetches once.

// pending is a record in the hand of a poller.
type pending[T any] struct {
	numbered[T]
	place int       // in its fetch
	id    recordKey // by which it is known, if it is

	// Of one that waits for its next attempt, or has.
	order  string // its order key
	due    time.Time
	asked  bool // for the time, by the record's own error
	err    error
	waited bool // and is in the pass by now
	past   history
}

// bare is the record without what it waited for.
func (it pending[T]) bare() pending[T] {
	return pending[T]{numbered: it.numbered, place: it.place, id: it.id}
}

// run is records of a pass, in order: as they were fetched, or each with what is known of
// it.
type run[T any] struct {
	records []T
	first   uint64       // the number of the first, and its place in the fetch, where they
	place   int          // are as they were fetched
	items   []pending[T] // else; parallel to the records
}

func runOf[T any](items []pending[T]) run[T] { return run[T]{records: recordsIn(items), items: items} }

func (r *run[T]) len() int { return len(r.records) }

func (r *run[T]) item(i int) pending[T] {
	if r.items != nil {
		return r.items[i]
	}
	return pending[T]{numbered: numbered[T]{r.records[i], r.first + uint64(i)}, place: r.place + i}
}

func (r *run[T]) all() []pending[T] {
	if r.items != nil {
		return r.items
	}
	items := make([]pending[T], r.len())
	for i := range items {
		items[i] = r.item(i)
	}
	return items
}

// cut takes the first n records out of the run.
func (r *run[T]) cut(n int) run[T] {
	head := run[T]{records: r.records[:n:n], first: r.first, place: r.place}
	r.records, r.first, r.place = r.records[n:], r.first+uint64(n), r.place+n
	if r.items != nil {
		head.items, r.items = r.items[:n:n], r.items[n:]
	}
	return head
}

// identify finds out how the records of a run are known.
func (p *poller[T]) identify(r *run[T]) {
	if r.items != nil {
		return
	}
	r.items = r.all()
	for i, id := range p.identity.keysOf(r.records, r.first) {
		r.items[i].id = id
	}
}

func recordsIn[T any](items []pending[T]) []T {
	records := make([]T, len(items))
	for i := range items {
		records[i] = items[i].record
	}
	return records
}

func idsIn[T any](items []pending[T]) []recordKey {
	ids := make([]recordKey, len(items))
	for i := range items {
		ids[i] = items[i].id
	}
	return ids
}

func numberedIn[T any](items []pending[T]) []numbered[T] {
	some := make([]numbered[T], len(items))
	for i := range items {
		some[i] = items[i].numbered
	}
	return some
}

// ours lets go of the records that another instance has by now, and returns the others.
func (p *poller[T]) ours(items []pending[T]) []pending[T] {
	if !p.leases.Some() {
		return items
	}
	var ours []pending[T]
	for _, it := range items {
		if p.leases.Lost(it.number) {
			p.dropped(it.number)
		} else {
			ours = append(ours, it)
		}
	}
	return ours
}

// keeps reports whether the records that the pass leaves unsettled stay in hand.
func (p *poller[T]) keeps() bool {
	if !p.identity.inHand || p.paused || p.leaving || p.unmarked != nil || p.life.stop.Err() != nil {
		return false
	}
	return p.pass.halted.err != nil || p.probing || p.sparing
}

// keep has the records that the pass leaves unsettled stay in hand, in the order
// fetched. Those that failed, or were refused before the pause, go back to the
// source, and with them the later ones of their keys and of keys that a record
// holds back which is with the source already.
func (p *poller[T]) keep() {
	left := p.ours(append(p.release, p.behind...))
	p.release, p.behind = nil, nil
	if len(left) == 0 {
		return
	}
	byNumber(left) // which of a key is the first decides whether the later ones stay
	keys, _ := p.keysOf(nil, recordsIn(left))
	gone := make(map[string]bool)
	if keys != nil {
		theirs, _ := p.keysOf(nil, append(releaseOf(p.back.All(), 0).records, p.pass.scheduled...))
		for _, key := range theirs {
			gone[key] = true
		}
	}
	for i, r := range left {
		switch {
		case r.id == recordKey{}:
			p.release = append(p.release, r)
			if keys != nil {
				gone[keys[i]] = true
			}
		case keys != nil && (gone[keys[i]] || !p.blocked.Until(keys[i]).IsZero()): // of an earlier pass
			p.behind = append(p.behind, r)
		default:
			p.kept = append(p.kept, r)
		}
	}
	byNumber(p.kept) // some may be kept from before, and a probe comes back to them
	if len(p.kept) > 0 && !p.once {
		p.watch.log.keeping(p.life.settle, len(p.kept))
	}
}

// letGo has the records that were kept go back to the source, and reports whether
// there were any.
func (p *poller[T]) letGo() (some bool) {
	p.release = append(p.release, p.kept...)
	some = len(p.kept) > 0
	p.kept = nil
	return some
}

// takeKept has the pass work on the records in hand instead of fetching. When all
// of them are suspects, only another record can tell whether it is they or the
// destination: then a fetch looks past them.
func (p *poller[T]) takeKept() bool {
	if len(p.kept) == 0 || p.looksPast() {
		return false
	}
	p.pass.run = runOf(append(p.takeDue(p.config.clock.Now()), p.unkeep()...))
	p.pass.full, p.pass.handed = true, true
	p.phase = phaseTake
	return true
}

func (p *poller[T]) unkeep() (kept []pending[T]) {
	kept, p.kept = p.kept, nil
	return kept
}

// looksPast reports whether none of the records in hand can tell more than the
// probes before it could.
func (p *poller[T]) looksPast() bool {
	if p.once || p.worksOff() || !p.probing && !p.sparing || len(p.kept)+p.waiting.Len() >= p.window() || p.config.clock.Now().Before(p.asked) {
		return false
	}
	keys, _ := p.keysOf(nil, recordsIn(p.kept))
	ids := idsIn(p.kept)
	now := p.clock.Now()
	return p.memory.Has(ids[p.memory.Probe(ids, keys, p.choose, now)], now)
}

// lookPast takes in hand what a fetch has brought beside the records that were kept. A
// source that does not lease returns the kept ones as well: they are let go for what it
// has returned, so that no record is in hand twice. They stay where it has returned
// nothing else.
func (p *poller[T]) lookPast() {
	p.identify(&p.pass.run)
	kept, fetchedNow := p.unkeep(), p.pass.items
	let := kept
	switch {
	case p.releaser != nil:
		p.pass.run, let = runOf(append(kept, fetchedNow...)), nil
	case len(fetchedNow) <= len(kept):
		p.pass.run, let = runOf(kept), fetchedNow
	default:
		for i, it := range kept {
			j := i // where it probably is, since nothing was settled that came before it
			sure := p.identity.comparable && equal(it.record, it.record)
			if sure {
				j = slices.IndexFunc(fetchedNow, func(one pending[T]) bool { return equal(one.record, it.record) })
			}
			if j >= 0 {
				p.memory.Rename(it.id, fetchedNow[j].id, sure, p.clock.Now())
			}
		}
	}
	for _, it := range let {
		p.dropped(it.number)
	}
}
