package courier

import "time"

// This file is about the pace of failed records of a source that takes nothing
// back: each fetch returns them again, also before it is time to try them.

// waits is when failed records may be tried again, as far as they are known again.
type waits map[recordKey]wait

type wait struct {
	until time.Time
	asked bool // by the record's error, so that Wake does not end it
}

// maxWaits bounds how many records are remembered; the others come with each fetch.
const maxWaits = 10_000

func (w waits) note(key recordKey, until time.Time, asked bool, now time.Time) {
	if len(w) >= maxWaits {
		for key, wait := range w {
			if !now.Before(wait.until) {
				delete(w, key)
			}
		}
	}
	if key != (recordKey{}) && len(w) < maxWaits {
		w[key] = wait{until, asked}
	}
}

// lift has the records go that no error asks to wait.
func (w waits) lift() {
	for key, wait := range w {
		if !wait.asked {
			delete(w, key)
		}
	}
}

// pace notes when the failed records of a batch may be tried again: after about
// the interval, or what the error asks for. Of a record that cannot be known again
// the next fetch as a whole has to wait for that, within reason.
func (p *poller[T]) pace(failed []T, errs []error) {
	if p.releaser != nil || p.failer != nil || p.once { // they keep the time
		return
	}
	now := p.config.clock.Now()
	if p.waits == nil {
		p.waits = make(waits)
	}
	for i, key := range p.identity.lasting(failed) {
		asked := afterOf(errs[i], maxAfter)
		p.waits.note(key, now.Add(max(asked, p.config.interval/10*9)), asked > 0, now)
		if key == (recordKey{}) && asked > 0 {
			still := min(asked, maxStill)
			if until := now.Add(still); until.After(p.asked) {
				p.asked = until
			}
			p.watch.log.waiting(p.life.settle, still)
		}
	}
}

// noteHidden tells of records that the source returns in vain again and again, before
// all others that it has. A source that takes records back does not.
func (p *poller[T]) noteHidden() {
	if p.handed || p.paused || p.releaser != nil || p.failer != nil {
		return
	}
	if !p.full || !p.whole || !p.limitless && len(p.waits) > 0 { // which are looked past
		p.watch.hidden = 0
		return
	}
	if p.watch.hidden++; p.watch.hidden > 1 {
		p.watch.log.hiding(p.life.settle, p.taken+len(p.batch.ledger.Records))
	}
}

// maxStill is how long a poller fetches nothing for the sake of a record that asks
// for it, and that it could not tell from the others.
const maxStill = time.Minute

// dropEarly leaves the records to the source that it has returned before their time,
// and those that come after them in their order.
func (p *poller[T]) dropEarly() {
	if len(p.waits) == 0 {
		return
	}
	now := p.config.clock.Now()
	ids := p.identity.lasting(p.records)
	keys, _ := p.keysOf(nil, p.records)
	var due []T
	held := make(map[string]bool)
	for i, record := range p.records {
		wait, waits := p.waits[ids[i]]
		switch {
		case waits && now.Before(wait.until):
			if keys != nil {
				held[keys[i]] = true
			}
			continue
		case keys != nil && held[keys[i]]:
			continue
		case waits:
			delete(p.waits, ids[i])
		}
		due = append(due, record)
	}
	p.watch.count.inHand.Add(-int64(len(p.records) - len(due)))
	p.records = due
}
