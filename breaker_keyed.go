package courier

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

// KeyedBreaker is an applier with a breaker for each key of its records.
// [NewKeyedCircuitBreakerApplier] makes one. It is as safe for concurrent use as the
// applier.
type KeyedBreaker[T any] struct {
	stage[T]
	key func(T) string
	set keyBreakers
}

// NewKeyedCircuitBreakerApplier puts an applier behind one breaker for each key of its
// records: a host, a tenant, a topic. If one applier serves many destinations, a dead one
// then does not stop the others. The policy applies to each breaker. The name of a
// breaker is its key, after the policy's own name and a slash if there is one. An empty
// key is a key like any other.
//
// While the breaker of a key is open, Apply makes no call and returns an error that is an
// [*OpenError] to errors.As and whose class is ClassNotAttempted. A coordinator does not
// stop its intake for it: the record waits in hand until its breaker admits a probe, like
// a record that asks for that with [Later], and the others go on. Intake pauses only once
// such records are all that may be in hand ([ErrFullHand]). So give the coordinator room
// for the records of a destination during an outage, or use a source that takes records
// back ([Releaser], [Failer]). If the source does neither, its records need names, by
// [Identifier] or [WithIdentity]; otherwise no more are fetched until the waiting ones
// are settled.
//
// What counts as a failure, and as an attempt of a record, is as with
// [NewCircuitBreakerApplier], for each key by itself. A record that has not failed a
// probe goes first as the next probe. One that failed a probe gives way to others of its key for
// 10 ms, and for twice as long each time that none came, up to a minute. A record that keeps
// failing is parked once others of its key succeed. If it is the only one of its key, it stays pending until enough others of the
// key get through, because only they show whether the destination is down. A panic in the
// key function is a failure of its record, and of no breaker.
//
// In a batch, the records whose breakers refuse are listed in a [*BatchError], and the
// others go in one call. For the breaker of each key that is one call, judged by the
// records of the key; a batch that fails as a whole has failed for each of them. A probe
// is one record, together with records of other keys.
//
// At most [BreakerPolicy].MaxKeys breakers are kept; a breaker that never failed is not
// kept, unless a rate is set. The decorator belongs where a breaker belongs, inside a
// retry and a dead letter queue, and is refused around them; [ResilientConfig].BreakerKey
// puts it there. A success costs a look-up of its key under a lock, and allocates
// nothing.
func NewKeyedCircuitBreakerApplier[T any](applier Applier[T], key func(T) string, policy BreakerPolicy) *KeyedBreaker[T] {
	return newKeyedBreaker(applier, key, policy, nil)
}

func newKeyedBreaker[T any](applier Applier[T], key func(T) string, policy BreakerPolicy, fault error) *KeyedBreaker[T] {
	fault = firstFault(fault, policy.validate())
	if key == nil {
		fault = firstFault(fault, &ConfigError{"key", "is nil: pass a function that tells the host, tenant or topic of a record, or use NewCircuitBreakerApplier"})
	}
	a := &KeyedBreaker[T]{stage: newStage(breaking, applier, fault), key: key}
	a.set.init(policy)
	a.tells.of, a.tells.clock, a.tells.keyed = a, a.set.clock, a.Metrics
	return a
}

var errZeroKeyed = &ConfigError{"keyed breaker", "is the zero value: make it with NewKeyedCircuitBreakerApplier"}

// Validate reports a fault of the breaker or of what it decorates.
func (a *KeyedBreaker[T]) Validate() error {
	if a.set.byKey == nil {
		return errZeroKeyed
	}
	return a.fault
}

func (a *KeyedBreaker[T]) describe() *layer {
	if a == nil || a.tells == nil {
		return &layer{kind: breaking, fault: errZeroKeyed}
	}
	return a.tells
}

// refuse returns why there is no call to be made.
func (a *KeyedBreaker[T]) refuse(ctx context.Context) error {
	if fault := a.Validate(); fault != nil {
		return fault
	}
	return a.stage.refuse(ctx)
}

// State returns the state of a key's breaker, BreakerClosed if the key has none yet.
func (a *KeyedBreaker[T]) State(key string) BreakerState {
	if e := a.set.known(key); e != nil {
		return e.State()
	}
	return BreakerClosed
}

// Metrics returns a snapshot of the breakers that are not closed, by name. While few
// destinations are down these are few, and never many more than BreakerPolicy.MaxKeys.
func (a *KeyedBreaker[T]) Metrics() (open []BreakerMetrics) {
	for _, e := range a.set.all() {
		if m := e.Metrics(); m.State != BreakerClosed {
			open = append(open, m)
		}
	}
	slices.SortFunc(open, func(a, b BreakerMetrics) int { return cmp.Compare(a.Name, b.Name) })
	return open
}

// ForceOpen refuses the records of a key until Reset or ForceClosed is called for it.
// They ask again every five seconds. A forced breaker is kept in addition to
// BreakerPolicy.MaxKeys.
func (a *KeyedBreaker[T]) ForceOpen(key string) { a.force(key, (*Breaker).ForceOpen) }

// ForceClosed admits all records of a key until Reset or ForceOpen is called for it,
// whatever their results.
func (a *KeyedBreaker[T]) ForceClosed(key string) { a.force(key, (*Breaker).ForceClosed) }

// Reset closes the breaker of the key, which then decides by itself again. It ends
// ForceOpen and ForceClosed, and also closes a breaker that opened by itself. It wakes no
// record that waits: each comes when the open period is over in which it was refused, or when
// the coordinator is started again.
func (a *KeyedBreaker[T]) Reset(key string) {
	if e := a.set.known(key); e != nil {
		e.Reset()
	}
}

func (a *KeyedBreaker[T]) force(key string, how func(*Breaker)) {
	if a.set.byKey == nil {
		return
	}
	e := a.set.made(key)
	how(e.Breaker)
	a.set.keep(e) // it may have been forgotten before it was forced
}

// keyCall is a call to the breaker of a key.
type keyCall struct {
	key    string
	known  bool        // the key is
	of     *keyBreaker // nil where the key had none
	permit Permit
	births uint64 // when there was none
	unmet  int    // see usage
}

// Apply applies the record, or returns the error of a breaker that refuses it.
func (a *KeyedBreaker[T]) Apply(ctx context.Context, record T) (err error) {
	if a.fault != nil || a.key == nil || ctx == nil || ctx.Err() != nil {
		return a.refuse(ctx)
	}
	var call keyCall
	returned := false
	defer func() {
		if !returned {
			err = a.panicked(ctx, &call, recover())
		}
	}()
	call.key = a.key(record)
	call.known = true
	if err = a.admit(ctx, &call, 0, 1); err != nil {
		returned = true
		return err
	}
	err = a.inner.Apply(ctx, record)
	returned = true
	if err == nil && a.well(&call) {
		return nil
	}
	err = a.sound(err)
	return a.failed(ctx, &call, err)
}

// panicked reports a panic of the applier or of the key function, or a Goexit, where the
// value is nil and nobody gets what is returned.
func (a *KeyedBreaker[T]) panicked(ctx context.Context, call *keyCall, value any) error {
	var err error = newPanicError(value)
	if call.known {
		err = a.failed(ctx, call, err)
	} else {
		err = unkeyedError(err)
	}
	if value == nil {
		leaveVerdict(ctx, a, err)
	}
	return err
}

func unkeyedError(err error) error {
	return fmt.Errorf("courier: the key of the record's breaker is not known: %w", err)
}

func (a *KeyedBreaker[T]) resume(ctx context.Context, record T, exit error) error {
	return resumed(ctx, a.inner, record, exit)
}

// admit asks the breaker of a key for a call, with record i of n in ctx.
func (a *KeyedBreaker[T]) admit(ctx context.Context, call *keyCall, i, n int) error {
	call.of, call.births = a.set.find(call.key)
	if call.of == nil {
		return nil
	}
	if seq := call.of.calm.Load(); seq != 0 {
		call.permit = calmPermit(seq)
		return nil
	}
	var past usage
	if all := historiesIn(ctx, n); all != nil {
		past = all[i].by(a)
	}
	period, ready := call.of.period()
	if ready && call.of.givesWay(period, &past) {
		return a.waits(call.of.refusalNow(), past, yield(past.unmet))
	}
	var err error
	if call.permit, err = call.of.acquire(ctx); err == nil {
		if call.permit.permit.Probe && past.yielded == period {
			call.unmet = past.unmet + 1
		}
		return nil
	}
	open, ours := err.(*OpenError)
	if !ours {
		return err
	}
	call.of.waitsIn(period, past.used)
	return a.waits(open, past, keyWait)
}

// well reports whether a success has nothing to tell the breaker.
func (a *KeyedBreaker[T]) well(call *keyCall) bool {
	if call.of == nil {
		return a.set.births.Load() == call.births
	}
	seq := call.permit.permit.Seq
	return !call.permit.permit.Probe && call.of.calm.Load() == seq
}

// report gives the verdict of a call. The breaker of a key that had none when the call
// began is made by the first failure: before that it had nothing to remember.
func (a *KeyedBreaker[T]) report(ctx context.Context, call *keyCall, outcome breaker.Outcome, counts bool, v verdicts) *OpenError {
	if call.of == nil {
		switch outcome {
		case breaker.Failure, breaker.Mixed:
			call.of = a.set.made(call.key)
		default:
			if call.of = a.set.known(call.key); call.of == nil {
				return nil
			}
		}
		call.permit = calmPermit(call.of.first)
	}
	return call.of.report(ctx, call.permit, outcome, counts, v)
}

// failed gives the verdict of a call on one record, and returns the record's error.
func (a *KeyedBreaker[T]) failed(ctx context.Context, call *keyCall, err error) error {
	return a.judged(ctx, call, a.report(ctx, call, outcomeOf(ctx, err), true, verdicts{whole: err}), err)
}

// judged returns a record's error, which waits where its own failure has opened the
// breaker or kept it open.
func (a *KeyedBreaker[T]) judged(ctx context.Context, call *keyCall, open *OpenError, err error) error {
	own, is := open.over(ctx, err).(*OpenError)
	if !is || open == nil || own.of != open.of {
		return err
	}
	return a.waits(own, usage{used: call.of.failedProbe(), unmet: call.unmet}, keyWait)
}

const (
	// keyWait is the shortest wait of a record whose breaker was to admit a probe by now,
	// and longestKeyWait the longest: that of another record is under way.
	keyWait, longestKeyWait = 10 * time.Millisecond, time.Second

	// longestYield is the longest time for which a record gives way to others of its key.
	longestYield = time.Minute

	// forcedKeyWait is how often the records of a key ask whose breaker is forced open.
	forcedKeyWait = 5 * time.Second
)

// yield is how long a record gives way to others of its key, which may be at the source
// and come with the next fetch: twice as long after each time that none came.
func yield(unmet int) time.Duration { return min(keyWait<<min(unmet, 16), longestYield) }

// waits returns an error with which a record waits until its breaker may be probed. While
// somebody else's probe is out it waits for as long again as that has taken, and for least at
// least.
func (a *KeyedBreaker[T]) waits(open *OpenError, past usage, least time.Duration) error {
	after := forcedKeyWait
	if open.due.clock != nil {
		left := open.due.at.Sub(a.set.clock.Now())
		if after = min(left, maxAfter); left <= 0 {
			after = max(min(-left, longestKeyWait), least)
		}
	}
	e := &askedLaterError{err: open, after: after}
	if past.used > 0 {
		past.owner, past.together = a, true
		e.usage = &past
	}
	return e
}

// ApplyBatch applies the records whose breakers admit them, in one call.
func (a *KeyedBreaker[T]) ApplyBatch(ctx context.Context, records []T) error {
	return applyMany(ctx, BatchApplier[T](a), records).err()
}

func (a *KeyedBreaker[T]) applyMany(ctx context.Context, records []T) verdicts {
	if ctx.Err() != nil {
		return verdicts{whole: a.refuse(ctx)}
	}
	calls := a.admitAll(ctx, records)
	share, index := ctx, []int(nil)
	if calls.errs != nil {
		if index = calls.let(); len(index) == 0 {
			return apart(calls.errs)
		}
		share, records = shareOf(ctx, records, index)
	}
	v := a.attemptBatch(share, records)
	switch {
	case v.ok():
		for c := range calls.each {
			if call := &calls.each[c]; !a.well(call) {
				_ = a.report(ctx, call, breaker.Success, true, v)
			}
		}
		return apart(calls.errs)
	case v.whole != nil && len(records) > 1:
		return a.failedAsOne(ctx, calls, v)
	case index == nil:
		return a.failedApart(ctx, calls, v.of(len(records)))
	}
	v.scatter(index, calls.errs)
	return a.failedApart(ctx, calls, calls.errs)
}

// keysOf returns the keys of records, and the errors of those whose key is not known, nil
// where there is none.
func (a *KeyedBreaker[T]) keysOf(records []T) (keys []string, errs []error) {
	keys = make([]string, len(records))
	for next := 0; next < len(records); {
		var err error
		isolate(&err, func() error {
			for ; next < len(records); next++ {
				keys[next] = a.key(records[next])
			}
			return nil
		})
		if err != nil {
			if errs == nil {
				errs = make([]error, len(records))
			}
			errs[next] = unkeyedError(err)
			next++
		}
	}
	return keys, errs
}

// keyCalls is the calls to breakers that one call of a batch is.
type keyCalls struct {
	each []keyCall
	of   []int   // which of them a record is in, -1 where it is in none
	errs []error // of the records that are in none, by index; nil where there is none
}

func (c *keyCalls) refuse(i int, err error) {
	if c.errs == nil {
		c.errs = make([]error, len(c.of))
	}
	c.errs[i], c.of[i] = err, -1
}

// let returns the indices of the records that are in a call.
func (c *keyCalls) let() (index []int) {
	for i, call := range c.of {
		if call >= 0 {
			index = append(index, i)
		}
	}
	return index
}

// admitAll asks for calls with the records of a batch, one for each key; but one for each
// record where the key's breaker is not closed: a probe is one record. Where the order is
// kept inside a call, none goes that is behind one with an error, and takes no other's
// place as a probe.
func (a *KeyedBreaker[T]) admitAll(ctx context.Context, records []T) *keyCalls {
	keys, errs := a.keysOf(records)
	calls := &keyCalls{of: make([]int, len(keys)), errs: errs}
	byKey := make(map[string]int)
	behind := false
	for i, key := range keys {
		if errs != nil && errs[i] != nil {
			calls.of[i], behind = -1, a.order
			continue
		}
		if behind {
			calls.refuse(i, ErrBehindFailed)
			continue
		}
		c, met := byKey[key]
		if !met {
			call := keyCall{key: key, known: true}
			if err := a.admit(ctx, &call, i, len(keys)); err != nil {
				calls.refuse(i, err)
				behind = a.order
				continue
			}
			c = len(calls.each)
			calls.each = append(calls.each, call)
			if !call.permit.permit.Probe {
				byKey[key] = c
			}
		}
		calls.of[i] = c
	}
	return calls
}

// failedAsOne reports a call that failed as one. That can be held against no record, and
// so each is to go alone (D3): the error is of all, those included that were refused.
func (a *KeyedBreaker[T]) failedAsOne(ctx context.Context, calls *keyCalls, v verdicts) verdicts {
	outcome := v.outcome(ctx)
	for c := range calls.each {
		_ = a.report(ctx, &calls.each[c], outcome, false, v)
	}
	if class := classify(ctx, v.whole); calls.errs == nil || class == ClassRetryable || class == ClassPermanent {
		return v
	}
	for i, c := range calls.of {
		if c >= 0 {
			calls.errs[i] = v.whole
		}
	}
	return apart(calls.errs)
}

// failedApart reports a call in which single records failed, to each breaker those of its
// key.
func (a *KeyedBreaker[T]) failedApart(ctx context.Context, calls *keyCalls, errs []error) verdicts {
	groups := make([][]int, len(calls.each))
	for i, c := range calls.of {
		if c >= 0 {
			groups[c] = append(groups[c], i)
		}
	}
	for c, index := range groups {
		call, own, cause := &calls.each[c], make([]error, len(index)), new(BatchError)
		for j, i := range index {
			if own[j] = errs[i]; own[j] != nil {
				cause.Add(i, own[j])
			}
		}
		open := a.report(ctx, call, apart(own).outcome(ctx), true, verdicts{whole: cause.ErrorOrNil()})
		for j, i := range index {
			errs[i] = a.judged(ctx, call, open, own[j])
		}
	}
	return apart(errs)
}
