package courier

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/erfanmomeniii/courier/internal/parkguard"
)

// DLQPolicy says how records are parked. The zero value is the default. A policy is
// copied when it is given to a decorator.
type DLQPolicy[T any] struct {
	// Branch names the branch of a fan-out whose failures are parked. A letter is
	// identified by its branch and its record, so branches that share a queue need
	// different names. A name is valid UTF-8 without NUL. "", the default, is for a
	// decorator outside of all fan-outs.
	Branch string

	// Key is for destinations that must get the records of a key in order. While a record
	// is parked, later records of its key are parked too, unapplied and with
	// [ReasonKeyParked] as the reason, until the letters of the key are deleted or
	// redriven. Letters of other branches do not block a key here. Records whose key is
	// "" have no order. nil, the default, is off. The queue must be a [KeyedDLQ], and is
	// asked once for each record or batch. Key must be safe for concurrent use and always
	// return the same key for a record.
	//
	// The order relies on what the queue holds. It cannot be kept if the source returns
	// records of a key out of order, or if a coordinator applies two of them at once. Nor
	// can it be kept while the queue refuses the record that would be the first of its
	// key there; that record stays pending.
	Key func(record T) string

	// OnPark is called after a record was parked, with the letter as it was sent. It
	// delays the pipeline while it runs; a panic in it does no harm. nil is none.
	OnPark func(ctx context.Context, letter DeadLetter[T])

	// The next four fields guard against moving a whole source into the queue. When at
	// least MinParked of the last ParkWindow records that were applied or parked were
	// parked, and their share is more than MaxParkRate, no record is parked for
	// ParkPause. Records that fail then stay pending with a [*ParkRateError], for which
	// the coordinator pauses; afterwards the count starts again. Records parked because
	// an earlier record of their key is parked do not count.
	//
	// MaxParkRate is between 0 and 1, 0 is 0.5; [AnyParkRate] switches the guard off.
	// ParkWindow 0 is 100. MinParked 0 is 20, or ParkWindow if that is less. ParkPause 0
	// is a minute.
	MaxParkRate float64
	ParkWindow  int
	MinParked   int
	ParkPause   time.Duration

	// Clock is nil for the system's clock.
	Clock Clock
}

func (p DLQPolicy[T]) withDefaults() DLQPolicy[T] {
	p.MaxParkRate = or(p.MaxParkRate, 0.5)
	p.ParkWindow = or(p.ParkWindow, 100)
	p.MinParked = or(p.MinParked, min(20, p.ParkWindow))
	p.ParkPause = or(p.ParkPause, time.Minute)
	p.Clock = clockOr(p.Clock)
	return p
}

func (p DLQPolicy[T]) validate(queue DeadLetterSink[T]) error {
	d := p.withDefaults()
	fault := boundsFault("DLQPolicy", []bound{
		{"MaxParkRate", p.MaxParkRate, p.MaxParkRate >= 0 && p.MaxParkRate <= 1, "a share between 0 and 1, courier.AnyParkRate, or 0 for the default"},
		{"ParkWindow", p.ParkWindow, p.ParkWindow >= 0, "at least 1, or 0 for the default"},
		{"MinParked", p.MinParked, p.MinParked >= 0 && d.MinParked <= d.ParkWindow, fmt.Sprintf("from 1 to ParkWindow (%d), or 0 for the default", d.ParkWindow)},
		{"ParkPause", p.ParkPause, p.ParkPause >= 0, "more than 0, or 0 for the default"},
		{"Branch", strconv.Quote(p.Branch), utf8.ValidString(p.Branch) && !strings.Contains(p.Branch, "\x00"), "valid UTF-8 without NUL, which every queue can keep apart"},
	})
	if _, keyed := queue.(KeyedDLQ); fault == nil && p.Key != nil && !keyed {
		fault = &ConfigError{"DLQPolicy.Key", fmt.Sprintf("cannot be used with a %T, which does not tell what keys it holds: give the queue the method ParkedKeys of courier.KeyedDLQ", queue)}
	}
	return firstFault(fault, clockFault("DLQPolicy.Clock", p.Clock))
}

// ErrPark is what every [*ParkError] is, to errors.Is.
var ErrPark = errors.New("courier: the dead letter queue did not take a record")

// ParkError says that a record failed for good and that the dead letter queue refused it.
// Its class is ClassNotAttempted: the record stays pending, and the coordinator backs
// off.
type ParkError struct {
	Err   error // the record's
	Store error // the queue's, or a *ParkRateError
}

func (e *ParkError) Error() string {
	return fmt.Sprintf("courier: the dead letter queue did not take a record (%s), which stays pending; the record's error: %s", inner(e.Store), inner(e.Err))
}

// Is reports whether err is [ErrPark].
func (e *ParkError) Is(err error) bool { return err == ErrPark }

// Unwrap returns both errors.
func (e *ParkError) Unwrap() []error { return []error{e.Err, e.Store} }

// NotAttempted reports true.
func (e *ParkError) NotAttempted() bool { return true }

// WithDLQ parks the records that an applier fails in a [MemoryDLQ] of the default
// capacity. The applier's error is final here: put retries inside, as [ResilientApplier]
// does.
func WithDLQ[T any](applier Applier[T]) (Applier[T], DLQ[T]) {
	queue := &MemoryDLQ[T]{}
	return newDLQApplier(applier, queue, DLQPolicy[T]{}, true), queue
}

// NewDLQApplier parks the records that an applier fails in a queue. The zero policy is
// the default. Apply returns nil if the record is applied or parked, so that it is
// marked, and a [*ParkError] if the queue did not take it. A record whose error is
// ClassNotAttempted is never parked; the error is returned unchanged. A panic of the
// applier is a failure like any other. NewDLQApplier refuses an applier with a dead
// letter queue of its own, unless that queue is in a branch of a fan-out. The result is
// as safe for concurrent use as the applier.
func NewDLQApplier[T any](applier Applier[T], queue DeadLetterSink[T], policy DLQPolicy[T]) Applier[T] {
	return newDLQApplier(applier, queue, policy, false)
}

func newDLQApplier[T any](applier Applier[T], queue DeadLetterSink[T], policy DLQPolicy[T], own bool) Applier[T] {
	fault := configErrorOf("dlq", queue)
	if fault == nil {
		fault = policy.validate(queue)
	}
	p := policy.withDefaults()
	d := &dlqApplier[T]{stage: newStage(parking, applier, fault), queue: queue, policy: p, guard: newParkGuard(&p)}
	d.tells.parks = &parker{queue: queue, branch: p.Branch, own: own, same: func(other any) bool { return sameQueue(queue, other) }}
	if d.guard != nil {
		d.tells.clock = d.guard.clock
	}
	if p.Key != nil {
		d.keys, _ = queue.(KeyedDLQ)
	}
	return d
}

type dlqApplier[T any] struct {
	stage[T]
	queue  DeadLetterSink[T]
	policy DLQPolicy[T]
	guard  *parkGuard
	keys   KeyedDLQ // nil without a Key
}

func (d *dlqApplier[T]) Apply(ctx context.Context, record T) error {
	switch {
	case d.fault != nil || ctx == nil:
		return d.refuse(ctx)
	case d.keys != nil:
		return d.applyKeyed(ctx, record)
	}
	return d.deliver(ctx, record, "")
}

// deliver applies a record, and parks what is the queue's.
func (d *dlqApplier[T]) deliver(ctx context.Context, record T, key string) error {
	return d.delivered(ctx, record, key, d.attempt(ctx, record))
}

func (d *dlqApplier[T]) delivered(ctx context.Context, record T, key string, err error) error {
	if err == nil || classify(ctx, err) == ClassSkipped {
		d.guard.applied(1)
		return err
	}
	return d.settle(ctx, record, key, err)
}

func (d *dlqApplier[T]) resume(ctx context.Context, record T, exit error) error {
	err := resumed(ctx, d.inner, record, exit)
	key := ""
	if d.keys != nil {
		var unkeyed error
		if key, unkeyed = d.keyOf(record); unkeyed != nil {
			return d.settle(ctx, record, "", unkeyed)
		}
	}
	return d.delivered(ctx, record, key, err)
}

func (d *dlqApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	return applyMany(ctx, BatchApplier[T](d), records).err()
}

func (d *dlqApplier[T]) applyMany(ctx context.Context, records []T) verdicts {
	if d.keys != nil {
		return d.applyBatchKeyed(ctx, records)
	}
	v := applyIsolated(ctx, d.batch, records, d.order)
	if v.ok() {
		d.guard.applied(len(records))
		return v
	}
	errs := v.of(len(records))
	d.guard.applied(settledIn(ctx, errs)) // before the failures: they are a share of these
	var hung hungQueue
	for i, err := range errs {
		if err != nil {
			errs[i] = hung.settle(ctx, err, func() error { return d.settle(ctx, records[i], "", err) })
		}
	}
	return apart(errs)
}

// hungQueue remembers during a batch that the queue does not answer, so that the queue is
// not called for each of the records: a stop could not wait for that.
type hungQueue struct{ err error }

func (h *hungQueue) settle(ctx context.Context, err error, settle func() error) error {
	if h.err != nil && (err == ErrKeyParked || parks(ctx, err)) {
		return &ParkError{Err: err, Store: h.err}
	}
	err = settle()
	if refused, ok := err.(*ParkError); ok && (errors.Is(refused.Store, context.DeadlineExceeded) || errors.Is(refused.Store, ErrDrainTimeout)) {
		h.err = refused.Store
	}
	return err
}

// settledIn counts the records of a batch that are applied or skipped.
func settledIn(ctx context.Context, errs []error) (n int) {
	for _, err := range errs {
		if err == nil || classify(ctx, err) == ClassSkipped {
			n++
		}
	}
	return n
}

// parks reports whether a failed record belongs in the queue.
func parks(ctx context.Context, err error) bool {
	class := classify(ctx, err)
	return class == ClassRetryable || class == ClassPermanent
}

// settle parks a failed record, or says why it stays pending.
func (d *dlqApplier[T]) settle(ctx context.Context, record T, key string, err error) error {
	switch {
	case !parks(ctx, err):
		return err
	case redriveOf(ctx, d.queue):
		return errRedriveLoop(err)
	}
	letter := DeadLetter[T]{Record: record, Key: key, Branch: d.policy.Branch}
	letter.failed(ctx, err, d.policy.Clock.Now())
	return d.park(ctx, letter)
}

// park hands a letter over.
func (d *dlqApplier[T]) park(ctx context.Context, letter DeadLetter[T]) error {
	behind := letter.Reason == ReasonKeyParked
	if refusal := d.guard.ask(behind); refusal != nil {
		return &ParkError{Err: letter.Error, Store: refusal}
	}
	refusal := detached(ctx, d.policy.Clock, func(ctx context.Context) error { return d.queue.Send(ctx, letter) })
	if refusal != nil {
		d.guard.undo(behind)
		return &ParkError{Err: letter.Error, Store: refusal}
	}
	if !behind {
		d.guard.applied(1)
	}
	passageOf(ctx).watch.parked(ctx, letter.Record, ParkEvent{Branch: letter.Branch, Reason: letter.Reason, Err: letter.Error})
	if d.policy.OnPark != nil {
		var ignored error
		isolate(&ignored, func() error {
			d.policy.OnPark(ctx, letter)
			return nil
		})
	}
	return nil
}

// applyKeyed applies a record unless its key is parked.
func (d *dlqApplier[T]) applyKeyed(ctx context.Context, record T) error {
	key, err := d.keyOf(record)
	if err == nil && key != "" {
		parked, refusal := d.parkedKeys(ctx, []string{key})
		if refusal != nil {
			return refusal
		}
		if parked[key] {
			return d.parkBehind(ctx, record, key)
		}
	}
	if err != nil {
		return d.settle(ctx, record, "", err)
	}
	return d.deliver(ctx, record, key)
}

// applyBatchKeyed applies a batch in rounds that hold one record of each key, so
// that a record of which an earlier one failed can be kept back. An applier that keeps
// the order does that itself, and is given all in one call.
func (d *dlqApplier[T]) applyBatchKeyed(ctx context.Context, records []T) verdicts {
	errs := make([]error, len(records))
	keys := make([]string, len(records))
	var ask []string
	asked := make(map[string]bool)
	for i, record := range records {
		if keys[i], errs[i] = d.keyOf(record); errs[i] != nil {
			errs[i] = d.settle(ctx, record, "", errs[i])
			keys[i] = unkeyed
		} else if keys[i] != "" && !asked[keys[i]] {
			asked[keys[i]] = true
			ask = append(ask, keys[i])
		}
	}
	parked, refusal := d.parkedKeys(ctx, ask)
	var hung hungQueue
	pending := make(map[string]error) // why a record of the key was not settled
	parkBehind := func(i int) {
		errs[i] = hung.settle(ctx, ErrKeyParked, func() error { return d.parkBehind(ctx, records[i], keys[i]) })
		if errs[i] != nil { // the later records of its key stay pending too
			pending[keys[i]] = errs[i]
		}
	}
	rounds := roundsOf(keys)
	if d.order {
		rounds = [][]int{allOf(len(records))}
	}
	for _, round := range rounds {
		var open []int
		left := false // a record stays pending, which those behind it are not to overtake
		for _, i := range round {
			key := keys[i]
			switch {
			case key == unkeyed:
			case key != "" && refusal != nil:
				errs[i] = refusal
			case key != "" && pending[key] != nil:
				errs[i] = unattempted(pending[key])
			case key != "" && parked[key]:
				parkBehind(i)
			case left:
				errs[i] = ErrBehindFailed
			default:
				open = append(open, i)
			}
			left = left || d.order && errs[i] != nil
		}
		if len(open) == 0 {
			continue
		}
		results := d.applySome(ctx, records, open)
		d.guard.applied(settledIn(ctx, results)) // before the failures: they are a share of these
		for j, err := range results {
			i := open[j]
			if err == nil {
				continue
			}
			if d.order && keys[i] != "" && behindFailed(ctx, err) {
				switch errs[i] = err; {
				case pending[keys[i]] != nil:
					errs[i] = unattempted(pending[keys[i]])
				case parked[keys[i]]:
					parkBehind(i)
				}
				continue
			}
			skipped := classify(ctx, err) == ClassSkipped
			errs[i] = hung.settle(ctx, err, func() error { return d.settle(ctx, records[i], keys[i], err) })
			switch {
			case keys[i] == "" || skipped:
			case errs[i] == nil:
				parked[keys[i]] = true
			default:
				pending[keys[i]] = errs[i]
			}
		}
	}
	return apart(errs)
}

// unkeyed is in the place of the key of a record that Key panicked over. It
// cannot be the key of another: those are valid text.
const unkeyed = "\xff"

// applySome applies the records with the given indices as one batch.
func (d *dlqApplier[T]) applySome(ctx context.Context, records []T, index []int) []error {
	some := records
	if len(index) < len(records) {
		ctx, some = shareOf(ctx, records, index)
	}
	return applyIsolated(ctx, d.batch, some, d.order).of(len(index))
}

// roundsOf splits a batch into rounds with no key twice in one: the first record
// of every key, the second of every key that has one, and so on. What has no key
// is in the first.
func roundsOf(keys []string) [][]int {
	var rounds [][]int
	seen := make(map[string]int)
	for i, key := range keys {
		round := 0
		if key != "" {
			round = seen[key]
			seen[key]++
		}
		if round == len(rounds) {
			rounds = append(rounds, nil)
		}
		rounds[round] = append(rounds[round], i)
	}
	return rounds
}

// keyOf returns a record's key as any queue can store it.
func (d *dlqApplier[T]) keyOf(record T) (key string, err error) {
	guard(&err, func() error {
		key = strings.ToValidUTF8(d.policy.Key(record), "\uFFFD")
		return nil
	})
	return key, err
}

// parkBehind parks a record that was not applied.
func (d *dlqApplier[T]) parkBehind(ctx context.Context, record T, key string) error {
	if redriveOf(ctx, d.queue) { // the key is parked by the letter that is being redriven
		return errRedriveLoop(ErrKeyParked)
	}
	now := d.policy.Clock.Now()
	return d.park(ctx, DeadLetter[T]{
		Record: record, Key: key, Error: ErrKeyParked, Reason: ReasonKeyParked,
		FirstFailedAt: now, FailedAt: now, Branch: d.policy.Branch,
	})
}

// parkedKeys asks the queue. Without an answer the records stay pending.
func (d *dlqApplier[T]) parkedKeys(ctx context.Context, keys []string) (map[string]bool, error) {
	parked := make(map[string]bool)
	if len(keys) == 0 {
		return parked, nil
	}
	err := detached(ctx, d.policy.Clock, func(ctx context.Context) error {
		found, err := d.keys.ParkedKeys(ctx, d.policy.Branch, keys)
		for _, key := range found {
			parked[key] = true
		}
		return err
	})
	if err != nil {
		return parked, unattempted(fmt.Errorf("courier: the dead letter queue did not say whether a record's key is parked: %w", err))
	}
	return parked, nil
}

// AnyParkRate is a MaxParkRate that switches off the guard of a [DLQPolicy]: any share of
// the records may be parked.
const AnyParkRate = 1.0

// ErrParkRate is what every [*ParkRateError] is, to errors.Is.
var ErrParkRate = errors.New("courier: too many records go to the dead letter queue")

// ParkRateError says that so many of the last records were parked that the records are
// probably not the cause, and that no record is parked for now. Its class is
// ClassNotAttempted: the records stay pending, and the coordinator pauses until the given
// time. It is the Store of a [*ParkError].
type ParkRateError struct {
	Parked, Of int       // of the last records, when the guard tripped
	Until      time.Time // when records are parked again

	due moment
}

func (e *ParkRateError) Error() string {
	return fmt.Sprintf("courier: %d of the last %d records went to the dead letter queue, so no record is parked until %s: find out what their errors have in common, or raise DLQPolicy.MaxParkRate",
		e.Parked, e.Of, e.Until.Format(time.RFC3339))
}

// Is reports whether err is [ErrParkRate].
func (e *ParkRateError) Is(err error) bool { return err == ErrParkRate }

// NotAttempted reports true.
func (e *ParkRateError) NotAttempted() bool { return true }

// RetryAt returns Until, adjusted if the clock was set back since.
func (e *ParkRateError) RetryAt() time.Time { return e.due.told(e.Until) }

// parkGuard is the shell of the parkguard kernel. A record that is applied costs
// it one atomic addition. A nil guard allows everything.
type parkGuard struct {
	policy  parkguard.Policy
	clock   *steady
	decided atomic.Uint64
	mu      sync.Mutex
	state   parkguard.State
	refusal *ParkRateError
}

func newParkGuard[T any](p *DLQPolicy[T]) *parkGuard {
	if p.MaxParkRate >= AnyParkRate {
		return nil
	}
	return &parkGuard{clock: newSteady(p.Clock), policy: parkguard.Policy{
		Rate: p.MaxParkRate, Window: p.ParkWindow, Min: p.MinParked, Pause: p.ParkPause,
	}}
}

// applied counts records that were decided: applied, or parked.
func (g *parkGuard) applied(n int) {
	if g != nil {
		g.decided.Add(uint64(n))
	}
}

// ask returns why a record may not be parked. One that is parked behind another
// of its key does not count.
func (g *parkGuard) ask(behind bool) error {
	if g == nil {
		return nil
	}
	now := g.clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state.Refusing(now) {
		refusal := *g.refusal
		refusal.Until = g.clock.told(g.state.Until)
		return &refusal
	}
	if behind {
		return nil
	}
	parked, of, ok := g.state.Park(&g.policy, g.decided.Load(), now)
	if ok {
		return nil
	}
	g.refusal = &ParkRateError{Parked: parked, Of: of, Until: g.clock.told(g.state.Until), due: moment{g.clock, g.state.Until}}
	return g.refusal
}

// undo takes back what ask allowed.
func (g *parkGuard) undo(behind bool) {
	if g == nil || behind {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state.Undo()
}
