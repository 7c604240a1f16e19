package courier

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

// This file is about the retries of records that are applied in one call.

func (r *retryApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	return applyMany(ctx, BatchApplier[T](r), records).err()
}

func (r *retryApplier[T]) applyMany(ctx context.Context, records []T) verdicts {
	if ctx.Err() != nil {
		return verdicts{whole: r.refuse(ctx)}
	}
	past := historiesIn(ctx, len(records))
	attempt := 1
	for _, h := range past {
		attempt = max(attempt, h.by(r).pace.waits+1)
	}
	if attempt > 1 { // some have waited in the coordinator's hand for it
		if stop := passageOf(ctx).stop; stop.Err() != nil {
			return r.batchInterrupted(ctx, past, causeOf(stop))
		}
		if slices.ContainsFunc(past, func(h history) bool { return h.by(r).pace.short > 0 }) {
			return r.applyPaid(ctx, records, past)
		}
		ctx = withAttempt(ctx, attempt)
	}
	entry := r.entry()
	v := r.attemptBatch(ctx, records)
	if r.policy.Budget != nil {
		r.account(ctx, len(records), past, v)
	}
	if v.ok() || v.whole != nil && past == nil && untouched(ctx, v.whole) {
		return v
	}
	run := r.begin(ctx, entry)
	if run.held {
		return r.batchLater(run, records, past, v)
	}
	return r.batchAgain(run, records, past, v)
}

// batchInterrupted returns the errors of records of which some have waited for an attempt
// that is not made, because the coordinator stops.
func (r *retryApplier[T]) batchInterrupted(ctx context.Context, past []history, cause error) verdicts {
	errs := make([]error, len(past))
	for i, h := range past {
		if last := h.by(r); last.pace.waits > 0 {
			errs[i] = r.interrupted(ctx, last)
		} else {
			errs[i] = unattempted(cause)
		}
	}
	return verdicts{each: errs}
}

// applyPaid applies a batch of which some records have waited for the budget, without those
// for which it is still too small.
func (r *retryApplier[T]) applyPaid(ctx context.Context, records []T, past []history) verdicts {
	errs := make([]error, len(records))
	paid := slices.Clone(past)
	var index, now []int // of those that are applied, and of these the ones paid for now
	short := false
	for i, h := range past {
		last := h.by(r)
		if short && r.order { // what is behind it is not to be applied before it is settled
			errs[i] = ErrBehindFailed
			continue
		}
		if last.pace.short > 0 {
			if errs[i] = r.pay(ctx, records[i], &last); errs[i] != nil {
				short = true
				continue
			}
			paid[i], now = h.replaced(last), append(now, i)
		}
		index = append(index, i)
	}
	if len(index) == 0 {
		return apart(errs)
	}
	share, some := shareOf(withHistories(ctx, paid), records, index)
	r.applyMany(share, some).scatter(index, errs)
	for _, i := range now {
		if behindFailed(ctx, errs[i]) { // it comes again, and pays again
			passageOf(ctx).owed.add(r.policy.Budget, -1)
			r.policy.Budget.refund(1)
		}
	}
	return apart(errs)
}

// account pays into the budget for the first attempts of n records that succeeded, and pays
// back what was withdrawn for a later one that did, or was not made.
func (r *retryApplier[T]) account(ctx context.Context, n int, past []history, v verdicts) {
	if v.ok() && past == nil {
		r.policy.Budget.deposit(n)
		return
	}
	succeeded := 0
	owed := &passageOf(ctx).owed
	for i, err := range v.of(n) {
		if behindFailed(ctx, err) { // its attempt is still to come
			continue
		}
		var last pace
		if past != nil {
			last = past[i].by(r).pace
		}
		owed.add(r.policy.Budget, -last.owes)
		switch {
		case err != nil && !untouched(ctx, err):
		case last.waits > 0:
			r.policy.Budget.refund(last.owes)
		case err == nil:
			succeeded++
		}
	}
	if succeeded > 0 {
		r.policy.Budget.deposit(succeeded)
	}
}

// batchAgain is the rest of ApplyBatch once the first call has failed, with delays that
// block.
func (r *retryApplier[T]) batchAgain(run retryRun, records []T, past []history, v verdicts) verdicts {
	defer run.worker.tried(r)
	b := blockingBatch[T]{
		retryRun: run, records: records, open: allOf(len(records)),
		results: make([]error, len(records)), lasts: make([]error, len(records)), used: make([]int, len(records)),
	}
	for i := range past {
		b.used[i] = past[i].by(r).used
	}
	for round := 1; ; round++ {
		charge, delayBy := b.judgeAll(r, v)
		if len(b.open) == 0 {
			return apart(b.results)
		}
		left := b.left()
		if b.told() {
			b.about, b.several = left[0], len(left)
		}
		delay, cut := b.plan(delayBy, charge)
		if cut == nil {
			cut = b.sleep(delay, charge)
		}
		if cut.waits(b.passage) {
			b.runAllShort(delay)
			return apart(b.results)
		}
		if cut != nil {
			b.giveUpAll(cut, round)
			return apart(b.results)
		}
		again := withAttempt(b.ctx, round+1)
		if b.alone {
			v = applySingly(again, Applier[T](r.batch), left, r.order)
		} else {
			v = r.attemptBatch(again, left)
		}
		r.policy.Budget.refund(min(charge, b.unspent(v)))
	}
}

// blockingBatch is the records of a call that are tried again in it.
type blockingBatch[T any] struct {
	retryRun
	records []T
	results []error // those that are final
	lasts   []error // of the last attempt
	used    []int   // attempts
	open    []int   // the records that are still to be applied
	behind  []int   // of these, those that were not attempted behind a failed one
	alone   bool    // each goes in a call of its own
}

func (b *blockingBatch[T]) left() []T {
	left := make([]T, len(b.open))
	for j, i := range b.open {
		left[j] = b.records[i]
	}
	return left
}

// judgeAll takes in the verdicts on the open records, and returns how many retries the next
// call is, and the failure that asks for the longest delay. A batch that has failed as one
// counts against no record of it, and is one retry, however it is taken apart.
func (b *blockingBatch[T]) judgeAll(r *retryApplier[T], v verdicts) (charge int, delayBy error) {
	v.scatter(b.open, b.lasts)
	if class := classify(b.ctx, v.whole); v.whole != nil && len(b.open) > 1 && (class == ClassRetryable || class == ClassPermanent) {
		b.alone, b.behind = true, nil
		return 1, v.whole
	}
	mixed := r.mixedIn(b.ctx, b.left(), v.of(len(b.open)))
	still := b.open[:0]
	b.behind = b.behind[:0]
	final := false // one has its verdict, which what is behind it is not to overtake
	for j, i := range b.open {
		err := b.lasts[i]
		if err == nil {
			continue
		}
		if len(still) > 0 && !final && behindFailed(b.ctx, err) { // it goes along, behind that
			still, b.behind = append(still, i), append(b.behind, i)
			continue
		}
		class := classify(b.ctx, err)
		b.results[i] = b.judge(class, err, mixed != nil && mixed[j], &b.used[i])
		final = final || b.results[i] != nil && class != ClassSkipped
		if b.results[i] == nil {
			still = append(still, i)
			if delayBy == nil || afterOf(err, math.MaxInt64) > afterOf(delayBy, math.MaxInt64) {
				delayBy = err
			}
		}
	}
	b.open = still
	return len(still) - len(b.behind), delayBy
}

// giveUpAll ends the retries of the open records.
func (b *blockingBatch[T]) giveUpAll(cut *cut, round int) {
	for _, i := range b.open {
		if b.results[i] = b.lasts[i]; !slices.Contains(b.behind, i) {
			b.results[i] = b.giveUp(cut.reason, max(b.used[i], round), b.lasts[i], cut.cause)
		}
	}
}

// runAllShort has the open records wait for the budget.
func (b *blockingBatch[T]) runAllShort(delay time.Duration) {
	for _, i := range b.open {
		if b.results[i] = b.lasts[i]; !slices.Contains(b.behind, i) {
			one := b.retryRun
			b.results[i] = one.runShort(delay, b.lasts[i], b.used[i])
		}
	}
}

// unspent counts the open records that cost the destination nothing in vain: they are
// applied, or were not attempted. It leaves out those that were no retry.
func (b *blockingBatch[T]) unspent(v verdicts) (count int) {
	for j, err := range v.of(len(b.open)) {
		if !slices.Contains(b.behind, b.open[j]) && (err == nil || untouched(b.ctx, err)) {
			count++
		}
	}
	return count
}

// batchLater returns the verdicts on a batch of which some records have failed, and are
// to be delivered again. After a batch that failed as one, which counts against no record
// of it, each goes alone.
func (r *retryApplier[T]) batchLater(run retryRun, records []T, past []history, v verdicts) verdicts {
	ctx := run.ctx
	results := v.of(len(records))
	class := classify(ctx, v.whole)
	whole := v.whole != nil && len(records) > 1 && (class == ClassRetryable || class == ClassPermanent)
	charge := 1 // the retries of a batch that is taken apart are one
	for i, err := range results {
		if err == nil {
			continue
		}
		one := run
		last := usage{owner: r}
		if past != nil {
			last = past[i].by(r)
			one.resume(last.pace)
		}
		if one.told() {
			one.about = records[i]
		}
		if !whole {
			// Other records that got through may be new ones, each time: then no attempt
			// on poison would ever count, if those of a mixed call did not.
			if results[i] = one.judge(classify(ctx, err), err, false, &last.used); results[i] != nil {
				continue
			}
		}
		delay, cut := one.plan(err, charge)
		if cut.waits(one.passage) {
			results[i] = one.runShort(delay, err, last.used)
			continue
		}
		if cut != nil {
			results[i] = one.giveUp(cut.reason, max(last.used, one.waits), err, cut.cause)
			continue
		}
		later := one.later(err, delay, last.used, charge)
		later.usage.together = !whole && len(records) > 1
		if results[i] = later; whole {
			charge = 0
		}
	}
	return apart(results)
}

// mixedIn returns which of the records of a call, of which errs are the errors, failed
// beside others that got through to the same destination: the breaker around that begins
// to count anew. It is nil where there is no breaker.
func (r *retryApplier[T]) mixedIn(ctx context.Context, records []T, errs []error) []bool {
	keys := make([]string, len(records))
	switch {
	case r.keyed != nil:
		keys, _ = r.keyed.keysOf(records)
	case !r.guarded, len(records) < 2:
		return nil
	}
	byKey := make(map[string][]error)
	for i, key := range keys {
		byKey[key] = append(byKey[key], errs[i])
	}
	mixedKeys := make(map[string]bool)
	for key, errs := range byKey {
		mixedKeys[key] = apart(errs).outcome(ctx) == breaker.Mixed
	}
	mixed := make([]bool, len(records))
	for i, key := range keys {
		mixed[i] = mixedKeys[key]
	}
	return mixed
}
