package courier

import (
	"cmp"
	"slices"
)

// This file is about the records that a poller keeps in hand over a breaker's
// pause: those of a source that could not be known again if it returned them
// anew, and those of RunOnce, which fetches once.

// pending is a record that stays pending, with the key by which it is known, if
// it is.
type pending[T any] struct {
	record T
	key    recordKey
}

func recordsOf[T any](list []pending[T]) []T {
	records := make([]T, len(list))
	for i, p := range list {
		records[i] = p.record
	}
	return records
}

func keysIn[T any](list []pending[T]) []recordKey {
	keys := make([]recordKey, len(list))
	for i, p := range list {
		keys[i] = p.key
	}
	return keys
}

// pendings pairs records with their keys; nil keys are none.
func pendings[T any](records []T, ids []recordKey) []pending[T] {
	list := make([]pending[T], len(records))
	for i, record := range records {
		list[i].record = record
		if ids != nil {
			list[i].key = ids[i]
		}
	}
	return list
}

// keeps reports whether the records that the pass leaves unsettled stay in hand.
func (p *poller[T]) keeps() bool {
	if !p.identity.inHand || p.paused || p.leaving || p.unmarked != nil || p.life.stop.Err() != nil {
		return false
	}
	return p.halted.err != nil || p.probing || p.sparing
}

// keep has the records that the pass leaves unsettled stay in hand, in the order
// fetched. Those that failed, or were refused before the pause, go back to the
// source, and with them the later ones of their keys and of keys that a record
// holds back which is with the source already.
func (p *poller[T]) keep() {
	left := append(p.release, p.behind...)
	if len(left) == 0 {
		return
	}
	p.release, p.behind = nil, nil
	keys, _ := p.keysOf(nil, recordsOf(left))
	gone := make(map[string]bool)
	if keys != nil {
		theirs, _ := p.keysOf(nil, append(p.back.records(), p.scheduled...))
		for _, key := range theirs {
			gone[key] = true
		}
	}
	for i, r := range left {
		switch {
		case r.key.number == 0:
			p.release = append(p.release, r)
			if keys != nil {
				gone[keys[i]] = true
			}
		case keys != nil && (gone[keys[i]] || !p.gate.until(keys[i]).IsZero()): // of an earlier pass
			p.behind = append(p.behind, r)
		default:
			p.kept = append(p.kept, r)
		}
	}
	slices.SortFunc(p.kept, func(a, b pending[T]) int { return cmp.Compare(a.key.number, b.key.number) })
	p.lease.waitBeside(p.waiting.leased())
	p.lease.hold(p.kept)
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
	kept, ids := p.unkeep()
	p.takeDue(p.config.clock.Now())
	p.records, p.ids = p.dueRecords()
	p.records, p.ids = append(p.records, kept...), append(p.ids, ids...)
	p.full, p.handed = true, true
	p.phase = fetched
	return true
}

func (p *poller[T]) unkeep() (records []T, ids []recordKey) {
	records, ids = recordsOf(p.kept), keysIn(p.kept)
	p.kept = nil
	return records, ids
}

// looksPast reports whether none of the records in hand can tell more than the
// probes before it could.
func (p *poller[T]) looksPast() bool {
	if p.once || !p.probing && !p.sparing || len(p.kept)+len(p.waiting) >= max(minWindow, p.config.batchSize) || p.config.clock.Now().Before(p.asked) {
		return false
	}
	keys, _ := p.keysOf(nil, recordsOf(p.kept))
	ids := keysIn(p.kept)
	return p.memory.find(ids[p.memory.probe(ids, keys, 0)]) >= 0
}

// lookPast takes in hand what a fetch has brought beside the records that were kept,
// and returns how many it lets go. A source that does not lease returns the kept
// ones as well: they are let go for what it has returned, so that no record is in
// hand twice. They stay where it has returned nothing else.
func (p *poller[T]) lookPast() (gone int) {
	fetchedNow := p.records
	kept, ids := p.unkeep()
	switch {
	case p.releaser != nil:
		p.records, p.ids = append(kept, fetchedNow...), append(ids, p.identity.keysOf(fetchedNow)...)
		return 0
	case len(fetchedNow) <= len(kept):
		p.records, p.ids = kept, ids
		return len(fetchedNow)
	}
	p.ids = p.identity.keysOf(fetchedNow)
	for i, id := range ids {
		j := i // where it probably is, since nothing was settled that came before it
		sure := p.identity.comparable && equal(kept[i], kept[i])
		if sure {
			j = slices.IndexFunc(fetchedNow, func(r T) bool { return equal(r, kept[i]) })
		}
		if j >= 0 {
			p.memory.rename(id, p.ids[j], sure)
		}
	}
	return len(kept)
}
