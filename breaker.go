package courier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

// BreakerPolicy configures a [Breaker]. The zero value is the default: it opens after
// five failures in a row. With a rate and no FailureThreshold it opens by the rate alone;
// with both, by whichever is reached first.
type BreakerPolicy struct {
	// Name is what errors, events and Stats call the breaker, such as that of the
	// destination. Empty is no name.
	Name string

	// FailureThreshold is how many calls must fail in a row for the breaker to open. 0 is
	// 5, or off if a rate is set. With a retry around the breaker it should be at least 2
	// and at most RetryPolicy.MaxAttempts: with 1, every bad record opens it and is never
	// parked; above MaxAttempts, the first record of an outage runs out of attempts
	// before the breaker opens.
	//
	// A success resets the count. Only failures that came one after another, as the attempts
	// on a record do, and all after that success had begun, stay counted: it says nothing
	// about the time since.
	FailureThreshold int

	// FailureRate opens the breaker when this fraction, in (0, 1], of the calls in the
	// window has failed. 0 is off.
	FailureRate float64

	// SlowCallRate opens the breaker when this fraction of the calls in the window took
	// SlowCall or longer, whether they failed or not, because an outage that shows as
	// slowness causes no errors. 0 is off. SlowCallRate and SlowCall need each other.
	SlowCallRate float64
	SlowCall     time.Duration

	// MinCalls is how many calls must be in the window for a rate to mean
	// something. 0 is 20.
	MinCalls int

	// Window is the time over which the rates are measured; 0 is 30 seconds. WindowCalls
	// measures them over that many calls instead. A call counts when it ends.
	Window      time.Duration
	WindowCalls int

	// OpenFor is how long the breaker first stays open before it admits a probe. 0 is one
	// second, which is what a poison record that looks transient costs the others. Each
	// failed probe multiplies the period by OpenMultiplier (0 is 2, 1 keeps it) up to
	// MaxOpenFor (0 is one minute, or OpenFor if that is longer).
	OpenFor, MaxOpenFor time.Duration
	OpenMultiplier      float64

	// MaxRetryAfter caps the open period that a failure asks for with [RetryAfter]. The
	// breaker stays open for that long if its own period would be shorter, after the
	// failure that opened it and after a failed probe. 0 is one hour.
	MaxRetryAfter time.Duration

	// Jitter spreads an open period by up to this fraction either way, below MaxOpenFor,
	// so that several processes do not probe together. 0 is 0.2. It must be less than 1.
	// DisableJitter turns it off; Jitter must then be 0.
	Jitter        float64
	DisableJitter bool

	// Probes is how many calls are admitted at the same time while half-open, and
	// Successes how many of them must succeed, with no failure in between, to close the
	// breaker. 0 is 1 for both.
	Probes, Successes int

	// ProbeTimeout is how long probes may run without any result before the breaker opens
	// again without them. 0 is one minute, or OpenFor if that is longer.
	ProbeTimeout time.Duration

	// MaxKeys is how many breakers a keyed breaker keeps, see
	// [NewKeyedCircuitBreakerApplier]; 0 is 1,000. Beyond that it drops the closed breaker
	// that was not used for the longest, and an open one only if none is closed. Records
	// use attempts again until a breaker that was dropped has opened once more, so set
	// MaxKeys above the number of destinations that may be down together. For one breaker
	// it must be 0.
	MaxKeys int

	// OnStateChange is called after each transition, once and in order, outside any lock,
	// on the goroutine of the call that made it or of a concurrent one. It may call any
	// method of the breaker; a panic in it does no harm.
	OnStateChange func(ctx context.Context, change BreakerChange)

	// Clock is nil for the system's clock, Random for math/rand/v2's Float64, see
	// [WithRandom]. Both must be safe for concurrent use.
	Clock  Clock
	Random func() float64
}

func (p BreakerPolicy) rated() bool { return p.FailureRate != 0 || p.SlowCallRate != 0 }

func (p BreakerPolicy) withDefaults() BreakerPolicy {
	if !p.rated() {
		p.FailureThreshold = or(p.FailureThreshold, 5)
	}
	p.MinCalls = or(p.MinCalls, 20)
	if p.WindowCalls == 0 {
		p.Window = or(p.Window, 30*time.Second)
	}
	p.OpenFor = or(p.OpenFor, time.Second)
	p.MaxOpenFor = or(p.MaxOpenFor, max(time.Minute, p.OpenFor))
	p.OpenMultiplier = or(p.OpenMultiplier, 2)
	p.MaxRetryAfter = or(p.MaxRetryAfter, maxCallAfter)
	if !p.DisableJitter {
		p.Jitter = or(p.Jitter, 0.2)
	}
	p.Probes = or(p.Probes, 1)
	p.Successes = or(p.Successes, 1)
	p.ProbeTimeout = or(p.ProbeTimeout, max(time.Minute, p.OpenFor))
	p.Clock = clockOr(p.Clock)
	return p
}

func (p BreakerPolicy) validate() error {
	share := func(v float64) bool { return v >= 0 && v <= 1 } // NaN is none
	const count, time = "at least 1, or 0 for the default", "more than 0, or 0 for the default"
	d := p.withDefaults()
	fault := boundsFault("BreakerPolicy", []bound{
		{"FailureThreshold", p.FailureThreshold, p.FailureThreshold >= 0, count},
		{"FailureRate", p.FailureRate, share(p.FailureRate), "more than 0 and at most 1, or 0 for off"},
		{"SlowCallRate", p.SlowCallRate, share(p.SlowCallRate), "more than 0 and at most 1, or 0 for off"},
		{"SlowCall", p.SlowCall, p.SlowCall >= 0, "more than 0, or 0 for off"},
		{"MinCalls", p.MinCalls, p.MinCalls >= 0, count},
		{"Window", p.Window, p.Window >= 0, time},
		{"WindowCalls", p.WindowCalls, p.WindowCalls >= 0 && p.WindowCalls <= maxCount, fmt.Sprintf("1 to %d, or 0 for a window of time", maxCount)},
		{"OpenFor", p.OpenFor, p.OpenFor >= 0, time},
		{"MaxOpenFor", p.MaxOpenFor, p.MaxOpenFor >= 0, time},
		{"MaxOpenFor", p.MaxOpenFor, d.MaxOpenFor >= d.OpenFor, fmt.Sprintf("at least OpenFor (%v)", d.OpenFor)},
		{"OpenMultiplier", p.OpenMultiplier, d.OpenMultiplier >= 1 && !math.IsInf(d.OpenMultiplier, 1), "a finite number of at least 1, or 0 for the default"},
		{"MaxRetryAfter", p.MaxRetryAfter, p.MaxRetryAfter >= 0, time},
		{"Jitter", p.Jitter, p.Jitter >= 0 && p.Jitter < 1, "at least 0 and less than 1"},
		{"Jitter", p.Jitter, p.Jitter == 0 || !p.DisableJitter, "0 where DisableJitter is true"},
		{"Probes", p.Probes, p.Probes >= 0, count},
		{"Successes", p.Successes, p.Successes >= 0, count},
		{"MaxKeys", p.MaxKeys, p.MaxKeys >= 0 && p.MaxKeys <= maxCount, fmt.Sprintf("1 to %d, or 0 for the default", maxCount)},
		{"ProbeTimeout", p.ProbeTimeout, p.ProbeTimeout >= 0, time},
	})
	switch {
	case fault != nil:
		return fault
	case (p.SlowCall == 0) != (p.SlowCallRate == 0):
		return &ConfigError{"BreakerPolicy.SlowCall", fmt.Sprintf("is %v with a SlowCallRate of %v: set both or neither", p.SlowCall, p.SlowCallRate)}
	case p.Window != 0 && p.WindowCalls != 0:
		return &ConfigError{"BreakerPolicy.WindowCalls", "is set beside Window: set one of them"}
	case p.rated() && p.WindowCalls != 0 && d.MinCalls > p.WindowCalls:
		return &ConfigError{"BreakerPolicy.MinCalls", fmt.Sprintf("is %d, more than the %d calls that the window holds", d.MinCalls, p.WindowCalls)}
	}
	return clockFault("BreakerPolicy.Clock", p.Clock)
}

// BreakerState is what a breaker does with calls.
type BreakerState string

// The states of a breaker.
const (
	BreakerClosed       BreakerState = "closed"        // all calls pass
	BreakerOpen         BreakerState = "open"          // none do
	BreakerHalfOpen     BreakerState = "half-open"     // a few probes do
	BreakerForcedOpen   BreakerState = "forced open"   // none do, until Reset
	BreakerForcedClosed BreakerState = "forced closed" // all do, until Reset
)

// BreakerChange is a transition of a breaker.
type BreakerChange struct {
	Breaker    string // its name, "" if it has none
	From, To   BreakerState
	At         time.Time
	Until      time.Time // of an open period: when a probe is admitted
	Cause      error     // of an open period: what opened it
	Generation uint64    // counts the transitions
}

// Breaker stops calls to a destination that is down, and detects when it is up again.
// Several appliers may share one if they share the destination. It is safe for concurrent
// use, has no goroutine or timer, and never blocks, except for the listener of its
// policy.
//
// An open breaker does not change by itself: the first call after the open period makes
// it half-open. So do not wait for State to change before you call; use Ready.
type Breaker struct {
	policy BreakerPolicy
	kernel breaker.Policy
	clock  *steady
	fault  error

	// calm is what the permits of a closed phase carry while no failure counts in it, or
	// 0. A success then has nothing to write, and calls need not take the lock. With a
	// window it is always 0: every result counts.
	calm     atomic.Uint64
	rejected atomic.Uint64

	mu      sync.Mutex
	hearers []chan<- struct{} // of coordinators that may wait for it
	state   breaker.State
	refusal *OpenError // what calls are refused with while not closed, made once
	opened  uint64
	stale   uint64
	changes []BreakerChange // not told yet
	telling bool            // somebody does
}

// NewBreaker returns a closed breaker. A bad policy is reported by Acquire and
// by the Apply of the appliers that use it.
func NewBreaker(policy BreakerPolicy) *Breaker {
	p := policy.withDefaults()
	b := &Breaker{policy: p, fault: policy.validate(), clock: newSteady(p.Clock), kernel: breaker.Policy{
		FailureThreshold: p.FailureThreshold,
		FailureRate:      p.FailureRate,
		SlowCallRate:     p.SlowCallRate,
		MinCalls:         p.MinCalls,
		Window:           p.Window,
		WindowCalls:      p.WindowCalls,
		OpenFor:          p.OpenFor,
		MaxOpenFor:       p.MaxOpenFor,
		OpenMultiplier:   p.OpenMultiplier,
		MaxAfter:         p.MaxRetryAfter,
		Jitter:           p.Jitter,
		Probes:           p.Probes,
		Successes:        p.Successes,
		ProbeTimeout:     p.ProbeTimeout,
	}}
	if policy.MaxKeys != 0 {
		b.fault = firstFault(b.fault, errOneBreaker)
	}
	b.state.Force(breaker.Closed) // so that no permit carries 0
	b.settled()
	return b
}

var errOneBreaker = &ConfigError{"BreakerPolicy.MaxKeys", "is set for a single breaker: leave it out, or use NewKeyedCircuitBreakerApplier or ResilientConfig.BreakerKey"}

var errZeroBreaker = &ConfigError{"breaker", "is nil or the zero value: make it with NewBreaker"}

// zero reports whether there is nothing to ask.
func (b *Breaker) zero() bool { return b == nil || b.policy.Clock == nil }

// now reads the clock; the zero Breaker, which guards nothing, has none.
func (b *Breaker) now() time.Time {
	if b.clock == nil {
		return time.Time{}
	}
	return b.clock.Now()
}

// Permit is the right to make one call. Return it with Report.
type Permit struct {
	permit breaker.Permit
	start  time.Time // where slow calls matter
}

// Acquire asks to make a call, for code that is no [Applier]. It returns a permit, an
// [*OpenError], or a [*ConfigError]; if ctx has ended, it returns the cause as an error
// of ClassNotAttempted. Every permit must be returned with Report of this breaker, once,
// whatever the call does.
func (b *Breaker) Acquire(ctx context.Context) (Permit, error) {
	switch {
	case b.zero():
		return Permit{}, errZeroBreaker
	case b.fault != nil:
		return Permit{}, b.fault
	case ctx == nil:
		return Permit{}, errNoContext
	case ctx.Err() != nil:
		return Permit{}, unattempted(causeOf(ctx))
	}
	return b.acquire(ctx)
}

func calmPermit(seq uint64) Permit { return Permit{permit: breaker.Permit{Seq: seq}} }

func (b *Breaker) acquire(ctx context.Context) (Permit, error) {
	if seq := b.calm.Load(); seq != 0 {
		return calmPermit(seq), nil
	}
	now, random := b.clock.Now(), uniform(b.policy.Random)
	b.mu.Lock()
	from, gen := b.state.Phase, b.state.Gen
	permit, ok, timedOut := b.state.Acquire(&b.kernel, now, random)
	switch {
	case timedOut:
		b.refusal = b.openError(b.state.Until, ErrProbeTimeout)
	case b.state.Gen != gen: // half-open from here on: worth asking again at any time
		b.refusal = b.openError(now, b.refusal.Cause)
	}
	changed := b.state.Gen != gen
	if changed {
		b.changed(from, now)
	}
	var refusal *OpenError
	if !ok {
		refusal = b.refused()
	}
	b.mu.Unlock()
	if changed {
		b.tell(ctx)
	}
	if !ok {
		b.rejected.Add(1)
		return Permit{}, refusal
	}
	p := Permit{permit: permit}
	if b.policy.SlowCall > 0 {
		p.start = now
	}
	return p, nil
}

// Report returns a permit with the result of its call; ctx is the context of the call. If
// the result opened the breaker, the returned error is an [*OpenError] that wraps err, or
// a [*BatchError] of such errors if err is one. Otherwise it is err. An err that cannot
// be used, such as a nil pointer, counts as a failure and is replaced by an error that
// says so.
func (b *Breaker) Report(ctx context.Context, permit Permit, err error) error {
	err = sound(err)
	if ctx == nil { // the permit is to be given back all the same
		ctx = context.Background()
	}
	if b.zero() {
		return err
	}
	open := b.report(ctx, permit, outcomeOf(ctx, err), true, verdicts{whole: err})
	list, _ := batchErrorIn(err)
	if open == nil || list == nil {
		return open.over(ctx, err)
	}
	all := new(BatchError)
	for _, f := range list.Failures {
		all.Add(f.Index, open.over(ctx, sound(f.Err)))
	}
	return all
}

// report gives the verdict of a call, and returns the error that its failures are
// wrapped in when the breaker is open because of it. counts says whether a failure can be
// held against every record of the call.
func (b *Breaker) report(ctx context.Context, permit Permit, outcome breaker.Outcome, counts bool, v verdicts) *OpenError {
	if outcome == breaker.Success && b.calm.Load() == permit.permit.Seq {
		return nil
	}
	now, random, after := b.clock.Now(), 0.5, time.Duration(0)
	slow := b.policy.SlowCall > 0 && now.Sub(permit.start) >= b.policy.SlowCall
	failed := outcome == breaker.Failure || outcome == breaker.Mixed
	if failed || slow { // what may open it
		random, after = uniform(b.policy.Random), v.after(b.policy.MaxRetryAfter)
	}
	b.mu.Lock()
	from, gen := b.state.Phase, b.state.Gen
	if b.state.Report(&b.kernel, permit.permit, outcome, slow, after, now, random) {
		b.stale++
	}
	b.settled()
	changed := b.state.Gen != gen
	if changed {
		if b.state.Phase == breaker.Open {
			cause := v.err()
			if cause == nil {
				cause = ErrSlow
			}
			b.refusal = b.openError(b.state.Until, cause)
		}
		b.changed(from, now)
	}
	passing, refusal := b.state.Phase.Passing(), b.refusal
	b.mu.Unlock()
	if changed {
		b.tell(ctx)
	}
	// By the permit, not by the state: it is the call's own phase that says
	// whether its failure counts against the record (P-1).
	switch {
	case !failed:
	case !passing:
		return &OpenError{Until: refusal.Until, Breaker: b.policy.Name, of: b, due: refusal.due, called: counts, counted: counts && !permit.permit.Probe}
	case permit.permit.Probe && outcome == breaker.Failure: // a late one: the breaker has closed without it
		late := b.openError(now, nil)
		late.called = counts
		return late
	}
	return nil
}

// State returns the state of the breaker. An open breaker stays open until the next call,
// see [Breaker].
func (b *Breaker) State() BreakerState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BreakerState(b.state.Phase.String())
}

// Ready reports whether a call would be admitted now. It takes no permit and changes
// nothing.
func (b *Breaker) Ready() bool {
	if b.calm.Load() != 0 {
		return true
	}
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Ready(&b.kernel, now)
}

// RetryAt returns the earliest time at which an open breaker admits a call. It is zero
// for a breaker that is not open, or that is forced open.
func (b *Breaker) RetryAt() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Phase != breaker.Open {
		return time.Time{}
	}
	return b.refused().Until
}

// BreakerMetrics is a snapshot of a breaker.
type BreakerMetrics struct {
	Name        string // "" if it has none
	State       BreakerState
	Until       time.Time // when open: the earliest probe
	Cause       error     // when not closed: what opened it
	Consecutive int       // failures in a row, while closed

	Calls, Failures, Slow int // in the window, if a rate is set

	Opened   uint64 // transitions to open
	Rejected uint64 // calls refused
	Stale    uint64 // results that came after their phase had ended, and do not count
}

// Metrics returns a snapshot.
func (b *Breaker) Metrics() BreakerMetrics {
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	m := BreakerMetrics{
		Name:        b.policy.Name,
		State:       BreakerState(b.state.Phase.String()),
		Consecutive: b.state.Streak(),
		Opened:      b.opened,
		Rejected:    b.rejected.Load(),
		Stale:       b.stale,
	}
	m.Calls, m.Failures, m.Slow = b.state.Counts(&b.kernel, now)
	if !b.state.Phase.Passing() {
		m.Until, m.Cause = b.refused().Until, b.refusal.Cause
	}
	return m
}

// ForceOpen refuses all calls until [Breaker.Reset] or ForceClosed. The breaker does not
// become half-open by itself. ForceOpen, ForceClosed and Reset immediately notify a
// coordinator that waits for the breaker.
func (b *Breaker) ForceOpen() {
	b.force(breaker.ForcedOpen, &OpenError{Cause: ErrForcedOpen, Breaker: b.policy.Name, of: b})
}

// ForceClosed admits all calls until [Breaker.Reset] or ForceOpen, whatever their
// results.
func (b *Breaker) ForceClosed() { b.force(breaker.ForcedClosed, nil) }

// Reset closes the breaker, which then decides by itself again. It ends ForceOpen and
// ForceClosed, and also closes a breaker that opened by itself.
func (b *Breaker) Reset() { b.force(breaker.Closed, nil) }

func (b *Breaker) force(phase breaker.Phase, refusal *OpenError) {
	now := b.now()
	b.mu.Lock()
	from := b.state.Phase
	b.state.Force(phase)
	b.refusal = refusal
	b.settled()
	b.changed(from, now)
	hearers := slices.Clone(b.hearers)
	b.mu.Unlock()
	b.tell(context.Background())
	for _, ch := range hearers {
		nudge(ch)
	}
}

// ErrOpen is what every [*OpenError] is, to errors.Is. So are the errors by which the sinks of
// couriernats and courierkafka say that their servers take nothing for now.
var ErrOpen = errors.New("courier: breaker open")

// OpenError says that the breaker admits no call, or that the call just made is the one
// that opened it. Its class is ClassNotAttempted: coordinators stop fetching until the
// given time.
type OpenError struct {
	Until   time.Time // when a probe is admitted; in the past if all probe slots are taken, zero if forced open
	Cause   error     // the failure that opened the breaker
	Breaker string    // its name, "" if it has none

	of      *Breaker
	called  bool   // the call was made, and Cause is its own failure
	counted bool   // the call was made while the breaker was closed, and counts as an attempt
	due     moment // Until
}

func (e *OpenError) Error() string {
	forced, open := ErrForcedOpen.Error(), "courier: breaker open"
	if e.Breaker != "" {
		forced += fmt.Sprintf(" (it is %q)", e.Breaker)
		open = fmt.Sprintf("courier: breaker %q open", e.Breaker)
	}
	switch {
	case e.Cause == ErrForcedOpen:
		return forced
	case e.Until.IsZero(): // it was, while the call was made
		return forced + "; the call failed: " + inner(e.Cause)
	}
	return fmt.Sprintf("%s, next probe at %s; opened by: %s", open, e.Until.Format(time.RFC3339), inner(e.Cause))
}

// Is reports whether err is [ErrOpen].
func (e *OpenError) Is(err error) bool { return err == ErrOpen }

// Unwrap returns Cause.
func (e *OpenError) Unwrap() error { return e.Cause }

// NotAttempted reports true.
func (e *OpenError) NotAttempted() bool { return true }

// RetryAt returns Until, adjusted if the breaker's clock was set back since.
func (e *OpenError) RetryAt() time.Time { return e.due.told(e.Until) }

// over returns the error of a record of the call that was reported, which is in this one
// if the record has failed.
func (e *OpenError) over(ctx context.Context, err error) error {
	if e == nil || outcomeOf(ctx, err) != breaker.Failure {
		return err
	}
	own := *e
	own.Cause = err
	return &own
}

// openError says that a probe may go from a time of the steady clock on.
func (b *Breaker) openError(until time.Time, cause error) *OpenError {
	return &OpenError{Until: b.clock.told(until), Cause: cause, Breaker: b.policy.Name, of: b, due: moment{b.clock, until}}
}

// refused returns what calls are refused with, anew where the clock was set back
// since. The lock is held.
func (b *Breaker) refused() *OpenError {
	if until := b.clock.told(b.refusal.due.at); !until.Equal(b.refusal.Until) {
		refusal := *b.refusal
		refusal.Until = until
		b.refusal = &refusal
	}
	return b.refusal
}

// ErrProbeTimeout is the cause of a breaker that opened again because its probes hung.
var ErrProbeTimeout = errors.New("courier: the breaker's probes gave no verdict within the probe timeout")

// ErrForcedOpen is the cause of a breaker that was opened by ForceOpen.
var ErrForcedOpen = errors.New("courier: the breaker was forced open, until Reset or ForceClosed is called")

// ErrSlow is the cause of a breaker that opened over calls that were slow, and
// not failed.
var ErrSlow = errors.New("courier: too many slow calls")

// passing reports whether every call is let through, without a look at the clock.
func (b *Breaker) passing() bool {
	if b.calm.Load() != 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Phase.Passing()
}

// gate tells what is to be known before anything is fetched.
func (b *Breaker) gate() gate {
	if b.calm.Load() != 0 {
		return gate{}
	}
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Phase.Passing() {
		return gate{}
	}
	if b.state.Ready(&b.kernel, now) {
		return gate{probe: true}
	}
	return gate{closed: true, until: b.refused().Until, cause: b.refusal}
}

// addListener has a channel get a value, if there is room, whenever somebody forces
// the breaker open or closed or ends that.
func (b *Breaker) addListener(ch chan<- struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hearers = append(b.hearers, ch)
}

func (b *Breaker) removeListener(ch chan<- struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.hearers, ch); i >= 0 {
		b.hearers = slices.Delete(b.hearers, i, i+1)
	}
}

// settled decides whether the fast path is open. The lock is held.
func (b *Breaker) settled() {
	seq := uint64(0)
	if b.state.Phase == breaker.ForcedClosed || b.state.Phase == breaker.Closed && b.state.Streak() == 0 && !b.kernel.Windowed() {
		seq = b.state.Seq
	}
	b.calm.Store(seq)
}

// changed notes a transition. The lock is held.
func (b *Breaker) changed(from breaker.Phase, now time.Time) {
	change := BreakerChange{
		Breaker: b.policy.Name,
		From:    BreakerState(from.String()), To: BreakerState(b.state.Phase.String()),
		At: b.clock.told(now), Generation: b.state.Gen,
	}
	if b.state.Phase == breaker.Open {
		b.opened++
	}
	if !b.state.Phase.Passing() {
		change.Until, change.Cause = b.refusal.Until, b.refusal.Cause
	}
	if b.policy.OnStateChange != nil {
		b.changes = append(b.changes, change)
	}
}

// tell calls the listener with what it has not been told, in order. One caller
// does it for all: a transition that the listener itself makes, or that comes
// meanwhile, is told behind.
func (b *Breaker) tell(ctx context.Context) {
	b.mu.Lock()
	if b.telling {
		b.mu.Unlock()
		return
	}
	b.telling = true
	for len(b.changes) > 0 {
		change := b.changes[0]
		b.changes = b.changes[1:]
		b.mu.Unlock()
		var ignored error
		isolate(&ignored, func() error {
			b.policy.OnStateChange(ctx, change)
			return nil
		})
		b.mu.Lock()
	}
	b.telling = false
	b.mu.Unlock()
}
