package courierkafka

import (
	"sync"
	"sync/atomic"
)

// overdue holds the partitions for which a call has waited the whole delivery timeout in
// vain, until a broker answers for one of their records. The number -1 stands for records
// whose partition the client does not know yet.
type overdue struct {
	count      atomic.Int64 // of partitions
	mu         sync.Mutex
	partitions map[partition]bool
}

func newOverdue() *overdue { return &overdue{partitions: make(map[partition]bool)} }

func (o *overdue) has(p partition) bool {
	if o.count.Load() == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.partitions[p]
}

func (o *overdue) add(p partition) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.partitions[p] = true
	o.count.Store(int64(len(o.partitions)))
}

// answered takes partitions out.
func (o *overdue) answered(all ...partition) {
	if o.count.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range all {
		delete(o.partitions, p)
	}
	o.count.Store(int64(len(o.partitions)))
}
