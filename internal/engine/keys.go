package engine

import (
	"sync"
	"sync/atomic"
	"time"
)

// BlockedKeys knows the order keys that are held back, because an earlier record of each
// is not settled. Its methods may be called by many goroutines. The zero value holds none
// back.
type BlockedKeys struct {
	some atomic.Bool // spares the lock while there is none
	mu   sync.Mutex
	held map[string]time.Time // until when; the zero time is as long as it is not lifted
}

// Block holds a key back until Lift or Clear.
func (b *BlockedKeys) Block(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.block(key)
}

func (b *BlockedKeys) block(key string) {
	if b.held == nil {
		b.held = make(map[string]time.Time)
	}
	if _, held := b.held[key]; !held {
		b.held[key] = time.Time{}
	}
	b.some.Store(true)
}

// BlockUntil holds a key back until a time at least.
func (b *BlockedKeys) BlockUntil(key string, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.block(key)
	if until.After(b.held[key]) {
		b.held[key] = until
	}
}

// Blocks reports whether a key is held back.
func (b *BlockedKeys) Blocks(key string) bool {
	if !b.some.Load() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	_, held := b.held[key]
	return held
}

// Lift lets go of the keys whose time is over. It holds the keys without a time back
// until the time given, by which a leasing source hands their records out again. Records
// behind them, which the source may hand out sooner, wait too.
func (b *BlockedKeys) Lift(now, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, at := range b.held {
		switch {
		case at.IsZero() && until.After(now):
			b.held[key] = until
		case !at.After(now):
			delete(b.held, key)
		}
	}
	b.some.Store(len(b.held) > 0)
}

// Free lets go of a key.
func (b *BlockedKeys) Free(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.held, key)
	b.some.Store(len(b.held) > 0)
}

// Until returns when a key is let go, the zero time if no time is set for it.
func (b *BlockedKeys) Until(key string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[key]
}

// Clear lets go of the keys without a time.
func (b *BlockedKeys) Clear() {
	if b.some.Load() {
		b.Lift(time.Time{}, time.Time{})
	}
}

// Chains are the records of a batch by key: from each record the next of its key.
type Chains struct {
	Heads []int          // the first record of each key, in order
	After []int          // parallel to the records, -1 where there is none
	last  map[string]int // while they are linked
}

// Reset empties the chains.
func (c *Chains) Reset() { c.Heads = c.Heads[:0] }

// Link makes the chains of a batch whose records have these keys.
func (c *Chains) Link(keys []string) {
	if c.last == nil {
		c.last = make(map[string]int)
	}
	clear(c.last)
	c.After = c.After[:0]
	for i, key := range keys {
		c.After = append(c.After, -1)
		if before, ok := c.last[key]; ok {
			c.After[before] = i
		} else {
			c.Heads = append(c.Heads, i)
		}
		c.last[key] = i
	}
}

// Length returns how many records a chain has, by the place of its head.
func (c *Chains) Length(head int) (n int) {
	for i := c.Heads[head]; i >= 0; i = c.After[i] {
		n++
	}
	return n
}

// Follow replaces each record by the next of its key.
func (c *Chains) Follow(list []int) []int {
	next := list[:0]
	for _, i := range list {
		if c.After[i] >= 0 {
			next = append(next, c.After[i])
		}
	}
	return next
}
