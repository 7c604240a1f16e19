package courier

import (
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/erfanmomeniii/courier/internal/backoff"
)

// Option configures a coordinator. A bad value, or an option that does not apply to the
// coordinator, is a [*ConfigError] from Start or RunOnce.
type Option func(*config)

// config holds the options of a coordinator. newConfig sets the defaults first, so a
// field's zero value is not its default.
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

// maxCount is more than anyone needs, and small enough to be multiplied.
const maxCount = 1 << 20

// WithInterval sets how long a polling coordinator waits before it fetches again when the
// source has no more records or nothing could be marked. The default is 5 seconds. Each
// wait is up to a tenth longer or shorter, so that several instances do not stay in step.
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

// WithFixedInterval makes a polling coordinator wait exactly the interval after every
// batch, including a full one. By default it fetches again immediately after a full batch
// that made progress.
func WithFixedInterval() Option {
	return func(c *config) {
		c.polling = "WithFixedInterval"
		c.fixed = true
	}
}

// WithBatchSize sets how many records are fetched, and marked, at a time. The default is
// 100, or the number of workers if that is more. A polling coordinator has at most that
// many records in hand, including records that wait for a retry, and up to [WithPrefetch]
// further batches. If waiting records fill it, nothing is fetched; the log, [PauseEvent]
// and Ready report that. While an open breaker is probed, either coordinator may look at
// up to 100 records, so that a few bad records do not hide the others.
func WithBatchSize(n int) Option {
	return func(c *config) { c.count("WithBatchSize", &c.batchSize, n) }
}

// WithWorkers sets how many records a coordinator applies concurrently. The default is 1,
// which applies them in the order fetched, but for the probes of an open breaker. With more
// workers there is no order, unless [WithOrderKey] asks for one, and the applier must be
// safe for concurrent use. A polling coordinator marks a batch once all its records are
// applied, except records that wait for a retry, which do not delay the others.
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

// WithOrderKey applies records with the same key in the order fetched, one after another,
// regardless of the number of workers. A failed record blocks later records with the same
// key until it is applied or parked; other keys are unaffected. If all records have the
// same key, the order is strict. A record whose key is "" has no order.
//
// Blocked records take up space in hand, or in the batches that the source hands out. If
// they fill it, the other keys wait too, so park records that never succeed.
//
// With a [BatchApplier], no two records of a key are in one call of ApplyBatch, unless
// the applier is an [OrderedBatcher]: then all records of a key that are in hand go in
// one call, in order, up to [WithApplyBatchSize].
//
// The source must return the records of a key in order, including records that failed or
// were given back before, as an outbox that is read by its sequence does. A [Failer],
// which has its own schedule, must hold back the later records itself.
//
// The function is called from one goroutine at a time, and must return the same key for
// the same record. A record for which it panics has failed. T is the type of the
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

// WithIdentity names the records of a source that is no [Identifier], such as a source
// made of functions. The function returns the same name for the same record and no name
// for two records; "" is no name. Logs and events use the names. Without a name they use
// the record's String method, its value if that is a string, a number or a bool, or its
// position.
//
// By its name a polling coordinator also recognizes a record that the source returns a
// second time, see [Identifier]. That matters while a record waits for a retry, because a
// source that is no [Releaser] returns it again meanwhile. If the coordinator cannot
// recognize it, neither by name nor as a number or a string, it fetches no more until the
// record is settled. With a breaker such a record keeps its worker while it waits; and a
// bad record is not parked while the others come one at a time, because each pause of the
// breaker resets its attempts.
//
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

// WithApplyBatchSize sets the largest number of records in one call of a [BatchApplier].
// The default is the batch size, divided by the number of workers. With an order key and
// an [OrderedBatcher] that default does not split the records of a key. The option is
// refused for an applier that takes one record at a time.
func WithApplyBatchSize(n int) Option {
	return func(c *config) { c.count("WithApplyBatchSize", &c.applyBatch, n) }
}

// WithAttemptTimeout ends the context of each call of the process function of [Sync],
// [SyncWithRetry] or [RunOnce] after d, see [NewAttemptTimeoutApplier]. The call has then
// failed like any other. The default is no timeout. A coordinator that is given an
// applier refuses the option: there the timeout belongs inside the breaker, where
// [ResilientConfig].AttemptTimeout puts it.
func WithAttemptTimeout(d time.Duration) Option {
	return func(c *config) { c.duration("WithAttemptTimeout", &c.attempt, d) }
}

// noAttemptTimeout removes the option from the coordinator, because the caller has
// applied it.
func noAttemptTimeout(c *config) { c.attempt = 0 }

// attemptFault refuses the timeout for a coordinator that is given an applier.
func (c *config) attemptFault() error {
	if c.attempt == 0 {
		return nil
	}
	return &ConfigError{"WithAttemptTimeout", "is for Sync, SyncWithRetry and RunOnce; an applier has a timeout by ResilientConfig.AttemptTimeout or NewAttemptTimeoutApplier"}
}

// WithPrefetch sets how many batches are fetched ahead while another is processed.
//
// For a polling coordinator the default is 0. More requires a source that leases its
// records ([Releaser]), starts a fetch before the current batch is marked, and cannot be
// combined with [WithOrderKey]. For a streaming coordinator the default is 1; more
// batches keep many workers busy.
func WithPrefetch(batches int) Option {
	return func(c *config) {
		if batches < 0 || batches > maxCount {
			c.refuse("WithPrefetch", "is %d: want 0 to %d", batches, maxCount)
			return
		}
		c.prefetch = batches
	}
}

// WithOrderedMarks makes a streaming coordinator mark records in the order fetched, for a
// source that keeps a position instead of a mark for each record. By default records are
// marked in the order in which they are settled.
//
// An unsettled record delays the marks of all records after it and, once no more records
// may be in hand, the stream. So a failed record is retried and not given back. Records
// applied but still unmarked at shutdown will be applied again; they are reported in a
// [*MarkError] unless released.
func WithOrderedMarks() Option {
	return func(c *config) {
		c.streaming = "WithOrderedMarks"
		c.orderedMarks = true
	}
}

// WithFlushInterval sets how long a streaming coordinator waits for more applied records
// before it marks those that it has. The default is 100 ms. It marks sooner when a batch
// is full, and when there is nothing else to do.
func WithFlushInterval(d time.Duration) Option {
	return func(c *config) {
		c.streaming = "WithFlushInterval"
		c.duration(c.streaming, &c.flushInterval, d)
	}
}

// WithDrainTimeout sets how long the work in flight may continue after a stop before its
// context is cancelled. The default is 10 seconds. The coordinator then marks the applied
// records and releases the rest, and ends the contexts of those calls so that Start
// returns within twice the drain timeout. If an apply ignored its context, marks and
// releases still get half a drain timeout.
//
// When the drain timeout passes, the coordinator logs the names of the records in
// progress. A worker of a polling coordinator takes up to 16 records at a time, unless
// there is an order key. If its records took less than a microsecond each so far, the log
// names the whole range instead of the one record in progress.
//
// A call of a [DLQ] gets 10 seconds, or the drain timeout if that is less, and ends with
// the drain timeout of a stop. Records whose last attempt fails as the drain ends share
// half a drain timeout in which they are parked.
func WithDrainTimeout(d time.Duration) Option {
	return func(c *config) { c.duration("WithDrainTimeout", &c.drainTimeout, d) }
}

// WithStallAfter sets how long a record may be in progress before the coordinator reports
// it. The default is 30 seconds. Nothing is cancelled: a call that does not return keeps
// its worker, and a stop waits for it up to the drain timeout. To end a call, give it a
// timeout, see [WithAttemptTimeout] and [ResilientConfig].AttemptTimeout.
//
// The log names the record, its attempt and how long it has been in progress at least:
// once at Warn, again every 5 minutes, and at Info when the call has returned; see also
// Observer.Stalled. For as long as it lasts, Ready returns an error that says the same,
// and Stats().OldestInWork says how long that is. So set it above the longest call of a
// healthy destination. The time is that of one attempt: a wait between two attempts does
// not count, except in a fan-out whose other branches go on. Records in one call of
// ApplyBatch are in progress together, and the first of them is named.
//
// While anything is in progress, the coordinator looks at its workers every quarter of d
// (at least a millisecond). So the log reports a hanging record after d to one and a
// quarter of d, and the return of its call up to a quarter later; Ready and Stats have
// both immediately. For a worker of a polling coordinator that was fast until then, the
// range of records is reported, see [WithDrainTimeout].
func WithStallAfter(d time.Duration) Option {
	return func(c *config) { c.duration("WithStallAfter", &c.stallAfter, d) }
}

// WithClock sets the clock of the coordinator. The default is the system's clock.
// Decorators have a clock of their own in their policies; [SyncWithRetry] uses this one.
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

// WithRandom sets the source of uniform values in [0, 1) that spread delays. The default
// is math/rand/v2's Float64. It must be safe for concurrent use. If it panics, or returns
// a value outside that range, 0.5 is used instead.
func WithRandom(random func() float64) Option {
	return func(c *config) {
		if random == nil {
			c.refuse("WithRandom", "is nil")
			return
		}
		c.random = random
	}
}

// WithLogger sets the logger of a coordinator. It logs failures and parked records at Warn
// and Error, and recoveries at Info. A Fetch that fails with [RetryAfter] is logged at
// Info. The default is slog.Default(); use slog.New(slog.DiscardHandler) for silence.
//
// A message that repeats, whatever numbers are in its error, is logged the 1st, 10th,
// 100th and 1000th time and the first time after 5 minutes, with the count, and once more
// when it is over. The pauses of an outage count as one message. No single event shows
// that records no longer fail, or no longer go to the dead letter queue in large numbers.
// That is logged with the first event after a minute or more without such a failure (up
// to an hour, if failures come at longer intervals). The log remembers the latest 256
// different errors. It has at most 8 kB of the text of an error, a stack or a record's
// name, and says how many bytes it left out.
func WithLogger(logger *slog.Logger) Option {
	return func(c *config) {
		if logger == nil {
			c.refuse("WithLogger", "is nil: for silence pass slog.New(slog.DiscardHandler)")
			return
		}
		c.logger = logger
	}
}

// WithObserver adds an observer that is told what the coordinator does, in addition to
// the log. It may be given several times.
func WithObserver(o Observer) Option {
	return func(c *config) { c.observers = append(c.observers, o) }
}

// pace returns the interval, spread at random unless it is fixed.
func (c *config) pace() time.Duration {
	if c.fixed {
		return c.interval
	}
	return max(1, backoff.Within(float64(c.interval)*(0.9+0.2*uniform(c.random)), math.MaxInt64))
}

// callPace is how fast a coordinator tries again what fails: a call of the source, or to
// settle records that a dead letter queue refuses.
type callPace struct {
	tries int
}

// delay returns how long to wait after another failure: twice as long each time, up to 30
// seconds.
func (p *callPace) delay(c *config) time.Duration { return p.upTo(30*time.Second, c) }

func (p *callPace) upTo(longest time.Duration, c *config) time.Duration {
	p.tries++
	policy := backoff.Policy{Base: 100 * time.Millisecond, Max: longest, Multiplier: 2, Jitter: backoff.Equal}
	return policy.Delay(p.tries, 0, uniform(c.random))
}

// maxCallAfter is the longest delay that a coordinator accepts from an error of Fetch or
// Mark, and a breaker by default.
const maxCallAfter = time.Hour

// maxCallPace is the longest backoff after an error of the source, so that delivery
// resumes soon after an outage of any length.
const maxCallPace = 5 * time.Second

// after returns the backoff of calls of the source, or the delay that the error asks for
// if that is longer.
func (p *callPace) after(c *config, err error) time.Duration {
	return max(p.upTo(maxCallPace, c), afterOf(err, maxCallAfter))
}

// atStop is after while the coordinator stops: a delay that an error asks for counts only
// if it leaves time for another try, see lifecycle.
func (p *callPace) atStop(c *config, err error) time.Duration {
	delay := p.delay(c)
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
