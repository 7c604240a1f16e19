//go:build synctests

package courierkafka_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// model judges what the members of a group do with the records of one topic. It knows a
// [courierkafka.Source] by what goes in and out of it alone: the callbacks of the client, the
// records that it hands out, the commits that reach the brokers. What a commit says about
// records beyond its offset, the model reads by itself.
type model struct {
	began   time.Time
	keyed   bool          // the records of a key are applied in order
	patient time.Duration // the revoke timeout
	away    time.Duration // how long a group may wait for a member that is out of reach
	faulty  bool          // the brokers may miss the heartbeats of a member, and answer with errors

	mu         sync.Mutex
	partitions map[int32]*history
	handedOut  map[*kgo.Record]*tenure
	revokes    map[int]time.Time // when the revoke, or the stop, of a member began
	dead       map[int]bool
	leaving    map[int]bool // members that leave in order
	cut        map[int]bool // members that were out of reach once
	outOfReach []time.Time  // when members got there
	lines      []line
	violation  string
	count      map[string]int
}

// line is a line of the timeline. -1 is no partition, or no record, in particular.
type line struct {
	at        time.Time
	partition int32
	offset    int64
	text      string
}

// history is what happened to a partition.
type history struct {
	tenures []*tenure
	known   map[int64]bool      // offsets that were handed out
	done    map[int64][]*tenure // those that were applied or parked, and by whom
	tries   map[int64]int
	checked int64 // all that are known before it are done
}

// tenure is a partition in the hands of a member, until it is revoked or lost.
type tenure struct {
	member    int
	partition int32
	number    int
	begins    kfake.GroupCommit // what was committed when it began
	end       string            // how it ended, "" while it lasts
	succeeded bool              // the next one began before it had ended
	running   int               // records that are being applied
	last      map[string]int64  // by key, the latest that was done
	failed    map[string]int64  // by key, what has to be tried again first
	active    map[string]bool   // keys that are being applied
}

// Endings of a tenure. After all but the first, the records that were not committed may be
// applied again.
const (
	inOrder    = "revoked in order"
	overdue    = "revoked during a record or a commit that took too long"
	unheard    = "revoked while a member was out of reach and nobody could commit"
	partedWith = "lost"
	killed     = "killed"
)

func newModel(partitions int32) *model {
	m := &model{began: time.Now(), partitions: make(map[int32]*history), handedOut: make(map[*kgo.Record]*tenure),
		revokes: make(map[int]time.Time), dead: make(map[int]bool), leaving: make(map[int]bool), cut: make(map[int]bool), count: make(map[string]int)}
	for p := range partitions {
		m.partitions[p] = &history{known: make(map[int64]bool), done: make(map[int64][]*tenure), tries: make(map[int64]int)}
	}
	return m
}

func (m *model) note(partition int32, offset int64, format string, args ...any) {
	m.lines = append(m.lines, line{time.Now(), partition, offset, fmt.Sprintf(format, args...)})
}

func (m *model) violate(partition int32, offset int64, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	m.note(partition, offset, "VIOLATION: %s", text)
	if m.violation == "" {
		m.violation = fmt.Sprintf("partition %d, offset %d: %s\n%s", partition, offset, text, m.timeline(partition, offset))
	}
}

// timeline returns what happened last to the members, a partition and a record.
func (m *model) timeline(partition int32, offset int64) string {
	const most = 60
	var picked []string
	for _, l := range m.lines {
		if l.partition >= 0 && l.partition != partition || l.offset >= 0 && l.offset != offset {
			continue
		}
		picked = append(picked, fmt.Sprintf("%12v  %s", l.at.Sub(m.began), l.text))
	}
	return strings.Join(picked[max(0, len(picked)-most):], "\n")
}

// hold returns the tenure of a partition that a member has now, or had last.
func (m *model) hold(member int, partition int32) *tenure {
	tenures := m.partitions[partition].tenures
	for i := len(tenures) - 1; i >= 0; i-- {
		if tenures[i].member == member {
			return tenures[i]
		}
	}
	return nil
}

// event is called by the client of a member.
func (m *model) event(member int, what string, of []int32, committed map[int32]kfake.GroupCommit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead[member] || what == "" {
		return
	}
	m.note(-1, -1, "member %d: %s %v", member, what, of)
	if what == "revoking" && m.revokes[member].IsZero() {
		m.revokes[member] = time.Now()
	}
	if what == "lost" && len(of) > 0 {
		if !m.faulty && !m.leaving[member] && len(m.outOfReach) == 0 { // a client that leaves while it joins loses what it had
			m.violate(of[0], -1, "member %d loses the partition, though none was out of reach", member)
		}
		m.outOfReach = append(m.outOfReach, time.Now())
	}
	for _, p := range of {
		h := m.partitions[p]
		switch what {
		case "kept":
			m.count["kept by an expelled member"]++
			if t := m.hold(member, p); t != nil && t.end == "" {
				m.end(t, partedWith)
			}
			fallthrough
		case "assigned":
			for _, before := range h.tenures {
				before.succeeded = before.succeeded || before.end == ""
				if before.end == "" && before.member == member {
					m.violate(p, -1, "member %d gets the partition that it has", member)
				}
			}
			h.tenures = append(h.tenures, &tenure{member: member, partition: p, number: len(h.tenures), begins: committed[p],
				last: make(map[string]int64), failed: make(map[string]int64), active: make(map[string]bool)})
		case "revoked":
			if t := m.hold(member, p); t != nil && t.end == "" {
				m.finish(t, committed[p])
			}
		case "lost":
			if t := m.hold(member, p); t != nil && t.end == "" {
				m.end(t, partedWith)
			}
		}
	}
	if (what == "revoked" || what == "lost") && !m.leaving[member] {
		delete(m.revokes, member)
	}
}

// finish ends a tenure by a revoke.
func (m *model) finish(t *tenure, committed kfake.GroupCommit) {
	began, open := m.revokes[t.member], int64(-1)
	for offset, by := range m.partitions[t.partition].done {
		if by[len(by)-1] == t && !covers(committed, offset) {
			open = offset
		}
	}
	switch {
	case (t.running > 0 || open >= 0) && time.Since(began) >= m.patient:
		m.end(t, overdue)
	case t.running > 0:
		m.violate(t.partition, -1, "member %d gives the partition back with a record in progress", t.member)
	case open < 0 && !t.succeeded:
		m.end(t, inOrder)
	case m.waiting(began), t.succeeded && (m.faulty || m.cut[t.member]):
		m.end(t, unheard)
	case t.succeeded:
		m.violate(t.partition, -1, "two members had the partition, though none was out of reach")
	default:
		m.violate(t.partition, open, "member %d gives the partition back, and has not committed a record that it has applied: committed is %d %q", t.member, committed.Offset, committed.Metadata)
	}
}

func (m *model) end(t *tenure, how string) {
	t.end = how
	m.count[how]++
	m.note(t.partition, -1, "member %d: %s", t.member, how)
}

// waiting reports whether the group may have waited for a member that was out of reach, at
// some time since then.
func (m *model) waiting(since time.Time) bool {
	for _, at := range m.outOfReach {
		if since.Before(at.Add(m.away)) {
			return true
		}
	}
	return false
}

// leaves notes that a member is about to leave in order.
func (m *model) leaves(member int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(-1, -1, "member %d: leaves", member)
	m.leaving[member] = true
	if m.revokes[member].IsZero() {
		m.revokes[member] = time.Now()
	}
}

// unreachable notes that a member is out of reach, for good if it is killed.
func (m *model) unreachable(member int, kill bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(-1, -1, "member %d: out of reach, killed: %v", member, kill)
	m.outOfReach = append(m.outOfReach, time.Now())
	m.cut[member] = true
	if !kill {
		return
	}
	m.dead[member] = true
	for p := range m.partitions {
		if t := m.hold(member, p); t != nil && t.end == "" {
			m.end(t, killed)
		}
	}
}

// fetched notes what a source hands out.
func (m *model) fetched(member int, records []*kgo.Record, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead[member] {
		return
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		m.note(-1, -1, "member %d: fetches: %v", member, err)
	}
	for _, r := range records {
		if m.handedOut[r] == nil {
			m.handOut(member, r)
		}
	}
}

func (m *model) handOut(member int, r *kgo.Record) {
	t, h := m.hold(member, r.Partition), m.partitions[r.Partition]
	if t == nil || t.end == inOrder {
		m.violate(r.Partition, r.Offset, "member %d hands out a record of a partition that it does not have", member)
		return
	}
	m.handedOut[r], h.known[r.Offset] = t, true
	if len(h.done[r.Offset]) > 0 && covers(t.begins, r.Offset) {
		m.violate(r.Partition, r.Offset, "it is handed out again, though it was committed: %d %q", t.begins.Offset, t.begins.Metadata)
	}
}

// start notes that a member begins to apply a record, and returns how often that was tried.
func (m *model) start(member int, r *kgo.Record) (tries int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, key, h := m.handedOut[r], courierkafka.OrderKey(r), m.partitions[r.Partition]
	h.tries[r.Offset]++
	if m.dead[member] || t == nil {
		return h.tries[r.Offset]
	}
	m.note(r.Partition, r.Offset, "member %d begins it", member)
	if t.end == inOrder {
		m.violate(r.Partition, r.Offset, "member %d begins it after it gave the partition back", member)
	}
	if m.keyed && t.active[key] {
		m.violate(r.Partition, r.Offset, "two records of a key are being applied at once")
	}
	if failed, ok := t.failed[key]; ok && m.keyed && failed < r.Offset {
		m.violate(r.Partition, r.Offset, "it is begun, though record %d of its key has failed", failed)
	}
	t.active[key] = true
	t.running++
	return h.tries[r.Offset]
}

// stop notes how an attempt ended: the record is done, if it has not failed.
func (m *model) stop(member int, r *kgo.Record, failed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, key := m.handedOut[r], courierkafka.OrderKey(r)
	if m.dead[member] || t == nil {
		return
	}
	t.active[key] = false
	t.running--
	if t.failed[key] = r.Offset; !failed {
		m.settle(t, r)
	}
}

// park notes that a record is a dead letter.
func (m *model) park(member int, r *kgo.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.handedOut[r]; !m.dead[member] && t != nil {
		m.count["parked"]++
		m.settle(t, r)
	}
}

func (m *model) settle(t *tenure, r *kgo.Record) {
	h, key := m.partitions[r.Partition], courierkafka.OrderKey(r)
	m.note(r.Partition, r.Offset, "member %d has done it", t.member)
	if t.end == inOrder {
		m.violate(r.Partition, r.Offset, "member %d applies it after it gave the partition back", t.member)
	}
	for _, other := range h.done[r.Offset] {
		older := other
		if t.number < other.number {
			older = t
		}
		m.count["repeats"]++
		if other == t || older.end == inOrder || older.end == "" && !older.succeeded {
			m.violate(r.Partition, r.Offset, "it is applied twice, by members %d and %d", other.member, t.member)
		}
	}
	if last, ok := t.last[key]; ok && m.keyed && last > r.Offset {
		m.violate(r.Partition, r.Offset, "it is applied after record %d of its key", last)
	}
	delete(t.failed, key)
	t.last[key] = r.Offset
	h.done[r.Offset] = append(h.done[r.Offset], t)
}

// committing is called with each commit before the brokers act on it, also if they refuse it.
func (m *model) committing(request *kmsg.OffsetCommitRequest, refused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count["commits"]++
	if refused {
		m.count["commits refused"]++
	}
	for _, t := range request.Topics {
		for _, p := range t.Partitions {
			h, c := m.partitions[p.Partition], kfake.GroupCommit{Offset: p.Offset}
			if p.Metadata != nil {
				c.Metadata = *p.Metadata
			}
			m.note(p.Partition, -1, "%s commits %d %q, refused: %v", request.MemberID, c.Offset, c.Metadata, refused)
			for _, run := range settledBy(c) {
				for offset := max(run[0], h.checked); offset < run[1]; offset++ {
					if h.known[offset] && len(h.done[offset]) == 0 {
						m.violate(p.Partition, offset, "it is committed and was not applied: %d %q", c.Offset, c.Metadata)
						return
					}
				}
			}
			h.checked = max(h.checked, c.Offset)
		}
	}
}

// judge looks at the end of an episode at the records of the topic.
func (m *model) judge(topic []*kgo.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range topic {
		if len(m.partitions[r.Partition].done[r.Offset]) == 0 {
			m.violate(r.Partition, r.Offset, "it is lost")
		}
	}
	for p, h := range m.partitions {
		for _, t := range h.tenures {
			if t.succeeded && (t.end == inOrder || t.end == "") {
				m.violate(p, -1, "member %d never heard that another had its partition", t.member)
			}
		}
	}
}

// settledBy returns what a commit says is settled, as the first offset and the one after the
// last.
func settledBy(c kfake.GroupCommit) (runs [][2]int64) {
	runs = append(runs, [2]int64{0, c.Offset})
	fields := strings.Fields(c.Metadata)
	for at := c.Offset; len(fields) > 3; fields = append(fields[:3:3], fields[4:]...) {
		gap, length, _ := strings.Cut(fields[3], "+")
		first, _ := strconv.ParseInt(gap, 10, 64)
		n, _ := strconv.ParseInt(length, 10, 64)
		runs = append(runs, [2]int64{at + first, at + first + n})
		at += first + n
	}
	return runs
}

func covers(c kfake.GroupCommit, offset int64) bool {
	for _, run := range settledBy(c) {
		if run[0] <= offset && offset < run[1] {
			return true
		}
	}
	return false
}
