package courier

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// This room is about which records go to which worker of a stream, and when.

// share is what a worker is given at a time: records in order, with an account
// of their own that the director can look into while the worker goes on.
type share[T any] struct {
	worker[T]
	stream  *stream[T]
	account batch[T]
	first   uint64    // the number of the first record, where they are as they were fetched
	items   []item[T] // else
	probe   bool
	taken   int       // the records before it were collected
	end     int       // those from here on were taken away again
	seen    int       // how far the worker was at the last look
	since   time.Time // of it: what was applied before is collected
	ended   bool
	event   ApplyEvent
	took    time.Duration

	blocked engine.BlockedKeys // and the memory of the account
	records []T
	past    []history
	keys    []string
}

// run is by the worker, as done is. It tells what the records cost, without the
// time that they waited for it.
func (sh *share[T]) run(stop, ctx context.Context) {
	clock := sh.stream.config.clock
	began := clock.Now()
	defer func() { sh.took += clock.Now().Sub(began) }() // a Goexit of user code ends this call, and another goes on
	sh.worker.run(stop, ctx)
}

// done gives the share back.
func (sh *share[T]) done() { sh.stream.done <- sh }

// item returns a record of the share with its history.
func (sh *share[T]) item(i int) item[T] {
	if len(sh.items) > 0 {
		return sh.items[i]
	}
	return item[T]{numbered: numbered[T]{sh.account.ledger.Records[i], sh.first + uint64(i)}}
}

// fresh is records as they were fetched, that nobody has had to do with.
type fresh[T any] struct {
	records []T
	first   uint64 // number
}

// lookEvery is how long a worker may be at one record before the ones behind it
// are given to others, if there are any idle.
const lookEvery = 5 * time.Millisecond

// worthwhile is how long a worker is to be busy with a share at least, where
// there is enough to do: less would cost more to hand out than to apply.
const worthwhile = 20 * time.Microsecond

// handOut gives records to idle workers: while probing one, and one only; else
// the queue in fair shares. What a worker gets is a fraction of the queue, so
// that there is something left for the next, or as much as is worth waking it.
func (s *stream[T]) handOut(now time.Time) {
	if s.probing {
		s.unpack()
		if pick := s.probeOf(); pick >= 0 && len(s.out) == 0 && (!s.sparing || !s.queue[pick].suspect()) {
			probe := s.queue[pick]
			s.queue = slices.Delete(s.queue, pick, pick+1)
			s.send([]item[T]{probe}, true, now)
		}
		return
	}
	for len(s.out) < s.config.workers && s.queued() > 0 {
		n := (s.queued() + s.config.workers - 1) / s.config.workers
		enough := min(n, engine.MaxClaim)
		if s.pace > 0 {
			enough = max(1, int(worthwhile/s.pace))
			n = min(s.queued(), max(n, enough))
		}
		if s.keyOf != nil { // not to have all keys with one worker
			n = min(n, or(s.portion, enough))
		}
		switch {
		case s.ordersTogether():
			if items := s.drawChains(or(s.portion, s.config.batchSize)); len(items) > 0 {
				s.send(items, false, now)
			}
		case s.keyOf != nil:
			if items := s.draw(n); len(items) > 0 {
				s.send(items, false, now)
			}
		case len(s.queue) > 0:
			s.send(s.take(n), false, now)
		default:
			s.sendFresh(n, now)
		}
	}
}

// queued is how many records wait for a worker.
func (s *stream[T]) queued() int { return len(s.queue) + len(s.again.Items) + s.unread }

// unpack puts the records that are as they were fetched into the queue, and those
// that are to go in between, for what has to look at each.
func (s *stream[T]) unpack() {
	s.putBetween()
	for _, f := range s.fresh {
		for i, record := range f.records {
			s.queue = append(s.queue, item[T]{numbered: numbered[T]{record, f.first + uint64(i)}})
		}
	}
	s.fresh, s.unread = nil, 0
}

// putBetween puts the records that are to be applied again in their place in the
// queue.
func (s *stream[T]) putBetween() {
	if len(s.again.Items) > 0 {
		s.queue = append(s.queue, s.again.Items...)
		byNumber(s.queue)
		s.again.Items = nil
	}
}

// take takes n records out of the queue, and others between them that nobody has had to do
// with: what failed before may fail again, and a breaker must not take that for an outage
// for having been put together.
func (s *stream[T]) take(n int) (items []item[T]) {
	for len(items) < n && len(s.queue) > 0 {
		items = append(items, s.queue[0])
		if s.queue = s.queue[1:]; len(s.queue) == 0 {
			s.queue = nil
		}
		if s.unread > 0 {
			records, first := s.takeFresh(1)
			items = append(items, item[T]{numbered: numbered[T]{records[0], first}})
		}
	}
	return items
}

// takeFresh takes up to n records as they were fetched, and returns the number of the
// first.
func (s *stream[T]) takeFresh(n int) (records []T, first uint64) {
	f := &s.fresh[0]
	n = min(n, len(f.records))
	records, first = f.records[:n:n], f.first
	if f.records, f.first = f.records[n:], f.first+uint64(n); len(f.records) == 0 {
		s.fresh[0] = fresh[T]{}
		if s.fresh = s.fresh[1:]; len(s.fresh) == 0 {
			s.fresh = nil
		}
	}
	s.unread -= n
	return records, first
}

// draw takes up to n records from the queue whose keys nobody is busy with. The
// others wait until these are settled.
func (s *stream[T]) draw(n int) (items []item[T]) {
	mine := make(map[string]bool)
	for len(s.queue)+len(s.again.Items) > 0 && len(items) < n {
		var it item[T]
		if s.drewAgain = s.drawsAgain(); s.drewAgain {
			it = s.again.Pop()
		} else {
			it, s.queue = s.queue[0], s.queue[1:]
		}
		if !mine[it.key] && s.waiting.Busy(it.key) {
			s.waiting.Behind(waiterOf(it))
			continue
		}
		mine[it.key] = true
		items = append(items, it)
	}
	return items
}

// ordersTogether reports whether several records of a key may be in one call.
func (s *stream[T]) ordersTogether() bool { return s.keyOf != nil && s.ordered }

// drawChains takes up to n records from the queue whose keys nobody is busy with, of as
// many keys as are a worker's share of these. The others of a key follow once these are
// settled.
func (s *stream[T]) drawChains(n int) (items []item[T]) {
	s.putBetween()
	queue := s.queue[:0]
	free := make(map[string]bool)
	for _, it := range s.queue {
		if s.waiting.Busy(it.key) {
			s.waiting.Behind(waiterOf(it))
			continue
		}
		free[it.key] = true
		queue = append(queue, it)
	}
	clear(s.queue[len(queue):])
	idle := s.config.workers - len(s.out)
	most := (len(free) + idle - 1) / idle
	clear(free)
	left := queue[:0]
	for _, it := range queue {
		if len(items) < n && (free[it.key] || len(free) < most) {
			free[it.key] = true
			items = append(items, it)
		} else {
			left = append(left, it)
		}
	}
	clear(queue[len(left):])
	s.queue = left
	return items
}

// drawsAgain reports whether the next record is one that comes again, rather than one of
// the queue: by turns, as take has it, as far as the order of its key allows that.
func (s *stream[T]) drawsAgain() bool {
	switch {
	case len(s.again.Items) == 0:
		return false
	case len(s.queue) == 0 || !s.drewAgain:
		return true
	}
	key := s.queue[0].key
	return slices.ContainsFunc(s.again.Items, func(it item[T]) bool { return it.key == key })
}

func fetchedBefore[T any](a, b *item[T]) bool { return a.number < b.number }

// requeue puts records back into the queue that were not begun: in order where
// one was asked for, else before all others.
func (s *stream[T]) requeue(items []item[T]) {
	switch {
	case len(items) == 0:
	case s.keyOf != nil:
		for _, it := range items {
			s.again.Push(it)
		}
		// The queue has earlier ones if a renewal, or a probe, has looked through it since.
		if len(s.queue) > 0 && slices.ContainsFunc(items, func(it item[T]) bool { return it.number > s.queue[0].number }) {
			s.putBetween()
		}
	default:
		s.queue = append(items, s.queue...)
	}
}

// leaveWorker notes that a record is not with a worker any more. Once nothing is in their
// way, the records behind it go on.
func (s *stream[T]) leaveWorker(key string) {
	if s.keyOf != nil {
		s.requeue(itemsOf(s.waiting.End(key)))
	}
}

func waiterOf[T any](it item[T]) engine.Waiter[item[T]] {
	one := engine.Waiter[item[T]]{Value: it, Key: it.key, Number: it.number}
	if it.past != nil {
		one.Due = it.past.due
	}
	return one
}

func itemsOf[T any](waiters []engine.Waiter[item[T]]) []item[T] {
	items := make([]item[T], len(waiters))
	for i := range waiters {
		items[i] = waiters[i].Value
	}
	return items
}

// probeOf picks the record to probe a breaker with: the first that is no suspect
// and behind no other of its key, else the suspect that was the probe the least
// often. It is -1 when there is none.
func (s *stream[T]) probeOf() (pick int) {
	s.putBetween()
	pick = -1
	var met map[string]bool
	if s.keyOf != nil {
		met = make(map[string]bool)
	}
	for i := range s.queue {
		it := &s.queue[i]
		if met != nil {
			if met[it.key] || s.waiting.Busy(it.key) {
				continue
			}
			met[it.key] = true
		}
		if !it.suspect() {
			return i
		}
		if pick < 0 || it.past.probes < s.queue[pick].past.probes {
			pick = i
		}
	}
	return pick
}

// allSuspect reports whether no record in hand can tell more than the probes
// before it could.
func (s *stream[T]) allSuspect() bool {
	pick := s.probeOf()
	return pick < 0 || s.queue[pick].suspect()
}

// send gives records to a worker.
func (s *stream[T]) send(items []item[T], probe bool, now time.Time) {
	sh := s.newShare()
	sh.items = append(sh.items, items...)
	var unkeyed map[int]error
	burdened := false
	for i := range sh.items {
		it := &sh.items[i]
		sh.records = append(sh.records, it.record)
		var used history
		if it.past != nil {
			used = it.past.used
			if it.past.unkeyed != nil {
				if unkeyed == nil {
					unkeyed = make(map[int]error)
				}
				unkeyed[i] = it.past.unkeyed
			}
		}
		burdened = burdened || used != nil
		sh.past = append(sh.past, used)
		if s.keyOf != nil {
			sh.keys = append(sh.keys, it.key)
			s.waiting.Begin(it.key)
		}
	}
	past, keys := sh.past, sh.keys
	if !burdened {
		past = nil
	}
	if s.keyOf == nil {
		keys = nil
	}
	sh.probe = probe
	sh.account.reset(sh.records, past, keys, 1)
	sh.account.unkeyed = unkeyed
	s.launch(sh, now)
}

// sendFresh gives up to n records to a worker as they were fetched.
func (s *stream[T]) sendFresh(n int, now time.Time) {
	sh := s.newShare()
	var records []T
	records, sh.first = s.takeFresh(n)
	sh.account.reset(records, nil, nil, 1)
	s.launch(sh, now)
}

func (s *stream[T]) newShare() *share[T] {
	n := len(s.spare)
	if n == 0 {
		sh := &share[T]{stream: s}
		sh.account.pipeline, sh.account.blocked, sh.account.stepwise = s.pipeline, &sh.blocked, true
		sh.account.number = func(i int) uint64 { return sh.item(i).number }
		sh.account.label = func(i int) string {
			return fmt.Sprintf("record %d since Start (the first is 1)", sh.item(i).number)
		}
		return sh
	}
	sh := s.spare[n-1]
	s.spare = s.spare[:n-1]
	sh.items, sh.records, sh.past, sh.keys = sh.items[:0], sh.records[:0], sh.past[:0], sh.keys[:0]
	sh.blocked.Clear()
	return sh
}

func (s *stream[T]) launch(sh *share[T], now time.Time) {
	n := len(sh.account.ledger.Records)
	sh.reset(&sh.account, nil)
	sh.taken, sh.end, sh.seen, sh.since, sh.ended, sh.event, sh.took = 0, n, -1, now, false, ApplyEvent{Records: n}, 0
	s.mu.Lock()
	s.out = append(s.out, sh)
	s.mu.Unlock()
	sh.account.heedLost()
	s.stalls.begins()
	s.todo <- sh
}

// look collects what the workers have done so far, so that it is marked in time,
// and has the records behind a slow one go to idle workers.
func (s *stream[T]) look(now time.Time) {
	due := !s.lookAt.IsZero() && !now.Before(s.lookAt)
	if !due && (s.job != nil || len(s.marks.Ready()) == 0 || now.Before(s.flushAt)) { // a mark takes along what there is
		return
	}
	for _, sh := range s.out {
		s.collect(sh, min(sh.account.claims.Finished(), sh.end))
		sh.since = now
	}
	if !due {
		return
	}
	s.lookAt = time.Time{}
	idle := s.idle()
	for _, sh := range s.out {
		at := sh.account.claims.Begun()
		if idle && at == sh.seen {
			s.takeBack(sh)
		}
		sh.seen = at
	}
}

// worthALook reports whether there may be something to collect, or to take back. It
// goes by the last look: the worker may have begun this instant.
func (sh *share[T]) worthALook() bool { return sh.end-sh.taken > 1 && sh.seen < sh.end }

// lookAgain sets the time of the next look, if there will be something to see.
func (s *stream[T]) lookAgain(now time.Time) {
	switch {
	case !slices.ContainsFunc(s.out, (*share[T]).worthALook):
		s.lookAt = time.Time{}
	case !s.lookAt.IsZero():
	case s.idle():
		s.lookAt = now.Add(min(lookEvery, s.config.flushInterval))
	default:
		s.lookAt = now.Add(s.config.flushInterval)
	}
}

// idle reports whether a worker has nothing to do.
func (s *stream[T]) idle() bool { return s.queued() == 0 && len(s.out) < s.config.workers }

// takeBack takes from a worker what it has not begun.
func (s *stream[T]) takeBack(sh *share[T]) {
	s.mu.Lock()
	begun := sh.account.cutShort()
	s.mu.Unlock()
	if begun >= sh.end {
		return
	}
	var back []item[T]
	keys := make([]string, 0, sh.end-begun)
	for i := begun; i < sh.end; i++ {
		it := sh.item(i)
		keys = append(keys, it.key)
		if !s.dropIfLost(&it) {
			back = append(back, it)
		}
	}
	sh.end = begun
	sh.event.Records = begun
	s.requeue(back)
	for _, key := range keys {
		s.leaveWorker(key)
	}
}
