package courierkafka

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxStored is how many records are remembered that were stored after their call had
// returned, and that have not been applied again.
const maxStored = 10_000

// unanswered remembers the records whose call returned before the brokers had answered.
// The client cannot take them back, and a copy would be a duplicate. There is one answer
// for each, however many attempts wait for it in turn.
type unanswered struct {
	count   atomic.Int64 // of records
	mu      sync.Mutex
	records map[print]*answer
	stored  list.List // of those answers that say so; the oldest first
}

// answer is what becomes of such a record.
type answer struct {
	print   print
	at      partition     // where the record goes
	stored  *list.Element // nil as long as it is not
	waiting []waiter
}

// waiter is a record of a call that waits for the answer to an earlier one.
type waiter struct {
	round *round
	index int
}

// print is a digest of the topic, the key, the value and the headers of a record.
type print [sha256.Size]byte

func newUnanswered() *unanswered { return &unanswered{records: make(map[print]*answer)} }

// add remembers a record, unless it has no id: then an equal one may be another record.
// It returns nil too for a copy of one that is remembered, which counts alone.
func (u *unanswered) add(r *kgo.Record, at partition) *answer {
	if RecordID(r) == "" {
		return nil
	}
	a := &answer{print: printOf(r), at: at}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.records[a.print] != nil {
		return nil
	}
	u.records[a.print] = a
	u.count.Store(int64(len(u.records)))
	return a
}

// join has a waiter get the answer to an earlier copy of a record, and returns that
// answer, nil if there is no such copy.
func (u *unanswered) join(r *kgo.Record, w waiter) *answer {
	print := printOf(r)
	u.mu.Lock()
	a := u.records[print]
	switch {
	case a == nil:
	case a.stored != nil:
		u.forget(a)
		u.mu.Unlock()
		w.settle(nil)
		return a
	default:
		a.waiting = append(a.waiting, w)
	}
	u.mu.Unlock()
	return a
}

// leave takes a waiter out that waits no longer.
func (u *unanswered) leave(a *answer, w waiter) {
	u.mu.Lock()
	defer u.mu.Unlock()
	a.waiting = slices.DeleteFunc(a.waiting, func(other waiter) bool { return other == w })
}

// settle is called with the answer. That the record is stored is remembered until it is
// applied again; after a failure the next attempt sends it.
func (u *unanswered) settle(a *answer, err error) {
	u.mu.Lock()
	waiting := a.waiting
	a.waiting = nil
	if err != nil {
		u.forget(a)
	} else {
		a.stored = u.stored.PushBack(a)
	}
	u.mu.Unlock()
	taken := false
	for _, w := range waiting {
		taken = w.settle(err) || taken
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if taken {
		u.forget(a)
	}
	if u.stored.Len() > maxStored {
		u.forget(u.stored.Front().Value.(*answer))
	}
}

func (u *unanswered) forget(a *answer) {
	if u.records[a.print] == a {
		delete(u.records, a.print)
		u.count.Store(int64(len(u.records)))
	}
	if a.stored != nil {
		u.stored.Remove(a.stored)
	}
}

// settle reports whether somebody waited for the answer.
func (w waiter) settle(err error) bool { return w.round.settle(w.index, err) }

func printOf(r *kgo.Record) print {
	var text []byte
	add := func(part []byte) {
		length := uint64(len(part)) + 1
		if part == nil {
			length = 0
		}
		text = append(binary.AppendUvarint(text, length), part...)
	}
	add([]byte(r.Topic))
	add(r.Key)
	add(r.Value)
	for _, h := range r.Headers {
		add([]byte(h.Key))
		add(h.Value)
	}
	return sha256.Sum256(text)
}
