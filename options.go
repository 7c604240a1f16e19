package courier

import (
	"fmt"
	"log/slog"
	"math"
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
	keyOf         any // a func(T) string
	identityOf    any // a func(T) string
	applyBatch    int // 0 is by the workers
	prefetch      int
	orderedMarks  bool
	flushInterval time.Duration
	drainTimeout  time.Duration
	stallAfter    time.Duration
	clock         *steady
	random        func() float64 // nil is the default
	attempt       time.Duration  // 0 is no timeout; of the functions that are given a process function
	logger        *slog.Logger
	observers     []Observer

	polling, streaming string // the last option of only that kind of coordinator
	fault              error  // the first bad value
}

func newConfig(opts []Option) config {
	c := config{
		interval:      5 * time.Second,
		workers:       1,
		prefetch:      -1,
		flushInterval: 100 * time.Millisecond,
		drainTimeout:  10 * time.Second,
		stallAfter:    30 * time.Second,
		clock:         newSteady(systemClock{}),
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
	c.batchSize = or(c.batchSize, max(100, c.workers))
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
// is 5 seconds. Each wait is up to a tenth longer or shorter, so that several
// instances do not stay in step.
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
// batch, a full one included, and exactly. The default is to fetch again at once
// after a full batch that made progress.
func WithFixedInterval() Option {
	return func(c *config) {
		c.polling = "WithFixedInterval"
		c.fixed = true
	}
}

// WithBatchSize sets how many records are fetched, and marked, at a time. The
// default is 100, or the number of workers where that is more. A polling
// coordinator has no more than that in hand, records that wait to be tried again
// included, and [WithPrefetch] times as many behind it. Where those that wait fill
// it, nothing is fetched; the log, [PauseEvent] and Ready say so. While an open breaker is probed either coordinator may look at up
// to 100 records, so that a few bad ones do not hide the others.
func WithBatchSize(n int) Option {
	return func(c *config) { c.count("WithBatchSize", &c.batchSize, n) }
}

// WithWorkers sets how many records a coordinator applies at once. The default is 1,
// which applies them in the order fetched. With more there is no order, unless
// [WithOrderKey] asks for one; the applier must be safe for concurrent use. A polling
// coordinator marks a batch when all its records were applied, but for those that wait
// to be tried again, which hold up no other.
func WithWorkers(n int) Option {
	return func(c *config) { c.count("WithWorkers", &c.workers, n) }
}

// WithStreamWorkers is [WithWorkers] for a streaming coordinator.
func WithStreamWorkers(n int) Option {
	return func(c *config) {
		c.streaming = "WithStreamWorkers"
		c.count(c.streaming, &c.workers, n)
	}
}

// WithOrderKey has records with the same key applied in the order fetched, one
// after the other, however many workers there are. Behind a record that failed
// the later ones of its key wait until it is applied or parked; those of other
// keys do not. A key for all records is a strict order; a record
// whose key is "" is in no order.
//
// Records that wait take up room in hand, or in the batches that the source hands
// out: where they fill it, the other keys wait too. So park what never succeeds.
//
// With a [BatchApplier] no two records of a key are in one call of ApplyBatch, unless it
// keeps the order inside a call ([OrderedBatcher]): then all of a key that are in hand go
// in one call, in order, up to [WithApplyBatchSize].
// The source must hand out the records of a key in their order, also those that
// failed or were given back before, as an outbox that is read by its sequence
// does; a [Failer], whose schedule is its own, must hold back the later ones
// itself. The function is called by one goroutine at a time, and must return the
// same key for the same record; a record over which it panics has failed. T is the type of the
// coordinator's records.
func WithOrderKey[T any](key func(record T) string) Option {
	return func(c *config) {
		if key == nil {
			c.refuse("WithOrderKey", "is nil: pass the function that returns a record's key")
			return
		}
		c.keyOf = key
	}
}

// WithIdentity names the records of a source that is no [Identifier], such as one
// of functions: the same record always by the same name and no two records by one;
// "" is no name. The names are for logs and events, where else a record is named by
// its String method, or by its value where that is a string, a number or a bool, or by
// its place. A polling coordinator also knows a record by its name when the source
// returns it a second time, see [Identifier].
// While a record waits for its next attempt, a source that is no [Releaser] returns it
// again: it is recognized by its name, or its value where that is a number or a string.
// Without either no more is fetched until it is settled. Behind a breaker it then keeps
// its worker, and
// a bad record is not parked while the
// others come one at a time: over each of them the breaker forgets its attempts.
// The function must be safe for concurrent use. T is the type of the coordinator's
// records.
func WithIdentity[T any](identity func(record T) string) Option {
	return func(c *config) {
		if identity == nil {
			c.refuse("WithIdentity", "is nil: pass the function that names a record")
			return
		}
		c.identityOf = identity
	}
}

// WithApplyBatchSize sets how many records a [BatchApplier] is given at most in
// one call. The default is the batch, or with several workers an equal share of
// it; with an order key, and an applier that keeps the order inside a call, no key is split
// for that share. It is refused for an applier that gets one record at a time.
func WithApplyBatchSize(n int) Option {
	return func(c *config) { c.count("WithApplyBatchSize", &c.applyBatch, n) }
}

// WithAttemptTimeout ends the context of each call of the process function of [Sync],
// [SyncWithRetry] or [RunOnce] after d, see [NewAttemptTimeoutApplier]: such a call has
// failed as any other. The default is no timeout. A coordinator that is given an applier
// refuses the option; there the timeout belongs inside the breaker, where
// [ResilientConfig].AttemptTimeout puts it.
func WithAttemptTimeout(d time.Duration) Option {
	return func(c *config) { c.duration("WithAttemptTimeout", &c.attempt, d) }
}

// noAttemptTimeout says that it has been seen to.
func noAttemptTimeout(c *config) { c.attempt = 0 }

// attemptFault refuses the timeout where there is an applier.
func (c *config) attemptFault() error {
	if c.attempt == 0 {
		return nil
	}
	return &ConfigError{"WithAttemptTimeout", "is for Sync, SyncWithRetry and RunOnce; an applier has a timeout by ResilientConfig.AttemptTimeout or NewAttemptTimeoutApplier"}
}

// WithPrefetch sets how many batches are fetched while another is in work. The
// default of a polling coordinator is 0; more is only for sources that lease
// their records ([Releaser]), has a fetch begin before the batch in work is marked,
// and cannot be kept with [WithOrderKey]. That of a streaming coordinator is 1,
// and more of them keep many workers busy.
func WithPrefetch(batches int) Option {
	return func(c *config) {
		if batches < 0 || batches > maxCount {
			c.refuse("WithPrefetch", "is %d: want 0 to %d", batches, maxCount)
			return
		}
		c.prefetch = batches
	}
}

// WithOrderedMarks has a streaming coordinator mark records in the order
// fetched, as a source needs that keeps a position and not a mark for each
// record. A record that is not settled holds up the marks of all behind it, and,
// when no more may be in hand, the stream; so one that failed is tried again, and
// not given back. What was applied and for that not marked by the end is applied
// again, and counted in a [*MarkError] unless the source took it back. The default is the order in which they are settled.
func WithOrderedMarks() Option {
	return func(c *config) {
		c.streaming = "WithOrderedMarks"
		c.orderedMarks = true
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
// before its context is cancelled. The default is 10 seconds. The coordinator
// then marks what was applied and releases the rest, and ends the contexts of
// those calls so that Start returns within twice the drain timeout. Where an apply
// ignored its context, marks and releases have half a drain timeout all the same.
//
// When the drain timeout passes, the coordinator logs the names of the records in work.
// A worker of a polling coordinator takes up to 16 records at a time, unless there is
// an order key. Where records have taken less than a microsecond each until then, the
// log names the range that has the one in work.
//
// A call of a [DLQ] has 10 seconds, or the drain timeout where that is less, and
// ends with the drain timeout of a stop. Records that fail for good at the very end
// of the drain, as their context ends, have half a drain timeout together to be
// parked.
func WithDrainTimeout(d time.Duration) Option {
	return func(c *config) { c.duration("WithDrainTimeout", &c.drainTimeout, d) }
}

// WithStallAfter sets how long a record may be in work until the coordinator tells of
// it. The default is 30 seconds. Nothing is cancelled: a call that does not return keeps
// its worker, and at a stop the drain timeout is for it. To end a call, give it a
// timeout, see [WithAttemptTimeout] and [ResilientConfig].AttemptTimeout.
//
// The log names the record, its attempt and for how long it has been in work at least:
// once at Warn, again every 5 minutes, and at Info when its call has returned, see also
// Observer.Stalled. Ready returns an error that says the same for as long as it lasts,
// and Stats().OldestInWork how long that is. So set it above the longest call of a healthy
// destination. What counts is one attempt: a wait between two does not, but in a
// fan-out whose other branches go on. Records that are applied in one call of ApplyBatch
// are in work together, and the first of them is named.
//
// The coordinator looks at what its workers are at every quarter of d (a millisecond at
// least) while anything is in work. So a record that hangs is told of when it has been in
// work for d to one and a quarter of d, and that its call has returned up to a quarter
// later, by the log; Ready and Stats know that at once. Of a worker of a polling coordinator that was
// quick until then, the range is told that has the record, see [WithDrainTimeout].
func WithStallAfter(d time.Duration) Option {
	return func(c *config) { c.duration("WithStallAfter", &c.stallAfter, d) }
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
		if isNil(clock) {
			c.refuse("WithClock", "is a nil %T", clock)
			return
		}
		c.clock = newSteady(clock)
	}
}

// WithRandom sets the source of uniform values in [0, 1) that spread delays.
// The default is math/rand/v2's Float64. It must be safe for concurrent use. Where it
// panics, or returns another value, 0.5 is taken instead.
func WithRandom(random func() float64) Option {
	return func(c *config) {
		if random == nil {
			c.refuse("WithRandom", "is nil")
			return
		}
		c.random = random
	}
}

// WithLogger sets where a coordinator logs what goes wrong, every record that is parked
// included, at Warn and Error, and that it goes well again, at Info. The default is
// slog.Default(); slog.New(slog.DiscardHandler) is silence.
//
// A message that repeats is logged once, whatever numbers are in its error, then the
// 10th, 100th and 1000th time and the first time after 5 minutes, with the count, and
// once more when it is over. The pauses of an outage count as one message. No single
// event tells that failing records are well again, or go to the dead letter queue in
// masses no more: that is logged with the first event after a minute or more (up to an
// hour, if failures come at longer intervals) without such a failure. The log remembers
// the latest 256 of many different errors. It has at most 8 kB of an error's text, a
// stack or a record's name, and says how many bytes it left out.
func WithLogger(logger *slog.Logger) Option {
	return func(c *config) {
		if logger == nil {
			c.refuse("WithLogger", "is nil: for silence pass slog.New(slog.DiscardHandler)")
			return
		}
		c.logger = logger
	}
}

// WithObserver has an observer told of what the coordinator does, beside the
// log. It may be given several times.
func WithObserver(o Observer) Option {
	return func(c *config) { c.observers = append(c.observers, o) }
}

// pace is the interval, spread unless it is to be exact.
func (c *config) pace() time.Duration {
	if c.fixed {
		return c.interval
	}
	return max(1, backoff.Within(float64(c.interval)*(0.9+0.2*uniform(c.random)), math.MaxInt64))
}

// trouble is the pace of everything that is tried again after an error of the
// source or the dead letter queue.
type trouble struct {
	tries int
}

func (t *trouble) delay(c *config) time.Duration { return t.upTo(30*time.Second, c) }

func (t *trouble) upTo(longest time.Duration, c *config) time.Duration {
	t.tries++
	p := backoff.Policy{Base: 100 * time.Millisecond, Max: longest, Multiplier: 2, Jitter: backoff.Equal}
	return p.Delay(t.tries, 0, uniform(c.random))
}

// maxCallAfter is the longest delay that a coordinator obeys of those that the
// errors of Fetch and Mark ask for, and by default a breaker.
const maxCallAfter = time.Hour

// maxCallPace is how long a source is left alone after an error: delivery goes on so
// soon after the end of an outage, however long that was.
const maxCallPace = 5 * time.Second

// after is the pace of calls of the source, or what the error asks for where that is
// longer.
func (t *trouble) after(c *config, err error) time.Duration {
	return max(t.upTo(maxCallPace, c), afterOf(err, maxCallAfter))
}

// atStop is after while the coordinator stops: what an error asks for counts only where
// it leaves time for another try, see lifecycle.
func (t *trouble) atStop(c *config, err error) time.Duration {
	delay := t.delay(c)
	if asked := afterOf(err, maxCallAfter); asked <= c.drainTimeout/2 {
		delay = max(delay, asked)
	}
	return delay
}

// or returns v, or the default where v is zero.
func or[V int | float64 | time.Duration](v, def V) V {
	if v == 0 {
		return def
	}
	return v
}
