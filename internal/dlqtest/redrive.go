package dlqtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

var (
	errRecord    = errors.New("the record's own error")
	errBroken    = errors.New("the queue is broken")
	errCancelled = errors.New("the operator had enough")
)

// drive is one redrive, watched: the queue that it is given, and the applier. Its
// draws are made before, for the applier runs where no draw may fail.
type drive[T any] struct {
	*model[T]
	plan    map[int]step // by attempt, from 0; the others succeed
	breaks  int          // the call of the queue from which on it fails; 0 is none
	lost    bool         // that one is made all the same
	batches bool
	breaker *courier.Breaker                 // nil for none
	match   func(courier.DeadLetter[T]) bool // as the redrive's, or nil
	limit   int
	cancel  context.CancelCauseFunc

	calls     int
	began     time.Time
	last      int                           // place at the beginning
	total     int                           // letters at the beginning
	read      map[int]courier.DeadLetter[T] // by place, as they were read last
	keys      map[int][]line                // by place, that they had whenever they were read
	tried     []*attempt[T]
	cancelled bool
}

// step is what becomes of an attempt, and what happens to the queue meanwhile.
type step struct{ outcome, meanwhile string }

type attempt[T any] struct {
	courier.DeadLetter[T]
	place   int
	class   courier.ErrorClass // ClassSkipped where it succeeds
	err     error
	settled bool // removed or updated
	probe   bool // of the breaker
}

func (a *attempt[T]) refused() bool { return a.class == courier.ClassNotAttempted }

var (
	outcomes   = []string{"succeeds", "is skipped", "fails", "fails for good", "fails after retries", "panics", "ends its goroutine", "is refused", "is refused for a while"}
	meanwhiles = []string{"nothing", "it is parked anew", "another branch parks it", "another is parked", "it is changed", "it is deleted", "the last is deleted", "the redrive is cancelled"}
)

func (m *machine[T]) redrive(t *rapid.T) {
	d := &drive[T]{model: &m.model, plan: map[int]step{}, read: map[int]courier.DeadLetter[T]{}, keys: map[int][]line{}, total: len(m.letters), last: m.last, began: m.now}
	for range rapid.IntRange(0, 8).Draw(t, "steps") {
		i := rapid.IntRange(0, 10).Draw(t, "attempt")
		d.plan[i] = step{rapid.SampledFrom(outcomes).Draw(t, "it"), rapid.SampledFrom(meanwhiles).Draw(t, "meanwhile")}
	}
	for i := range rapid.SampledFrom([]int{0, 0, 3, 12}).Draw(t, "failures in a row") {
		d.plan[i] = step{"fails", "nothing"}
	}
	if rapid.IntRange(0, 4).Draw(t, "the queue breaks") == 0 {
		d.breaks, d.lost = rapid.IntRange(1, 6).Draw(t, "at call"), rapid.Bool().Draw(t, "after it was made")
	}
	d.limit = rapid.SampledFrom([]int{0, 0, 1, 2, 5}).Draw(t, "limit")
	switch rapid.IntRange(0, 3).Draw(t, "match") {
	case 1:
		d.match = func(l courier.DeadLetter[T]) bool { return m.names[m.Number(l.Record)]%3 > 0 }
	case 2:
		branch := anyBranch(t)
		d.match = func(l courier.DeadLetter[T]) bool { return l.Branch == branch }
	}
	config := courier.RedriveConfig[T]{
		Match: d.match, Limit: d.limit, BatchSize: rapid.SampledFrom([]int{0, 1, 2, 5}).Draw(t, "batch size"), Clock: &clock{&m.now},
	}
	applier := courier.ProcessFunc(d.Apply)
	if d.batches = rapid.Bool().Draw(t, "batches"); d.batches {
		applier = d
	}
	switch rapid.SampledFrom([]string{"none", "a breaker", "one that is forced open"}).Draw(t, "breaker") {
	case "one that is forced open":
		m.breaker.ForceOpen()
		defer m.breaker.Reset()
		fallthrough
	case "a breaker":
		d.breaker = m.breaker
		applier = courier.NewCircuitBreakerApplier(applier, d.breaker)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	d.cancel = cancel
	result, err := courier.Redrive(ctx, courier.DLQ[T](d), applier, &config)
	d.check(t, result, err)
}

// clock is the model's. It goes on by each wait, but for the timeout of a call of
// the queue, which is longer than any wait for the breaker and never passes.
type clock struct{ now *time.Time }

func (c *clock) Now() time.Time { return *c.now }

func (c *clock) After(d time.Duration) <-chan time.Time {
	if d >= 10*time.Second {
		return nil
	}
	*c.now = c.now.Add(d)
	over := make(chan time.Time, 1)
	over <- *c.now
	return over
}

func newBreaker(now *time.Time) *courier.Breaker {
	return courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, OpenFor: 1001 * time.Millisecond, DisableJitter: true, Clock: &clock{now}})
}

// call makes a call of the queue, unless that is broken.
func (d *drive[T]) call(call func()) error {
	d.calls++
	broken := d.breaks > 0 && d.calls >= d.breaks
	if !broken || d.lost && d.calls == d.breaks {
		call()
	}
	if broken {
		return errBroken
	}
	return nil
}

func (d *drive[T]) Count(ctx context.Context) (n int, err error) {
	if broken := d.call(func() { n, err = d.model.Count(ctx) }); broken != nil {
		return 0, broken
	}
	return n, err
}

func (d *drive[T]) List(ctx context.Context, after string, most int) (page []courier.DeadLetter[T], err error) {
	if broken := d.call(func() { page, err = d.model.List(ctx, after, most) }); broken != nil {
		return nil, broken
	}
	for _, l := range page {
		place := d.places[l.ID]
		d.read[place] = l
		d.keys[place] = append(d.keys[place], lineOf(l))
	}
	return page, err
}

func (d *drive[T]) Delete(ctx context.Context, ids ...string) error {
	return d.call(func() {
		for _, id := range ids {
			i := slices.IndexFunc(d.tried, func(a *attempt[T]) bool { return a.ID == id && a.class == courier.ClassSkipped && !a.settled })
			if i < 0 {
				d.t.Errorf("the letter %s is removed, and was not applied", id)
				continue
			}
			d.tried[i].settled = true
		}
		_ = d.model.Delete(ctx, ids...)
	})
}

func (d *drive[T]) Update(ctx context.Context, l courier.DeadLetter[T]) error {
	return d.call(func() {
		i := slices.IndexFunc(d.tried, func(a *attempt[T]) bool {
			return a.ID == l.ID && (a.class == courier.ClassRetryable || a.class == courier.ClassPermanent) && !a.settled
		})
		if i < 0 {
			d.t.Errorf("the letter %s is updated, and did not fail", l.ID)
			return
		}
		a := d.tried[i]
		a.settled = true
		want := a.DeadLetter
		want.FailedRedrives++
		want.Error, want.Reason, want.Attempts, want.FailedAt = l.Error, courier.ReasonExhausted, 1, d.now
		if a.class == courier.ClassPermanent {
			want.Reason = courier.ReasonPermanent
		}
		var retried *courier.RetryError
		if errors.As(a.err, &retried) {
			want.Attempts = retried.Attempts
		}
		if a.probe && l.Attempts == a.Attempts {
			want.Attempts = a.Attempts // it counts for none, unless the breaker closed all the same
		}
		if got, want := d.text(l), d.text(want); got != want || !errors.Is(l.Error, a.err) {
			d.t.Errorf("a letter that failed with %v is updated to\n%s, want\n%s", a.err, got, want)
		}
		_ = d.model.Update(ctx, l)
	})
}

func (d *drive[T]) Apply(ctx context.Context, record T) error {
	a, outcome := d.attempt(record)
	a.judge(ctx)
	switch outcome {
	case "panics":
		panic("boom")
	case "ends its goroutine":
		runtime.Goexit()
	}
	return a.err
}

func (d *drive[T]) ApplyBatch(ctx context.Context, records []T) error {
	var tried []*attempt[T]
	var failed courier.BatchError
	for i, record := range records {
		a, _ := d.attempt(record)
		if a.err == courier.ErrPanic {
			a.err = errRecord // one of a batch cannot
		}
		tried = append(tried, a)
		if a.err != nil {
			failed.Add(i, a.err)
		}
	}
	for _, a := range tried { // they are told of together
		a.judge(ctx)
	}
	return failed.ErrorOrNil()
}

// attempt notes that a record is applied, and has happen what is to.
func (d *drive[T]) attempt(record T) (a *attempt[T], outcome string) {
	n := len(d.tried)
	s := d.plan[n]
	a = &attempt[T]{err: d.errorOf(s.outcome, n), probe: d.breaker != nil && d.breaker.State() == courier.BreakerHalfOpen}
	d.tried = append(d.tried, a)
	for place, l := range d.read {
		if d.Number(l.Record) == d.Number(record) {
			a.DeadLetter, a.place = l, place
		}
	}
	d.meanwhile(s.meanwhile, a)
	return a, s.outcome
}

func (d *drive[T]) errorOf(outcome string, n int) error {
	switch err := fmt.Errorf("attempt %d: %w", n, errRecord); outcome {
	case "is skipped":
		return courier.Skip(err)
	case "fails":
		return err
	case "fails for good":
		return courier.Permanent(err)
	case "fails after retries":
		return &courier.RetryError{Reason: courier.ReasonExhausted, Attempts: 7, Elapsed: time.Second, Last: err}
	case "panics", "ends its goroutine":
		return courier.ErrPanic
	case "is refused":
		return &courier.OpenError{Until: until, Cause: err}
	case "is refused for a while":
		return &courier.OpenError{Until: d.now.Add(time.Second), Cause: err}
	}
	return nil
}

var until = time.Date(2046, 5, 1, 12, 0, 0, 0, time.UTC)

func (a *attempt[T]) judge(ctx context.Context) {
	if a.class = courier.ClassSkipped; a.err != nil {
		a.class = courier.Classify(ctx, a.err)
	}
}

func (d *drive[T]) meanwhile(what string, a *attempt[T]) {
	ctx := context.Background()
	name := d.names[d.Number(a.Record)]
	switch what {
	case "it is parked anew":
		_ = d.Send(ctx, d.newLetter(name, a.Branch, a.Key, courier.ReasonExhausted))
	case "another branch parks it":
		other := (slices.Index(branches, a.Branch) + 1) % len(branches)
		_ = d.Send(ctx, d.newLetter(name, branches[other], a.Key, courier.ReasonExhausted))
	case "another is parked":
		_ = d.Send(ctx, d.newLetter(name+1, a.Branch, a.Key, courier.ReasonExhausted))
	case "it is changed":
		changed := d.newLetter(name, a.Branch, a.Key, courier.ReasonExhausted)
		changed.ID = a.ID
		_ = d.model.Update(ctx, changed)
	case "it is deleted":
		_ = d.model.Delete(ctx, a.ID)
	case "the last is deleted":
		if n := len(d.letters); n > 0 && d.letters[n-1].ID != "" {
			_ = d.model.Delete(ctx, d.letters[n-1].ID)
		}
	case "the redrive is cancelled":
		d.cancelled = true
		d.cancel(errCancelled)
	}
}

// check compares what a redrive did with what it promises.
func (d *drive[T]) check(t *rapid.T, result courier.RedriveResult, err error) {
	broken := d.breaks > 0 && d.calls >= d.breaks
	var want courier.RedriveResult
	settled := map[int]*attempt[T]{} // by place
	refused := map[int]bool{}        // by place, the last time
	last := map[line]int{}           // place of a key
	failed := map[line]bool{}        // keys
	highest := 0                     // FailedRedrives of an attempt
	for _, a := range d.tried {
		switch {
		case a.place == 0:
			t.Errorf("a record was applied whose letter was not read")
		case settled[a.place] != nil:
			t.Errorf("the letter at place %d was attempted twice", a.place)
		case a.Key != "" && last[lineOf(a.DeadLetter)] > a.place:
			t.Errorf("the letter at place %d was attempted before that at place %d, of the same key %q in the branch %q", last[lineOf(a.DeadLetter)], a.place, a.Key, a.Branch)
		case failed[lineOf(a.DeadLetter)]:
			t.Errorf("the letter at place %d was attempted, which is behind one of its key %q that failed", a.place, a.Key)
		case a.Key == "" && a.FailedRedrives < highest:
			t.Errorf("the letter at place %d was redriven %d times before, and was attempted after one that was %d times", a.place, a.FailedRedrives, highest)
		}
		last[lineOf(a.DeadLetter)] = a.place
		highest = max(highest, a.FailedRedrives)
		refused[a.place] = a.refused()
		if a.refused() {
			continue
		}
		settled[a.place] = a
		if a.class == courier.ClassSkipped {
			want.Succeeded++
		} else {
			want.Failed++
			failed[lineOf(a.DeadLetter)] = a.Key != ""
		}
		if !a.settled && !broken {
			t.Errorf("the letter at place %d was applied with %v, and is neither removed nor updated", a.place, a.err)
		}
	}
	want.Attempted = want.Succeeded + want.Failed
	if d.breaks != 1 {
		want.Left = max(0, d.total-want.Attempted)
	}
	if result != want {
		t.Errorf("the redrive of %d letters returned %+v, want %+v", d.total, result, want)
	}
	if most := cmp.Or(d.limit, d.total); len(settled) > min(most, d.total) {
		t.Errorf("%d of %d letters were attempted, with a limit of %d", len(settled), d.total, d.limit)
	}
	d.checkChoice(t, settled, refused, err != nil)
	d.checkError(t, err, broken, slices.Contains(slices.Collect(maps.Values(refused)), true))
}

// checkChoice checks which letters were attempted, by the order in which they
// have their turn.
func (d *drive[T]) checkChoice(t *rapid.T, settled map[int]*attempt[T], refused map[int]bool, stopped bool) {
	ended := stopped || d.limit > 0 && len(settled) >= d.limit || len(settled) >= d.total
	stays, unsure := map[line]bool{}, map[line]bool{} // keys
	var last *attempt[T]                              // of those without a key, in their order
	for _, a := range settled {
		if a.Key == "" && (last == nil || cmp.Or(a.FailedRedrives-last.FailedRedrives, a.place-last.place) > 0) {
			last = a
		}
	}
	for place := range d.last + 1 {
		l, read := d.read[place]
		a := settled[place]
		now := slices.IndexFunc(d.letters, func(l *letter[T]) bool { return l.place == place })
		there := now >= 0
		changed := there && d.letters[now].FailedAt.After(d.began) // or parked anew
		if changed || !there && a == nil {
			for _, key := range d.keys[place] {
				unsure[key] = key.key != ""
			}
		}
		if a != nil {
			l = a.DeadLetter
		}
		switch {
		case !read:
			if there && !ended {
				t.Errorf("the letter at place %d was there all the time, and was not read", place)
			}
		case a != nil && (stays[lineOf(l)] || d.match != nil && !d.match(l)):
			t.Errorf("the letter at place %d was attempted, which does not match or is behind one of its key %q that stays", place, l.Key)
		case a != nil:
			stays[lineOf(l)] = l.Key != "" && a.class != courier.ClassSkipped
		case !there || changed:
		case d.match != nil && !d.match(l) || stays[lineOf(l)]:
			stays[lineOf(l)] = l.Key != ""
		case unsure[lineOf(l)]:
		case !ended:
			t.Errorf("the letter at place %d was not attempted", place)
		case l.Key == "" && !refused[place] && last != nil && cmp.Or(l.FailedRedrives-last.FailedRedrives, place-last.place) < 0:
			t.Errorf("the letter at place %d, redriven %d times, was not attempted, and that at place %d was, redriven %d times", place, l.FailedRedrives, last.place, last.FailedRedrives)
		}
	}
}

func (d *drive[T]) checkError(t *rapid.T, err error, broken, refused bool) {
	var stopped *courier.RedriveError
	switch {
	case err != nil && !errors.As(err, &stopped):
		t.Errorf("the redrive returned %v, want a RedriveError", err)
	case err == nil && (broken || refused):
		t.Errorf("the redrive stopped before its end, and returned nil")
	case err == nil || broken && errors.Is(err, errBroken) || d.cancelled && errors.Is(err, errCancelled):
	case broken || !errors.Is(err, courier.ErrOpen) || !refused && d.breaker == nil:
		t.Errorf("the redrive returned %v, of a queue that is broken: %v; of a record that was refused: %v", err, broken, refused)
	case d.breaker == nil && !stopped.Until.After(d.now):
		t.Errorf("a letter was refused until some time, and the redrive returned %v", err)
	case d.breaker != nil && d.breaker.State() == courier.BreakerForcedOpen && (len(d.tried) > 0 || !stopped.Until.IsZero()):
		t.Errorf("the breaker is forced open, %d letters were applied, and the redrive returned %v", len(d.tried), err)
	}
}
