package courier

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// KeyedDLQ is an optional capability of a [DLQ], which [DLQPolicy].Key needs: it
// tells which of the given keys are those of letters of a branch in the queue.
// Letters of another branch park no key of this one. ParkedKeys must be safe for
// concurrent use and must not keep the slice.
type KeyedDLQ interface {
	ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error)
}

// KeyParked is the reason of a letter whose record was not applied because an
// earlier one of its key and branch is in the queue.
const KeyParked Reason = "key parked"

// ErrKeyParked is the error of a letter whose reason is [KeyParked].
var ErrKeyParked = errors.New("courier: not applied, because an earlier record of its key is in the dead letter queue")

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
func (d *dlqApplier[T]) applyBatchKeyed(ctx context.Context, records []T) error {
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
				errs[i] = hung.settle(ctx, ErrKeyParked, func() error { return d.parkBehind(ctx, records[i], key) })
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
				case parked[keys[i]]:
					errs[i] = hung.settle(ctx, ErrKeyParked, func() error { return d.parkBehind(ctx, records[i], keys[i]) })
				case pending[keys[i]] != nil:
					errs[i] = unattempted(pending[keys[i]])
				}
				continue
			}
			skipped := classify(ctx, err) == Skipped
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
	return gather(errs)
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
	errs := make([]error, len(index))
	spread(applyIsolated(ctx, d.batch, some, d.order), errs)
	return errs
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
		Record: record, Key: key, Error: ErrKeyParked, Reason: KeyParked,
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
