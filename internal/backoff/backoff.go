// Package backoff computes the delays between attempts. It is pure: the random
// value is an argument, nothing is remembered, and asking for a delay changes
// no later one.
package backoff

import (
	"math"
	"time"
)

// Jitter is how a delay is spread, so that many callers that failed together
// do not come back together. The kinds and their names are from the AWS
// Architecture Blog, "Exponential Backoff and Jitter".
type Jitter int

// The kinds, for a delay of d.
const (
	Full         Jitter = iota // uniform in [0, d]
	Equal                      // uniform in [d/2, d]
	Decorrelated               // uniform in [base, 3·previous delay]
	None                       // d itself
)

// Policy is an exponential schedule. Its fields are taken as they are; whoever
// accepts them from a user validates them.
type Policy struct {
	Base, Max  time.Duration // the first delay, and the longest
	Multiplier float64
	Jitter     Jitter
}

// Delay returns how long to wait after the given failed attempt, the first of
// which is 1. previous is the delay before it (Decorrelated needs it), random
// a uniform value in [0, 1). The result is within [0, Max] for any argument.
func (p Policy) Delay(attempt int, previous time.Duration, random float64) time.Duration {
	base, limit := float64(p.Base), float64(p.Max)
	d := p.clamp(base * math.Pow(p.Multiplier, float64(attempt-1)))
	switch p.Jitter {
	case Full:
		return p.clamp(random * float64(d))
	case Equal:
		return p.clamp(float64(d) * (0.5 + random/2))
	case Decorrelated:
		high := min(limit, 3*max(base, float64(previous)))
		return p.clamp(base + random*(high-base))
	}
	return d
}

func (p Policy) clamp(d float64) time.Duration { return Within(d, p.Max) }

// Within converts to a duration within [0, limit]. Comparing this way round
// catches +Inf and NaN too; converting only below the limit matters because
// float64(math.MaxInt64) is 2^63, which int64 cannot hold.
func Within(d float64, limit time.Duration) time.Duration {
	if !(d < float64(limit)) {
		return max(limit, 0)
	}
	return time.Duration(max(d, 0))
}
