package courier

import (
	"slices"
	"time"
)

// This room is about which records go to which worker of a stream, and when.

// share is what a worker is given at a time: records in order, with an account
// of their own that the director can look into while the worker goes on.
type share[T any] struct {
	hand[T]
	account batch[T]
	items   []item[T]
	records []T
	past    []history
	keys    []string
	gate    keyGate
	probe   bool
	taken   int // the records before it were collected
	end     int // those from here on were taken away again
	seen    int // how far the worker was at the last look
	ended   bool
	event   ApplyEvent
	began   time.Time
}

// lane is a key that records are under way for, or behind.
type lane[T any] struct {
	out     int       // records with a worker
	held    int       // failed, and not due yet
	waiting []item[T] // behind those, in the order fetched
}

// lookEvery is how long a worker may be at one record before the ones behind it
// are given to others, if there are any idle.
const lookEvery = 5 * time.Millisecond

// handOut gives records to idle workers: while probing one, and one only; else
// the queue in fair shares. What a worker gets is a fraction of the queue, so
// that there is something left for the next.
func (s *stream[T]) handOut() {
	if s.probing {
		if pick := s.probeOf(); pick >= 0 && len(s.out) == 0 && (!s.sparing || !s.queue[pick].suspect()) {
			probe := s.queue[pick]
			s.queue = slices.Delete(s.queue, pick, pick+1)
			s.send([]item[T]{probe}, true)
		}
		return
	}
	for idle := s.config.workers - len(s.out); idle > 0 && len(s.queue) > 0; idle-- {
		n := (len(s.queue) + s.config.workers - 1) / s.config.workers
		if s.lanes == nil {
			s.send(s.queue[:n], false)
			s.queue = s.queue[n:]
			continue
		}
		if items := s.draw(n); len(items) > 0 {
			s.send(items, false)
		}
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
}

// draw takes up to n records from the queue whose keys nobody is busy with. The
// others go and wait in their lanes.
func (s *stream[T]) draw(n int) (items []item[T]) {
	mine := make(map[string]bool)
	for len(s.queue) > 0 && len(items) < n {
		it := s.queue[0]
		s.queue = s.queue[1:]
		if l := s.lanes[it.key]; l != nil && !mine[it.key] && (l.out > 0 || l.held > 0) {
			l.waiting = inOrder(l.waiting, []item[T]{it})
			continue
		}
		mine[it.key] = true
		items = append(items, it)
	}
	return items
}

// inOrder merges two lists of records that are in the order fetched each.
func inOrder[T any](a, b []item[T]) []item[T] {
	if len(a) == 0 || len(b) == 0 || a[len(a)-1].number < b[0].number {
		return append(a, b...)
	}
	merged := make([]item[T], 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].number < b[0].number {
			merged, a = append(merged, a[0]), a[1:]
		} else {
			merged, b = append(merged, b[0]), b[1:]
		}
	}
	return append(append(merged, a...), b...)
}

// requeue puts records back into the queue that were not begun: in order where
// one was asked for, else before all others.
func (s *stream[T]) requeue(items []item[T]) {
	switch {
	case len(items) == 0:
	case s.lanes != nil:
		s.queue = inOrder(items, s.queue)
	default:
		s.queue = append(items, s.queue...)
	}
}

// lane returns the lane of a record's key, a new one if there is none.
func (s *stream[T]) lane(key string) *lane[T] {
	l := s.lanes[key]
	if l == nil {
		l = new(lane[T])
		s.lanes[key] = l
	}
	return l
}

// leaveLane notes that a record is not with a worker any more, and openLane what
// follows: once nothing is in their way, the records behind go on.
func (s *stream[T]) leaveLane(key string) {
	if s.lanes == nil {
		return
	}
	s.lanes[key].out--
	s.openLane(key)
}

func (s *stream[T]) openLane(key string) {
	if l := s.lanes[key]; l != nil && l.out == 0 && l.held == 0 {
		delete(s.lanes, key)
		s.requeue(l.waiting)
	}
}

// inLanes returns the records that wait behind others of their key.
func (s *stream[T]) inLanes() (waiting [][]item[T]) {
	for _, l := range s.lanes {
		waiting = append(waiting, l.waiting)
	}
	return waiting
}

// behindAnother reports whether a record has to wait for one of its key that is
// before it in the queue.
func (s *stream[T]) behindAnother(it item[T]) bool {
	if s.lanes == nil {
		return false
	}
	return slices.ContainsFunc(s.queue, func(other item[T]) bool { return other.key == it.key && other.number < it.number })
}

// probeOf picks the record to probe a breaker with: the first that is no suspect
// and behind no other of its key, else the suspect that was the probe the least
// often. It is -1 when there is none.
func (s *stream[T]) probeOf() (pick int) {
	pick = -1
	var met map[string]bool
	if s.lanes != nil {
		met = make(map[string]bool)
	}
	for i := range s.queue {
		it := &s.queue[i]
		if met != nil {
			if l := s.lanes[it.key]; met[it.key] || l != nil && (l.out > 0 || l.held > 0) {
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

func (s *stream[T]) send(items []item[T], probe bool) {
	var sh *share[T]
	if n := len(s.spare); n > 0 {
		sh, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		sh = new(share[T])
		sh.account.engine, sh.account.gate, sh.account.stepwise = s.engine, &sh.gate, true
	}
	sh.items = append(sh.items[:0], items...)
	sh.records, sh.past, sh.keys = sh.records[:0], sh.past[:0], sh.keys[:0]
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
		if s.lanes != nil {
			sh.keys = append(sh.keys, it.key)
			s.lane(it.key).out++
		}
	}
	past, keys := sh.past, sh.keys
	if !burdened {
		past = nil
	}
	if s.lanes == nil {
		keys = nil
	}
	sh.gate.clear()
	sh.account.reset(sh.records, past, keys, 1)
	sh.account.unkeyed = unkeyed
	sh.hand.reset(&sh.account)
	sh.probe, sh.taken, sh.end, sh.seen, sh.ended, sh.event = probe, 0, len(items), -1, false, ApplyEvent{Records: len(items)}
	sh.began = s.watch.now(s.watch.observer.Applied != nil)
	s.out = append(s.out, sh)
	s.todo <- sh
}

// look collects what the workers have done so far, so that it is marked in time,
// and has the records behind a slow one go to idle workers.
func (s *stream[T]) look(now time.Time) {
	if s.lookAt.IsZero() || now.Before(s.lookAt) {
		return
	}
	s.lookAt = time.Time{}
	idle := s.idle()
	for _, sh := range s.out {
		s.collect(sh, min(sh.account.finished(), sh.end))
		at := int(sh.account.next.Load())
		if idle && at == sh.seen {
			s.takeBack(sh)
		}
		sh.seen = at
	}
}

// lookAgain sets the time of the next look, if there will be something to see.
func (s *stream[T]) lookAgain(now time.Time) {
	switch {
	case !slices.ContainsFunc(s.out, func(sh *share[T]) bool { return sh.end-sh.taken > 1 }):
		s.lookAt = time.Time{}
	case !s.lookAt.IsZero():
	case s.idle():
		s.lookAt = now.Add(lookEvery)
	default:
		s.lookAt = now.Add(s.config.flushInterval)
	}
}

// idle reports whether a worker has nothing to do.
func (s *stream[T]) idle() bool { return len(s.queue) == 0 && len(s.out) < s.config.workers }

// takeBack takes from a worker what it has not begun.
func (s *stream[T]) takeBack(sh *share[T]) {
	begun := sh.account.cutShort()
	if begun >= sh.end {
		return
	}
	back := slices.Clone(sh.items[begun:sh.end])
	sh.end = begun
	sh.event.Records = begun
	s.requeue(back)
	for _, it := range back {
		s.leaveLane(it.key)
	}
}
