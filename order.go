package courier

import (
	"sync"
	"sync/atomic"
	"time"
)

// This room is about order by key (D4): records of one key are applied one
// after the other, and behind one that failed the later ones of its key wait.

// keyGate knows the keys that are held back, because a record of each is not
// settled that came before.
type keyGate struct {
	some atomic.Bool // spares the lock while there is none
	mu   sync.Mutex
	held map[string]time.Time // until when; the zero time is as long as it is not lifted
}

// block holds a key back until the gate is lifted.
func (g *keyGate) block(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil {
		g.held = make(map[string]time.Time)
	}
	if _, held := g.held[key]; !held {
		g.held[key] = time.Time{}
	}
	g.some.Store(true)
}

// hold holds a key back until some time at least.
func (g *keyGate) hold(key string, until time.Time) {
	g.block(key)
	g.mu.Lock()
	defer g.mu.Unlock()
	if until.After(g.held[key]) {
		g.held[key] = until
	}
}

func (g *keyGate) blocks(key string) bool {
	if !g.some.Load() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, held := g.held[key]
	return held
}

// lift lets go of the keys whose time is over, and has the others held until
// the time given, by which a leasing source hands the records again that they
// are held for. Records behind them, which it may hand out sooner, wait too.
func (g *keyGate) lift(now, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, at := range g.held {
		switch {
		case at.IsZero() && until.After(now):
			g.held[key] = until
		case !at.After(now):
			delete(g.held, key)
		}
	}
	g.some.Store(len(g.held) > 0)
}

// free lets go of a key that nothing with the source is held for.
func (g *keyGate) free(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.held, key)
	g.some.Store(len(g.held) > 0)
}

// until is when a key is let go, zero if it is not held until a time.
func (g *keyGate) until(key string) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held[key]
}

// clear lets go of the keys that are held until no particular time.
func (g *keyGate) clear() {
	if g.some.Load() {
		g.lift(time.Time{}, time.Time{})
	}
}

// chains are the records of a batch by key: from each record the next of its
// key. Hands claim whole chains.
type chains struct {
	heads []int          // the first record of each key, in order
	after []int          // parallel to the records, -1 where there is none
	last  map[string]int // while they are linked
}

func (c *chains) link(keys []string) {
	if c.last == nil {
		c.last = make(map[string]int)
	}
	clear(c.last)
	c.after = c.after[:0]
	for i, key := range keys {
		c.after = append(c.after, -1)
		if before, ok := c.last[key]; ok {
			c.after[before] = i
		} else {
			c.heads = append(c.heads, i)
		}
		c.last[key] = i
	}
}

// follow replaces each record by the next of its key.
func (c *chains) follow(list []int) []int {
	next := list[:0]
	for _, i := range list {
		if c.after[i] >= 0 {
			next = append(next, c.after[i])
		}
	}
	return next
}
