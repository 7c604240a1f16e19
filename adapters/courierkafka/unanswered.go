package courierkafka

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxStored is how many records are remembered that were stored after their call had
// returned, and that have not been applied again.
const maxStored = 10_000

// unanswered remembers the records whose call returned before the brokers had answered.
// The client cannot take them back, and a copy would be a duplicate.
type unanswered struct {
	count   atomic.Int64 // of records
	mu      sync.Mutex
	records map[print]*answer
	stored  []*answer // the oldest first; some may have been applied again
}

// answer is what becomes of such a record.
type answer struct {
	print   print
	stored  bool
	waiting []func(error) bool // each reports whether somebody waits
}

// print is a digest of the topic, the key, the value and the headers of a record.
type print [sha256.Size]byte

func newUnanswered() *unanswered { return &unanswered{records: make(map[print]*answer)} }

// add remembers a record, unless it has no id: then an equal one may be another record.
func (u *unanswered) add(r *kgo.Record) *answer {
	if RecordID(r) == "" {
		return nil
	}
	a := &answer{print: printOf(r)}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.records[a.print] = a
	u.count.Store(int64(len(u.records)))
	return a
}

// join calls settle with the answer to an earlier copy of a record, and reports whether
// there is one.
func (u *unanswered) join(r *kgo.Record, settle func(error) bool) bool {
	print := printOf(r)
	u.mu.Lock()
	a := u.records[print]
	switch {
	case a == nil:
		u.mu.Unlock()
		return false
	case !a.stored:
		a.waiting = append(a.waiting, settle)
		u.mu.Unlock()
		return true
	}
	u.forget(a)
	u.mu.Unlock()
	settle(nil)
	return true
}

// settle is called with the answer. That the record is stored is remembered until it is
// applied again; after a failure the next attempt sends it.
func (u *unanswered) settle(a *answer, err error) {
	u.mu.Lock()
	waiting := a.waiting
	a.waiting = nil
	a.stored = err == nil
	if err != nil {
		u.forget(a)
	}
	u.mu.Unlock()
	taken := false
	for _, settle := range waiting {
		taken = settle(err) || taken
	}
	if err != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if taken {
		u.forget(a)
		return
	}
	u.stored = append(u.stored, a)
	if len(u.stored) > maxStored {
		u.forget(u.stored[0])
		u.stored = u.stored[1:]
	}
}

func (u *unanswered) forget(a *answer) {
	if u.records[a.print] == a {
		delete(u.records, a.print)
		u.count.Store(int64(len(u.records)))
	}
}

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
