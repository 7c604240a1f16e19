package engine

import "sync/atomic"

// MaxClaim is how many units a worker claims at a time at the most: when one of them
// hangs, that is how many it may be.
const MaxClaim = 16

// Claims shares a batch out among workers, by an atomic index and without a lock. It
// counts in units: records or, where there are chains, chains of them.
type Claims struct {
	Chains  Chains // empty where records are claimed one by one
	Workers int    // that share the batch

	units int          // to be claimed
	step  int          // units claimed at a time; 0 is by what is left
	cut   int          // where workers are to stop, if before the end
	next  atomic.Int64 // the first unit that nobody has claimed
}

// Reset begins a batch of so many records for so many workers, in chains by keys if these
// are not nil.
func (c *Claims) Reset(records int, keys []string, workers int) {
	c.Chains.Reset()
	c.units, c.Workers, c.step = records, max(1, workers), 0
	if keys != nil {
		c.Chains.Link(keys)
		c.units = len(c.Chains.Heads)
	}
	c.cut = c.units
	c.next.Store(0)
}

// Step has workers claim so many units at a time.
func (c *Claims) Step(units int) { c.step = units }

// Chained reports whether the units are chains.
func (c *Claims) Chained() bool { return len(c.Chains.Heads) > 0 }

// Share is how many units each worker has where all have as many.
func (c *Claims) Share() int { return (c.units + c.Workers - 1) / c.Workers }

// Claim takes the next units, none when from equals to. Without a step, what one worker
// takes at a time is a fraction of what is left, so that none has much behind a slow
// record when the others have run out.
func (c *Claims) Claim() (from, to int) {
	for {
		next := c.next.Load()
		from = int(next)
		n := c.step
		switch {
		case n > 0:
		case c.Workers == 1:
			n = min(c.units, MaxClaim)
		default:
			n = min(max(1, (c.units-from)/(4*c.Workers)), MaxClaim)
		}
		if n == 0 || from >= c.units {
			return 0, 0
		}
		// Not added: what is claimed is not to depend on who else claims.
		if c.next.CompareAndSwap(next, next+int64(n)) {
			return from, min(from+n, c.units)
		}
	}
}

// ClaimChains takes as many chains as have so many records together, all at once: which
// ones is not to depend on who else claims.
func (c *Claims) ClaimChains(records int) (from, to int) {
	for {
		next := c.next.Load()
		from, to = int(next), int(next)
		for n := 0; n < records && to < c.units; to++ {
			n += c.Chains.Length(to)
		}
		if from == to || c.next.CompareAndSwap(next, int64(to)) {
			return from, to
		}
	}
}

// Left reports whether there are units that nobody has claimed.
func (c *Claims) Left() bool { return int(c.next.Load()) < c.units }

// Begun returns how many units the workers have claimed, but for those behind the cut.
func (c *Claims) Begun() int { return min(int(c.next.Load()), c.cut) }

// Finished returns how many units, from the first on, an only worker is done with that
// goes by steps: it claims the next ones when it is. It may be called meanwhile.
func (c *Claims) Finished() int {
	n := c.Begun()
	if n == 0 || c.Chained() {
		return 0
	}
	return (n - 1) / c.step * c.step
}

// CutShort keeps an only worker from going on behind what it has claimed, and returns
// where that ends.
func (c *Claims) CutShort() (begun int) {
	c.cut = min(int(c.next.Swap(int64(c.units))), c.cut)
	return c.cut
}
