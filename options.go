package courier

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/erfanmomeniii/courier/internal/backoff"
)

// Option configures a coordinator. A bad value, or an option that the
// coordinator has no use for, is a [*ConfigError] from Start or RunOnce.
type Option func(*config)

// config is what a coordinator was told. The zero value of a field is not its
// default: newConfig sets those first.
type config struct {
	interval      time.Duration
	fixed         bool
	batchSize     int
	workers       int
	flushInterval time.Duration
	drainTimeout  time.Duration
	clock         Clock
	random        func() float64
	logger        *slog.Logger

	polling, streaming string // the last option of only that kind of coordinator
	fault              error  // the first bad value
}

func newConfig(opts []Option) config {
	c := config{
		interval:      5 * time.Second,
		batchSize:     100,
		workers:       1,
		flushInterval: 100 * time.Millisecond,
		drainTimeout:  10 * time.Second,
		clock:         systemClock{},
		random:        rand.Float64,
	}
	for _, opt := range opts {
		if opt == nil {
			c.refuse("option", "is nil")
			continue
		}
		opt(&c)
	}
	if c.logger == nil {
		c.logger = slog.Default()
	}
	return c
}

func (c *config) refuse(field, format string, args ...any) {
	if c.fault == nil {
		c.fault = &ConfigError{Field: field, Problem: fmt.Sprintf(format, args...)}
	}
}

func (c *config) duration(field string, set *time.Duration, d time.Duration) {
	if d <= 0 {
		c.refuse(field, "is %v: want more than 0", d)
		return
	}
	*set = d
}

func (c *config) count(field string, set *int, n int) {
	if n < 1 || n > maxCount {
		c.refuse(field, "is %d: want 1 to %d", n, maxCount)
		return
	}
	*set = n
}

// maxCount is beyond any use, and small enough to be multiplied.
const maxCount = 1 << 20

// WithInterval sets how long a polling coordinator waits before it fetches
// again when the source is caught up or nothing could be marked. The default
// is 5 seconds.
func WithInterval(d time.Duration) Option {
	return func(c *config) {
		c.polling = "WithInterval"
		c.duration(c.polling, &c.interval, d)
	}
}

// WithFastPolling is WithInterval(100 * time.Millisecond).
func WithFastPolling() Option { return WithInterval(100 * time.Millisecond) }

// WithSlowPolling is WithInterval(30 * time.Second).
func WithSlowPolling() Option { return WithInterval(30 * time.Second) }

// WithFixedInterval makes a polling coordinator wait the interval after every
// batch, a full one included. The default is to fetch again at once after a
// full batch that made progress.
func WithFixedInterval() Option {
	return func(c *config) {
		c.polling = "WithFixedInterval"
		c.fixed = true
	}
}

// WithBatchSize sets how many records are fetched, and marked, at a time. The
// default is 100. A polling coordinator has no more than that in hand, a
// streaming one twice that. While an open breaker is probed either may look at
// up to 100 records, so that a few bad ones do not hide the others.
func WithBatchSize(n int) Option {
	return func(c *config) { c.count("WithBatchSize", &c.batchSize, n) }
}

// WithStreamWorkers sets how many records a streaming coordinator applies at
// once. The default is 1, which applies them in the order fetched.
func WithStreamWorkers(n int) Option {
	return func(c *config) {
		c.streaming = "WithStreamWorkers"
		c.count(c.streaming, &c.workers, n)
	}
}

// WithFlushInterval sets how long a streaming coordinator lets applied records
// wait for more before it marks them. The default is 100 ms. They are marked
// sooner when a batch is full, and when there is nothing else to do.
func WithFlushInterval(d time.Duration) Option {
	return func(c *config) {
		c.streaming = "WithFlushInterval"
		c.duration(c.streaming, &c.flushInterval, d)
	}
}

// WithDrainTimeout sets how long the work in flight may go on after a stop
// before its context is cancelled. The default is 10 seconds. Marking what was
// applied has as long again.
func WithDrainTimeout(d time.Duration) Option {
	return func(c *config) { c.duration("WithDrainTimeout", &c.drainTimeout, d) }
}

// WithClock sets the clock of the coordinator. The default is the system's.
// Decorators have a clock of their own in their policies; that of
// [SyncWithRetry] is this one.
func WithClock(clock Clock) Option {
	return func(c *config) {
		if clock == nil {
			c.refuse("WithClock", "is nil")
			return
		}
		c.clock = clock
	}
}

// WithRandom sets the source of uniform values in [0, 1) that spread delays.
// The default is math/rand/v2's Float64. It must be safe for concurrent use.
func WithRandom(random func() float64) Option {
	return func(c *config) {
		if random == nil {
			c.refuse("WithRandom", "is nil")
			return
		}
		c.random = random
	}
}

// WithLogger sets where failures are logged, at Warn and Error. The default is
// slog.Default(); slog.New(slog.DiscardHandler) is silence.
func WithLogger(logger *slog.Logger) Option {
	return func(c *config) {
		if logger == nil {
			c.refuse("WithLogger", "is nil: for silence pass slog.New(slog.DiscardHandler)")
			return
		}
		c.logger = logger
	}
}

// trouble is the pace of everything that is tried again after an error of the
// source or the dead letter queue.
type trouble struct {
	tries int
}

func (t *trouble) delay(c *config) time.Duration {
	t.tries++
	p := backoff.Policy{Base: 100 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2, Jitter: backoff.Equal}
	return p.Delay(t.tries, 0, c.random())
}

// or returns v, or the default where v is zero.
func or[V int | float64 | time.Duration](v, def V) V {
	if v == 0 {
		return def
	}
	return v
}
