package courier

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"time"
)

// pageSize is how many letters are held at once in a walk through a queue.
const pageSize = 100

// Letters iterates over the letters of a queue, oldest first, a page at a time.
// Every letter that stays in the queue meanwhile is met exactly once, as it is
// when its page is read; one that comes meanwhile is met if it comes in behind.
// Letters may be deleted and updated from within the loop. An error ends the
// iteration, the end of ctx included, and is its last pair.
func Letters[T any](ctx context.Context, queue DLQ[T]) iter.Seq2[DeadLetter[T], error] {
	return func(yield func(DeadLetter[T], error) bool) {
		if fault := configErrorOf("queue", queue); fault != nil {
			yield(DeadLetter[T]{}, fault)
			return
		}
		for after := ""; ; {
			page, err := listAfter(ctx, queue, after, pageSize)
			if err != nil {
				yield(DeadLetter[T]{}, err)
				return
			}
			if len(page) == 0 {
				return
			}
			after = page[len(page)-1].ID
			for _, letter := range page {
				if !yield(letter, nil) {
					return
				}
			}
		}
	}
}

// listAfter reads a page. A queue that returns the same one for ever is told
// from one that has no end.
func listAfter[T any](ctx context.Context, queue DLQ[T], after string, max int) (page []DeadLetter[T], err error) {
	if ctx.Err() != nil {
		return nil, causeOf(ctx)
	}
	isolate(&err, func() (err error) {
		page, err = queue.List(ctx, after, max)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("courier: listing dead letters: %w", err)
	}
	if n := len(page); n > 0 && page[n-1].ID == after {
		return nil, fmt.Errorf("courier: listing dead letters: the queue (%T) returned the letter %q as one behind itself", queue, after)
	}
	return page, nil
}

// RedriveConfig configures [Redrive]. The zero value is the default.
type RedriveConfig[T any] struct {
	// Match says which letters are redriven, such as those of one Branch, or
	// those whose Redriven is below some limit. nil is all.
	Match func(letter DeadLetter[T]) bool

	// Limit is how many letters are redriven at most. 0 is no limit but that of
	// how many there were at the beginning.
	Limit int

	// BatchSize is how many letters are read at a time, and applied at a time by
	// a [BatchApplier]. 0 is 100.
	BatchSize int

	// Clock is nil for the system's clock.
	Clock Clock

	_ struct{}
}

// RedriveResult is what a [Redrive] did.
type RedriveResult struct {
	Redriven  int // applied: Succeeded and Failed
	Succeeded int // applied or skipped, and removed unless the error says otherwise
	Failed    int // stay in the queue, with their new error
	Left      int // of those there at the beginning, were not attempted
}

// ErrRedrive is what every [*RedriveError] is, to errors.Is.
var ErrRedrive = errors.New("courier: the redrive stopped before its end")

// RedriveError says why a redrive stopped before its end. What it did not get to
// is in the queue: redrive again.
type RedriveError struct {
	Err   error
	Until time.Time // when it is worth going on, zero where that is not known
}

func (e *RedriveError) Error() string {
	text := "courier: the redrive stopped before its end"
	if !e.Until.IsZero() {
		text += ", to go on from " + e.Until.Format(time.RFC3339)
	}
	return fmt.Sprintf("%s: %v", text, e.Err)
}

// Is reports whether err is [ErrRedrive].
func (e *RedriveError) Is(err error) bool { return err == ErrRedrive }

// Unwrap returns Err.
func (e *RedriveError) Unwrap() error { return e.Err }

// Redrive applies the records of a queue again, oldest first, and removes those
// that were applied. nil is the default config. Pass the applier that the queue
// was put around, with its retry and breaker if it has them.
//
// A letter is removed only after its apply returned nil, so that a crash at any
// point loses none; one that was applied and not yet removed is applied again by
// the next redrive. A record that fails stays, in its place, with the new error,
// time and attempts, and Redriven one higher. Should a newer failure of a record
// be parked while it is redriven, that letter stays whatever the outcome. Where
// letters have a Key, those behind one of their key and Branch that stays are
// left, so that their order is kept.
//
// The redrive stops, with a [*RedriveError], when ctx ends, when a record was
// not attempted (an open breaker, say; the letter stays as it is), and when the
// queue fails. It attempts no letter twice and no more letters than there were
// at its beginning, so that it ends even if they are parked anew as fast as it
// goes. A record's failure is no error of the redrive: see RedriveResult.Failed.
//
// An applier that parks in the same queue, by itself or by a decorator inside
// it, would make a loop and is refused with a [*ConfigError]; one that hides it
// behind a function is found out at the first record that fails there. Run one
// redrive of a queue at a time: two lose nothing, but may apply a record twice.
func Redrive[T any](ctx context.Context, queue DLQ[T], applier Applier[T], config *RedriveConfig[T]) (RedriveResult, error) {
	r := redrive[T]{queue: queue, applier: applier, held: make(map[string]bool)}
	if config != nil {
		r.config = *config
	}
	if fault := r.prepare(); fault != nil {
		return RedriveResult{}, fault
	}
	total, err := r.run(ctx)
	r.result.Redriven = r.result.Succeeded + r.result.Failed
	r.result.Left = max(0, total-r.result.Redriven)
	if err != nil {
		until, _ := pauseOf(err)
		return r.result, &RedriveError{Err: err, Until: until}
	}
	return r.result, nil
}

type redrive[T any] struct {
	queue   DLQ[T]
	applier Applier[T]
	batch   BatchApplier[T]
	config  RedriveConfig[T]
	held    map[string]bool // keys, by lineOf, of which a letter stays
	result  RedriveResult
}

// prepare sets the defaults, or returns what is wrong.
func (r *redrive[T]) prepare() error {
	c := &r.config
	if fault := firstFault(configErrorOf("queue", r.queue), configErrorOf("applier", r.applier)); fault != nil {
		return fault
	}
	switch {
	case c.Limit < 0:
		return &ConfigError{"RedriveConfig.Limit", fmt.Sprintf("is %d: want more than 0, or 0 for no limit", c.Limit)}
	case c.BatchSize < 0:
		return &ConfigError{"RedriveConfig.BatchSize", fmt.Sprintf("is %d: want at least 1, or 0 for the default", c.BatchSize)}
	case parksInto(r.applier, func(other any) bool { return sameQueue(r.queue, other) }):
		return errRedriveLoop(nil)
	}
	c.BatchSize = or(c.BatchSize, pageSize)
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	r.batch = asBatch(r.applier)
	return nil
}

func (r *redrive[T]) run(ctx context.Context) (total int, err error) {
	// Counted even when ctx has ended, so that the result says what is left.
	err = detached(ctx, r.config.Clock, func(ctx context.Context) (err error) {
		total, err = r.queue.Count(ctx)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("courier: counting dead letters: %w", err)
	}
	if ctx.Err() != nil {
		return total, causeOf(ctx)
	}
	after, seen := "", 0
	for seen < total {
		page, err := listAfter(ctx, r.queue, after, min(r.config.BatchSize, total-seen))
		if err != nil || len(page) == 0 {
			return total, err
		}
		page, err = r.page(ctx, page)
		if err != nil {
			return total, err
		}
		seen += len(page)
		after = page[len(page)-1].ID
		if r.config.Limit > 0 && r.result.Succeeded+r.result.Failed >= r.config.Limit {
			return total, nil
		}
	}
	return total, nil
}

// page redrives the letters of a page that are to be, in rounds that hold one of
// each key, and returns how far that is: what the limit leaves is the next
// page's, should others of this one be held back.
func (r *redrive[T]) page(ctx context.Context, page []DeadLetter[T]) ([]DeadLetter[T], error) {
	var chosen []DeadLetter[T]
	var keys []string
	left := len(page)
	if r.config.Limit > 0 {
		left = r.config.Limit - r.result.Succeeded - r.result.Failed
	}
	held := make(map[string]bool) // from here on in the page
	for i, letter := range page {
		if len(chosen) == left {
			page = page[:i]
			break
		}
		key := lineOf(letter)
		if held[key] || r.held[key] {
			continue
		}
		matched, err := r.matches(letter)
		if err != nil {
			return page, err
		}
		if matched {
			chosen, keys = append(chosen, letter), append(keys, key)
		} else if key != "" {
			held[key] = true
		}
	}
	for _, round := range roundsOf(keys) {
		var letters []DeadLetter[T]
		for _, i := range round {
			if !r.held[keys[i]] {
				letters = append(letters, chosen[i])
			}
		}
		if err := r.round(ctx, letters); err != nil {
			return page, err
		}
	}
	for key := range held {
		r.held[key] = true
	}
	return page, nil
}

// lineOf names what a letter waits in, "" for none: the letters of a key wait for
// each other, and never for those of another branch.
func lineOf[T any](letter DeadLetter[T]) string {
	if letter.Key == "" {
		return ""
	}
	return fmt.Sprintf("%d:%s%s", len(letter.Branch), letter.Branch, letter.Key)
}

func (r *redrive[T]) matches(letter DeadLetter[T]) (matched bool, err error) {
	if r.config.Match == nil {
		return true, nil
	}
	isolate(&err, func() error {
		matched = r.config.Match(letter)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("courier: RedriveConfig.Match of the letter %q: %w", letter.ID, err)
	}
	return matched, nil
}

// round applies the records of letters, and then removes or updates these.
func (r *redrive[T]) round(ctx context.Context, letters []DeadLetter[T]) error {
	if len(letters) == 0 {
		return nil
	}
	errs, classes := r.apply(ctx, letters)
	var done []string
	var failed []DeadLetter[T]
	var stop error
	now := r.config.Clock.Now()
	for i, err := range errs {
		letter := letters[i]
		switch classes[i] {
		case Skipped:
			done = append(done, letter.ID)
			continue
		case NotAttempted:
			stop = firstFault(stop, err)
		default:
			letter.Redriven++
			letter.failed(context.WithoutCancel(ctx), err, now)
			failed = append(failed, letter)
		}
		if key := lineOf(letter); key != "" {
			r.held[key] = true
		}
	}
	r.result.Succeeded += len(done)
	r.result.Failed += len(failed)
	if len(done) > 0 {
		err := detached(ctx, r.config.Clock, func(ctx context.Context) error { return r.queue.Delete(ctx, done...) })
		if err != nil {
			stop = fmt.Errorf("courier: %d dead letters were applied and could not be removed, so that a redrive will apply them again: %w", len(done), err)
		}
	}
	for _, letter := range failed {
		err := detached(ctx, r.config.Clock, func(ctx context.Context) error { return r.queue.Update(ctx, letter) })
		if err != nil { // a queue that does not answer is not asked for every letter
			return errors.Join(stop, fmt.Errorf("courier: the dead letter %q failed again (%w) and could not be updated with it: %w", letter.ID, letter.Error, err))
		}
	}
	return stop
}

// apply returns an error for each letter, and its class as it arrived: an end of
// ctx later on takes no verdict back.
func (r *redrive[T]) apply(ctx context.Context, letters []DeadLetter[T]) ([]error, []Class) {
	ctx = context.WithValue(ctx, redriveKey{}, func(other any) bool { return sameQueue(r.queue, other) })
	records := make([]T, len(letters))
	for i, letter := range letters {
		records[i] = letter.Record
	}
	errs, classes := make([]error, len(records)), make([]Class, len(records))
	if r.batch != nil && len(records) > 1 {
		spread(applyIsolated(ctx, r.batch, records), errs)
		for i := range errs {
			classes[i], errs[i] = verdictOf(ctx, errs[i])
		}
		return errs, classes
	}
	for i := range records {
		if i > 0 && classes[i-1] == NotAttempted {
			classes[i], errs[i] = NotAttempted, errs[i-1]
			continue
		}
		spread(applyEach(ctx, r.applier, records[i:i+1]), errs[i:i+1])
		classes[i], errs[i] = verdictOf(ctx, errs[i])
	}
	return errs, classes
}

// verdictOf is the class of a result, Skipped for a success, and an error that
// names the end of ctx where it is for that.
func verdictOf(ctx context.Context, err error) (Class, error) {
	if err == nil {
		return Skipped, nil
	}
	class := classify(ctx, err)
	if class == NotAttempted && classify(context.WithoutCancel(ctx), err) != NotAttempted {
		err = unattempted(fmt.Errorf("%w, and what was under way then failed: %w", causeOf(ctx), err))
	}
	return class, err
}

type redriveKey struct{}

// redriveOf reports whether a call is made by the redrive of a queue.
func redriveOf(ctx context.Context, queue any) bool {
	is, ok := ctx.Value(redriveKey{}).(func(any) bool)
	return ok && is(queue)
}

// errRedriveLoop refuses a redrive whose failures would go where they come from.
func errRedriveLoop(cause error) error {
	problem := "parks in the queue that is redriven, which would go round in a loop: pass the applier inside the dead letter queue"
	if cause != nil {
		problem += fmt.Sprintf(" (the record failed with: %v)", cause)
	}
	return &ConfigError{Field: "applier", Problem: problem}
}

// parksInto reports whether a decorator of a stack, fan-outs included, parks in a
// queue that is wanted.
func parksInto(applier any, wanted func(queue any) bool) bool {
	return slices.ContainsFunc(parkersOf(applier), func(p parker) bool { return wanted(p.deadLetters()) })
}

// sameQueue reports whether two queues keep their letters in the same place.
func sameQueue[T any](queue DLQ[T], other any) bool {
	o, ok := other.(DLQ[T])
	if !ok || o == nil {
		return false
	}
	if reflect.ValueOf(queue).Comparable() && reflect.ValueOf(o).Comparable() && queue == o {
		return true
	}
	for _, pair := range [...][2]DLQ[T]{{queue, o}, {o, queue}} {
		if shared, ok := pair[0].(SharedDLQ[T]); ok {
			var same bool
			var ignored error
			isolate(&ignored, func() error {
				same = shared.SameQueue(pair[1])
				return nil
			})
			if same {
				return true
			}
		}
	}
	return false
}
