package courier

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

// KeyedBreaker is an applier behind a breaker for each key of its records. Make it with
// [NewKeyedCircuitBreakerApplier]. It is as safe for concurrent use as the applier.
type KeyedBreaker[T any] struct {
	stage[T]
	key func(T) string
	set keyBreakers
}

// NewKeyedCircuitBreakerApplier puts an applier behind one breaker for each key of its
// records: a host, a tenant, a topic. Where many destinations are behind one applier, a
// dead one then stops none of the others. The policy is that of each breaker, whose name
// is the key, after the policy's own name and a slash where it has one. An empty key is a
// key as any other.
//
// While the breaker of a key is open, Apply returns an error without a call that is an
// [*OpenError] to errors.As, and whose class is NotAttempted. A coordinator does not stop
// its intake over it: the record waits in hand until its breaker admits a probe, as one
// does that asks for that with [Later], and the others go on. Intake pauses only once such
// records are all that may be in hand ([ErrFullHand]), so give the coordinator room for
// what a destination gets during an outage, or a source that takes records back
// ([Releaser], [Failer]). The records of a source that has neither need names, by
// [Identifier] or [WithIdentity], as more is fetched only once those without are settled.
//
// What counts as a failure, and as an attempt of a record, is as with
// [NewCircuitBreakerApplier], for each key by itself. When a probe is due, a record goes
// first that has not failed one, and the others ask again a little later. A record that
// keeps failing is parked once others of its key get through; if it is the only one of its
// key it stays pending until another one comes, since only that can tell whether the
// destination is down. A key function that panics is a failure of its record, and of no
// breaker.
//
// In a batch, the records whose breakers refuse are listed in a [*BatchError], and the
// others go in one call. That is one call to the breaker of each key, which judges it by
// the records of the key; a batch that fails as one has failed for each of them. A probe is
// one record, beside those of other keys.
//
// The breakers of at most [BreakerPolicy].MaxKeys keys are kept, and of those that never
// failed, none unless a rate is set. It goes where a breaker goes, inside a retry and
// a dead letter queue, and is refused around them; [ResilientConfig].BreakerKey puts it
// there. A success costs a look-up of its key under a lock, and allocates nothing.
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

func (a *KeyedBreaker[T]) clocks() (all []*steady) {
	if a.set.clock != nil {
		all = append(all, a.set.clock)
	}
	return all
}

// refuse returns why there is no call to be made.
func (a *KeyedBreaker[T]) refuse(ctx context.Context) error {
	if fault := a.Validate(); fault != nil {
		return fault
	}
	return a.stage.refuse(ctx)
}

// State returns what the breaker of a key does with calls, BreakerClosed for one that has
// none yet.
func (a *KeyedBreaker[T]) State(key string) BreakerState {
	if e := a.set.known(key); e != nil {
		return e.State()
	}
	return BreakerClosed
}

// Metrics returns a snapshot of the breakers that are not closed, by name. They are few
// while few destinations are down, and never many more than BreakerPolicy.MaxKeys.
func (a *KeyedBreaker[T]) Metrics() (open []BreakerMetrics) {
	for _, e := range a.set.all() {
		if m := e.Metrics(); m.State != BreakerClosed {
			open = append(open, m)
		}
	}
	slices.SortFunc(open, func(a, b BreakerMetrics) int { return cmp.Compare(a.Name, b.Name) })
	return open
}

// ForceOpen refuses the records of a key until Auto or ForceClosed is called for it. They
// ask again every five seconds. A breaker that is forced is kept beside those that
// BreakerPolicy.MaxKeys allows.
func (a *KeyedBreaker[T]) ForceOpen(key string) { a.force(key, (*Breaker).ForceOpen) }

// ForceClosed lets all records of a key through until Auto or ForceOpen is called for it,
// whatever becomes of them.
func (a *KeyedBreaker[T]) ForceClosed(key string) { a.force(key, (*Breaker).ForceClosed) }

// Auto ends what ForceOpen or ForceClosed began: the breaker of the key is closed and
// decides by itself again. It closes one that has opened by itself, too.
func (a *KeyedBreaker[T]) Auto(key string) {
	if e := a.set.known(key); e != nil {
		e.Auto()
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
	n      int    // records, in a batch
}

// Apply applies the record, or returns why its breaker does not let it through.
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
	return a.judged(&call, a.report(ctx, &call, outcomeOf(ctx, err), true, err))
}

// panicked reports a panic of the applier or of the key function, or a Goexit, where the
// value is nil and nobody gets what is returned.
func (a *KeyedBreaker[T]) panicked(ctx context.Context, call *keyCall, value any) error {
	var err error = newPanicError(value)
	if call.known {
		err = a.judged(call, a.report(ctx, call, outcomeOf(ctx, err), true, err))
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
		return a.waits(call.of.refusalNow(), past)
	}
	var err error
	if call.permit, err = call.of.acquire(ctx); err == nil {
		return nil
	}
	open, ours := err.(*OpenError)
	if !ours {
		return err
	}
	call.of.waitsIn(period, past.used)
	return a.waits(open, past)
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
func (a *KeyedBreaker[T]) report(ctx context.Context, call *keyCall, outcome breaker.Outcome, counts bool, err error) error {
	if call.of == nil {
		switch outcome {
		case breaker.Failure, breaker.Mixed:
			call.of = a.set.made(call.key)
		default:
			if call.of = a.set.known(call.key); call.of == nil {
				return err
			}
		}
		call.permit = calmPermit(call.of.first)
	}
	return call.of.report(ctx, call.permit, outcome, counts, err)
}

// judged returns a record's error, which waits where its own failure has opened the
// breaker or kept it open.
func (a *KeyedBreaker[T]) judged(call *keyCall, err error) error {
	open, is := err.(*OpenError)
	if !is || call.of == nil || open.of != call.of.Breaker {
		return err
	}
	return a.waits(open, usage{used: call.of.failedProbe()})
}

const (
	// keyWait is the shortest wait of a record whose breaker was to admit a probe by now,
	// and longestKeyWait the longest: that of another record is under way.
	keyWait, longestKeyWait = 10 * time.Millisecond, time.Second

	// forcedKeyWait is how often the records of a key ask whose breaker is forced open.
	forcedKeyWait = 5 * time.Second
)

// waits returns an error with which a record waits until its breaker may be probed. While
// somebody else's probe is out it waits for as long again as that has taken.
func (a *KeyedBreaker[T]) waits(open *OpenError, past usage) error {
	after := forcedKeyWait
	if open.due.clock != nil {
		left := open.due.at.Sub(a.set.clock.Now())
		if after = min(left, maxAfter); left <= 0 {
			after = min(max(-left, keyWait), longestKeyWait)
		}
	}
	e := &askedLaterError{err: open, after: after}
	if past.used > 0 {
		past.owner, past.together = a, true
		e.usage = &past
	}
	return e
}

// ApplyBatch applies the records whose breakers let them through, in one call.
func (a *KeyedBreaker[T]) ApplyBatch(ctx context.Context, records []T) error {
	if a.batch == nil {
		return applyEach(ctx, Applier[T](a), records)
	}
	if a.fault != nil || a.key == nil || ctx == nil || ctx.Err() != nil {
		return a.refuse(ctx)
	}
	keys, errs := a.keysOf(records)
	calls, of, let := a.admitAll(ctx, keys, &errs)
	if let == 0 {
		return gather(errs)
	}
	share, some := ctx, records
	var index []int // of those that are called, where they are not all
	if let < len(records) {
		for i := range records {
			if of[i] >= 0 {
				index = append(index, i)
			}
		}
		share, some = shareOf(ctx, records, index)
	}
	err := a.attemptBatch(share, some)
	if err == nil {
		for c := range calls {
			if !a.well(&calls[c]) {
				_ = a.report(ctx, &calls[c], breaker.Success, true, nil)
			}
		}
		return gather(errs)
	}
	if errs == nil {
		errs = make([]error, len(records))
	}
	results := make([]error, len(some))
	if whole := spread(err, results); whole && len(some) > 1 {
		return a.failedAsOne(ctx, calls, of, errs, err)
	}
	a.failedApart(ctx, calls, of, index, results, errs)
	return gather(errs)
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

// admitAll asks for calls with the records of a batch, one for each key; but one for each
// record where the key's breaker is not closed: a probe is one record. of is which call a
// record is in, -1 where it is in none and has an error.
func (a *KeyedBreaker[T]) admitAll(ctx context.Context, keys []string, errs *[]error) (calls []keyCall, of []int, let int) {
	of = make([]int, len(keys))
	byKey := make(map[string]int)
	for i, key := range keys {
		if *errs != nil && (*errs)[i] != nil {
			of[i] = -1
			continue
		}
		c, met := byKey[key]
		if !met {
			call := keyCall{key: key, known: true}
			if err := a.admit(ctx, &call, i, len(keys)); err != nil {
				if *errs == nil {
					*errs = make([]error, len(keys))
				}
				(*errs)[i], of[i] = err, -1
				continue
			}
			c = len(calls)
			calls = append(calls, call)
			if !call.permit.permit.Probe {
				byKey[key] = c
			}
		}
		calls[c].n++
		of[i] = c
		let++
	}
	return calls, of, let
}

// failedAsOne reports a call that failed as one. That can be held against no record, and
// so each is to go alone (D3): the error is of all, those included that were refused.
func (a *KeyedBreaker[T]) failedAsOne(ctx context.Context, calls []keyCall, of []int, errs []error, err error) error {
	outcome := outcomeOf(ctx, err)
	for c := range calls {
		_ = a.report(ctx, &calls[c], outcome, false, err)
	}
	if class := classify(ctx, err); class == Retryable || class == PermanentClass {
		return err
	}
	all := true
	for i := range errs {
		if of[i] >= 0 {
			errs[i] = err
		}
		all = all && of[i] >= 0
	}
	if all {
		return err
	}
	return gather(errs)
}

// failedApart reports a call in which single records failed, to each breaker those of its
// key, and enters their errors.
func (a *KeyedBreaker[T]) failedApart(ctx context.Context, calls []keyCall, of, index []int, results, errs []error) {
	lists := make([]BatchError, len(calls))
	for j, err := range results {
		i := j
		if index != nil {
			i = index[j]
		}
		if err != nil {
			lists[of[i]].Add(i, err)
		}
	}
	for c := range calls {
		call := &calls[c]
		err := lists[c].ErrorOrNil()
		err = a.report(ctx, call, batchOutcomeOf(ctx, err, call.n), true, err)
		if list, _ := batchErrorIn(err); list != nil {
			for _, f := range list.Failures {
				errs[f.Index] = a.judged(call, f.Err)
			}
		}
	}
}

// mixedIn returns which of the records of a call, of which errs are the errors, failed
// beside others of their key that got through.
func (a *KeyedBreaker[T]) mixedIn(ctx context.Context, records []T, errs []error) []bool {
	keys, _ := a.keysOf(records)
	byKey := make(map[string][]int)
	for i, key := range keys {
		byKey[key] = append(byKey[key], i)
	}
	mixed := make([]bool, len(records))
	for _, index := range byKey {
		var list BatchError
		for _, i := range index {
			if errs[i] != nil {
				list.Add(i, errs[i])
			}
		}
		for _, i := range index {
			mixed[i] = batchOutcomeOf(ctx, list.ErrorOrNil(), len(index)) == breaker.Mixed
		}
	}
	return mixed
}

// mixedIn returns which of the records of a call failed beside others that got through to
// the same destination: the breaker around that begins to count anew. It is nil for none.
func (r *retryApplier[T]) mixedIn(ctx context.Context, records []T, err error, errs []error) []bool {
	if r.keyed != nil && len(records) > 1 {
		return r.keyed.mixedIn(ctx, records, errs)
	}
	if !r.guarded || batchOutcomeOf(ctx, err, len(records)) != breaker.Mixed {
		return nil
	}
	mixed := make([]bool, len(records))
	for i := range mixed {
		mixed[i] = true
	}
	return mixed
}

// keyedIn returns the keyed breaker that every record of a stack passes, nil if there is
// none.
func keyedIn[T any](stack layer) (found *KeyedBreaker[T]) {
	within(stack, false, func(l layer, branch bool) bool {
		if a, ok := l.(*KeyedBreaker[T]); ok && !branch {
			found = a
		}
		return found != nil
	})
	return found
}

// keyedStats returns the metrics of the keyed breakers of a stack.
func keyedStats(l layer, branch string) (found []BreakerStats) {
	if l == nil {
		return nil
	}
	if keyed, ok := l.(interface{ Metrics() []BreakerMetrics }); ok {
		for _, m := range keyed.Metrics() {
			found = append(found, BreakerStats{branch, m})
		}
	}
	fan, fans := l.(interface{ branchNames() []string })
	for i, inner := range l.inside() {
		in := branch
		if fans {
			in = strings.TrimPrefix(joinBranches(branch, fan.branchNames()[i]), "/")
		}
		found = append(found, keyedStats(inner, in)...)
	}
	return found
}

// keyedFanOuts returns the fan-outs of a stack with a keyed breaker in a branch, whose
// records wait in the hand of any coordinator.
func keyedFanOuts(stack any) (found []any) {
	for _, one := range heldRetries(stack) {
		l := one.(layer)
		if l.kind() == branching && within(l, false, func(l layer, _ bool) bool {
			_, keyed := l.(interface{ Metrics() []BreakerMetrics })
			return keyed
		}) {
			found = append(found, one)
		}
	}
	return found
}

// defaultMaxKeys is how many breakers are kept by default.
const defaultMaxKeys = 1000

// keyBreakers is the breakers by key, of which a bounded number is kept. A key of which no
// breaker is kept has none to remember anything for: it is closed, and no call has failed.
type keyBreakers struct {
	policy   BreakerPolicy
	limit    int
	clock    *steady
	windowed bool // every result counts, and not the failures alone

	births atomic.Uint64 // counts the breakers made

	mu    sync.Mutex
	byKey map[string]*keyBreaker
	ends  keyBreaker // of the ring of all, by their last use
}

// keyBreaker is the breaker of a key.
type keyBreaker struct {
	*Breaker
	key   string
	first uint64 // what a permit carries that was given before there was a breaker
	turns turnsOfKey

	newer, older *keyBreaker
}

// turnsOfKey tells who is to be the probe (P-3): not the record that has just failed one,
// while another waits.
type turnsOfKey struct {
	mu     sync.Mutex
	failed int    // failed probes so far
	period uint64 // the open period that the rest is of
	some   bool   // a record was refused in it
	oldest int    // of these, the number of the failed probe that is the longest ago; 0 for a record that was none
}

func (s *keyBreakers) init(policy BreakerPolicy) {
	s.limit = or(policy.MaxKeys, defaultMaxKeys)
	policy.MaxKeys = 0
	s.policy, s.windowed = policy, policy.rated()
	s.clock = newSteady(clockOr(policy.Clock))
	s.byKey = make(map[string]*keyBreaker)
	s.ends.newer, s.ends.older = &s.ends, &s.ends
}

// find returns the breaker of a key for a call, nil where there is none to ask.
func (s *keyBreakers) find(key string) (e *keyBreaker, births uint64) {
	s.mu.Lock()
	e = s.byKey[key]
	if e == nil && s.windowed {
		e = s.add(s.newBreaker(key))
	}
	if e != nil && s.ends.older != e {
		s.unlink(e)
		s.link(e)
	}
	births = s.births.Load()
	s.mu.Unlock()
	return e, births
}

// known returns the breaker of a key, nil if it has none.
func (s *keyBreakers) known(key string) *keyBreaker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key]
}

// made returns the breaker of a key, a new one if it has none.
func (s *keyBreakers) made(key string) *keyBreaker {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byKey[key]; e != nil {
		return e
	}
	return s.add(s.newBreaker(key))
}

// keep has a breaker stay that was made or found before.
func (s *keyBreakers) keep(e *keyBreaker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.byKey[e.key]; other != e {
		if other != nil {
			s.unlink(other)
		}
		s.add(e)
	}
}

func (s *keyBreakers) all() (all []*keyBreaker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.byKey {
		all = append(all, e)
	}
	return all
}

func (s *keyBreakers) newBreaker(key string) *keyBreaker {
	key = strings.Clone(key) // it may be a piece of the record
	policy := s.policy
	if policy.Name == "" {
		policy.Name = key
	} else {
		policy.Name += "/" + key
	}
	b := NewBreaker(policy)
	b.clock = s.clock
	return &keyBreaker{Breaker: b, key: key, first: b.state.Seq}
}

// add takes a breaker in, in the place of another one where there are as many as may be.
// The lock is held.
func (s *keyBreakers) add(e *keyBreaker) *keyBreaker {
	if len(s.byKey) >= s.limit {
		s.forget()
	}
	s.byKey[e.key] = e
	s.link(e)
	s.births.Add(1)
	return e
}

// forget makes room for a breaker: of those that are closed the one goes that was not used
// for the longest, else of those that are not; never one that is forced.
func (s *keyBreakers) forget() {
	var oldest *keyBreaker
	for e := s.ends.newer; e != &s.ends; e = e.newer {
		switch state := e.State(); {
		case state == BreakerForcedOpen || state == BreakerForcedClosed:
			continue
		case state == BreakerClosed:
			s.unlink(e)
			delete(s.byKey, e.key)
			return
		case oldest == nil:
			oldest = e
		}
	}
	if oldest != nil {
		s.unlink(oldest)
		delete(s.byKey, oldest.key)
	}
}

// link puts a breaker into the ring as the last one used.
func (s *keyBreakers) link(e *keyBreaker) {
	last := s.ends.older
	e.older, e.newer = last, &s.ends
	last.newer, s.ends.older = e, e
}

func (s *keyBreakers) unlink(e *keyBreaker) {
	e.older.newer, e.newer.older = e.newer, e.older
}

// period returns in which open period a breaker is, and whether a probe may go. It is 0
// while calls pass.
func (b *Breaker) period() (n uint64, ready bool) {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Phase.Passing() {
		return 0, false
	}
	return b.opened, b.state.Ready(&b.kernel, now)
}

// refusalNow says that it is worth asking again at any time.
func (b *Breaker) refusalNow() *OpenError {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	var cause error
	if b.refusal != nil {
		cause = b.refusal.Cause
	}
	return b.openError(now, cause)
}

// givesWay reports whether a record is not to be the probe now, once in an open period:
// others wait that have not failed one, or longer ago.
func (e *keyBreaker) givesWay(period uint64, past *usage) bool {
	t := &e.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if past.used == 0 || past.yielded == period || t.period != period || !t.some || t.oldest >= past.used {
		return false
	}
	past.yielded = period
	return true
}

// waitsIn notes that a record waits for the end of an open period, which may be the
// probe then.
func (e *keyBreaker) waitsIn(period uint64, failed int) {
	t := &e.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.period != period {
		t.period, t.some = period, false
	}
	if !t.some || failed < t.oldest {
		t.some, t.oldest = true, failed
	}
}

// failedProbe numbers the failure of a record over which the breaker is open.
func (e *keyBreaker) failedProbe() int {
	t := &e.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed++
	return t.failed
}
