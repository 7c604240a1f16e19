package courier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"time"
)

// pageSize is how many letters are read at a time.
const pageSize = 100

// Letters iterates over the letters of a queue, oldest first, reading one page at a time.
// Every letter that stays in the queue is returned exactly once, as it was when its page
// was read. A letter that is added meanwhile is returned if its place is after the
// current one. Letters may be deleted and updated inside the loop. An error, including
// the end of ctx, ends the iteration and is its last pair.
func Letters[T any](ctx context.Context, queue DLQ[T]) iter.Seq2[DeadLetter[T], error] {
	return func(yield func(DeadLetter[T], error) bool) {
		if fault := firstFault(contextFault(ctx), configErrorOf("queue", queue)); fault != nil {
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

// listAfter reads a page. It detects a queue that returns the same page again and again.
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
		return nil, fmt.Errorf("courier: listing dead letters: the queue (%T) returned the letter %q after itself", queue, after)
	}
	return page, nil
}

// RedriveConfig configures [Redrive]. The zero value is the default.
type RedriveConfig[T any] struct {
	// Match selects the letters to redrive, such as those of one Branch, or those whose
	// FailedRedrives is below a limit. nil selects all. It may be called more than once
	// for a letter.
	Match func(letter DeadLetter[T]) bool

	// Limit is the largest number of letters to redrive. 0 is the number of letters at
	// the start.
	Limit int

	// BatchSize is how many letters are read at a time, and how many a [BatchApplier]
	// applies at a time once a first record has succeeded alone. 0 is 100.
	BatchSize int

	// Clock is nil for the system's clock.
	Clock Clock
}

// RedriveResult says what a [Redrive] did.
type RedriveResult struct {
	Attempted int // applied: Succeeded and Failed
	Succeeded int // applied or skipped, and removed unless the error says otherwise
	Failed    int // stay in the queue, with their new error
	Left      int // there at the start, and not attempted
}

// ErrRedrive is what every [*RedriveError] is, to errors.Is.
var ErrRedrive = errors.New("courier: the redrive stopped before its end")

// RedriveError says why a redrive stopped before its end. The remaining letters are still
// in the queue: redrive again.
type RedriveError struct {
	Err   error
	Until time.Time // when to continue, zero if that is not known
}

func (e *RedriveError) Error() string {
	text := "courier: the redrive stopped before its end"
	if !e.Until.IsZero() {
		text += ", to go on from " + e.Until.Format(time.RFC3339)
	}
	return text + ": " + inner(e.Err)
}

// Is reports whether err is [ErrRedrive].
func (e *RedriveError) Is(err error) bool { return err == ErrRedrive }

// Unwrap returns Err.
func (e *RedriveError) Unwrap() error { return e.Err }

// Redrive applies the records of a queue again and removes the letters of those that
// succeed. A nil config is the default. Pass the applier that is
// inside the queue, with a breaker and a retry around it if the redrive is to have them.
// That of [ResilientApplier] is refused, because its letters would go in circles.
//
// Redrive removes a letter only after its apply returned nil, so a crash at any point
// loses none. A record that was applied, but whose letter was not removed yet, is applied
// again by the next redrive. A letter that fails again keeps its place, gets the new
// error, time and attempts, and its FailedRedrives increases by one. If the pipeline
// parks a record again while it is redriven, the newer letter stays whatever the outcome.
//
// Letters that failed the fewest redrives go first, oldest first among equals, so that
// letters which keep failing do not block others. Letters with the same Key and Branch
// keep their order: if a letter stays, the later ones wait for it. Redrive attempts no
// letter twice, and no more letters than there were at the start, so it ends even if
// records are parked as fast as it runs.
//
// When a breaker opens after the failure of a letter, Redrive notes the failure, waits
// until the breaker admits a probe, and goes on with the next letter. A letter that fails
// as the probe keeps its Attempts, which count only while the breaker is closed. Redrive
// waits at most 10 seconds between one success and the next.
//
// Redrive stops with a [*RedriveError] if it would have to wait longer, as in an outage
// or when a breaker is forced open; if ctx ends; if a record is refused for another
// reason than a breaker; if a dead letter queue inside the applier refuses a record; and
// if the queue fails. A letter whose record was not applied is unchanged. The failure of
// a record is not an error of the redrive: see RedriveResult.Failed.
//
// Redrive does not stop for a record that waits alone, because the breaker of its key is
// open ([NewKeyedCircuitBreakerApplier]) or because it asks for that with [Later]. That
// letter stays, with the later ones of its key, the others go on, and the error at the
// end says so.
//
// An applier that parks in the same queue would make a loop and is refused with a
// [*ConfigError]. If it hides the queue behind a function, Redrive detects that at the
// first record that fails there. Run one redrive of a queue at a time: two lose nothing,
// but may apply a record twice.
func Redrive[T any](ctx context.Context, queue DLQ[T], applier Applier[T], config *RedriveConfig[T]) (RedriveResult, error) {
	r := redrive[T]{queue: queue, applier: applier, held: make(map[string]bool), waits: make(map[string]bool), left: make(map[string]bool)}
	if config != nil {
		r.config = *config
	}
	if fault := firstFault(contextFault(ctx), r.prepare()); fault != nil {
		return RedriveResult{}, fault
	}
	total, err := r.run(ctx)
	r.result.Attempted = r.attempted()
	r.result.Left = max(0, total-r.result.Attempted)
	if err != nil {
		until, _ := pauseOf(err)
		return r.result, &RedriveError{Err: err, Until: until}
	}
	return r.result, nil
}

const (
	// redrivePatience is how long a redrive waits for breakers between one
	// success and the next: as long as for a call of the queue.
	redrivePatience = sendTimeout

	// probeWait is the shortest wait for a breaker that was to admit a probe by
	// now: the probe of somebody else is under way.
	probeWait = 100 * time.Millisecond
)

type redrive[T any] struct {
	queue   DLQ[T]
	applier Applier[T]
	batch   BatchApplier[T]
	config  RedriveConfig[T]
	clock   *steady
	result  RedriveResult

	level int             // letters that failed more redrives than this are for a later walk
	next  int             // the lowest count among those, 0 without one
	left  map[string]bool // the IDs of all letters that the first walk has left for later
	held  map[string]bool // keys, by lineOf, of letters that failed
	waits map[string]bool // likewise, of letters that stay for this walk

	waited time.Duration // since the last success
	proven bool          // a record was applied since a breaker last refused one

	refusal error // of the first letter that stayed for its record's own time, while others went on
}

// prepare sets the defaults, or returns what is wrong.
func (r *redrive[T]) prepare() error {
	c := &r.config
	if fault := firstFault(configErrorOf("queue", r.queue), applierFault("applier", r.applier), clockFault("RedriveConfig.Clock", c.Clock)); fault != nil {
		return fault
	}
	switch {
	case c.Limit < 0:
		return &ConfigError{"RedriveConfig.Limit", fmt.Sprintf("is %d: want more than 0, or 0 for no limit", c.Limit)}
	case c.BatchSize < 0:
		return &ConfigError{"RedriveConfig.BatchSize", fmt.Sprintf("is %d: want at least 1, or 0 for the default", c.BatchSize)}
	case parksInto(layerOf(r.applier), func(other any) bool { return sameQueue(r.queue, other) }):
		return errRedriveLoop(nil)
	}
	c.BatchSize = or(c.BatchSize, pageSize)
	c.Clock = clockOr(c.Clock)
	r.clock = newSteady(c.Clock)
	r.clock.stack = clocksOf(layerOf(r.applier))
	r.batch = asBatch(r.applier)
	return nil
}

func (r *redrive[T]) attempted() int { return r.result.Succeeded + r.result.Failed }

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
	r.config.Limit = min(or(r.config.Limit, total), total)
	for {
		if err := r.walk(ctx, total); err != nil || r.next == 0 {
			return total, cmp.Or(err, r.refusal)
		}
		r.level = r.next
	}
}

// walk goes through the letters once, which in most redrives is all.
func (r *redrive[T]) walk(ctx context.Context, total int) error {
	r.next = 0
	clear(r.waits)
	after, seen := "", 0
	for seen < total && r.attempted() < r.config.Limit {
		page, err := listAfter(ctx, r.queue, after, min(r.config.BatchSize, total-seen))
		if err != nil || len(page) == 0 {
			return err
		}
		if page, err = r.page(ctx, page); err != nil {
			return err
		}
		seen += len(page)
		after = page[len(page)-1].ID
	}
	return nil
}

// page redrives the letters of a page that are for this walk, in rounds that hold
// one of each key, and returns how far that is: what the limit leaves is the next
// page's, should others of this one be held back.
func (r *redrive[T]) page(ctx context.Context, page []DeadLetter[T]) ([]DeadLetter[T], error) {
	var chosen []DeadLetter[T]
	var keys []string
	left := r.config.Limit - r.attempted()
	for i, letter := range page {
		if len(chosen) == left {
			page = page[:i]
			break
		}
		take, err := r.takes(letter)
		switch {
		case err != nil:
			return page, err
		case take:
			chosen, keys = append(chosen, letter), append(keys, lineOf(letter))
			continue
		case letter.Key != "":
			r.waits[lineOf(letter)] = true
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

// takes reports whether a letter is for this walk. A later walk takes only what
// the first has left for it: a letter that was attempted, or that the pipeline
// has parked anew since, has another ID.
func (r *redrive[T]) takes(letter DeadLetter[T]) (bool, error) {
	line := lineOf(letter)
	if r.held[line] || r.level > 0 && !r.left[letter.ID] {
		return false, nil
	}
	if matched, err := r.matches(letter); err != nil || !matched {
		return false, err
	}
	behind := r.waits[line]
	if !behind && letter.FailedRedrives <= r.level {
		return true, nil
	}
	if !behind && (r.next == 0 || letter.FailedRedrives < r.next) {
		r.next = letter.FailedRedrives
	}
	if r.level == 0 {
		r.left[letter.ID] = true
	}
	return false, nil
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

// round applies the records of letters, and again those that were refused, until
// each is applied or has failed. Records go together only once one has gone well
// alone: a batch that fails as one, and opens the breaker, tells of none of them,
// and the next redrive would begin with the same. What was refused goes on alone.
func (r *redrive[T]) round(ctx context.Context, letters []DeadLetter[T]) error {
	for apart := false; len(letters) > 0; {
		now := letters
		if r.batch != nil && (apart || !r.proven) {
			now = letters[:1]
		}
		trials := r.apply(ctx, now)
		refused, err := r.settle(ctx, now, trials)
		if err != nil {
			return err
		}
		apart = apart || len(refused) > 0
		letters = append(refused, letters[len(now):]...)
		if err := r.wait(ctx, trials, len(letters) > 0); err != nil {
			return err
		}
	}
	return nil
}

// settle removes the letters whose records were applied and updates those that
// failed. It returns the others.
func (r *redrive[T]) settle(ctx context.Context, letters []DeadLetter[T], trials []trial) (refused []DeadLetter[T], stop error) {
	var done []string
	var failed []DeadLetter[T]
	now := r.config.Clock.Now()
	for i, t := range trials {
		letter := letters[i]
		switch {
		case t.failure != nil:
			attempts := letter.Attempts
			letter.FailedRedrives++
			letter.failed(context.WithoutCancel(ctx), t.failure, now)
			if letter.Attempts = t.attempts; t.attempts == 0 {
				letter.Attempts = attempts
			}
			failed = append(failed, letter)
			if key := lineOf(letter); key != "" {
				r.held[key] = true
			}
		case t.alone: // it stays, and the later ones of its key with it
			if letter.Key != "" {
				r.held[lineOf(letter)] = true
			}
			if r.refusal == nil {
				r.refusal = t.refusal
			}
		case t.refusal != nil:
			refused = append(refused, letter)
		default:
			done = append(done, letter.ID)
		}
	}
	r.result.Succeeded += len(done)
	r.result.Failed += len(failed)
	if len(done) > 0 {
		r.waited, r.proven = 0, true
		err := detached(ctx, r.config.Clock, func(ctx context.Context) error { return r.queue.Delete(ctx, done...) })
		if err != nil {
			stop = fmt.Errorf("courier: %d dead letters were applied and could not be removed, so that a redrive will apply them again: %w", len(done), err)
		}
	}
	for _, letter := range failed {
		err := detached(ctx, r.config.Clock, func(ctx context.Context) error { return r.queue.Update(ctx, letter) })
		if err != nil { // a queue that does not answer is not asked for every letter
			return refused, errors.Join(stop, fmt.Errorf("courier: the dead letter %q failed again (%w) and could not be updated with it: %w", letter.ID, letter.Error, err))
		}
	}
	return refused, stop
}

// wait waits until the breakers that refused a letter, or opened over one, admit
// a probe, if more letters are to be applied. It returns why the redrive stops.
func (r *redrive[T]) wait(ctx context.Context, trials []trial, more bool) error {
	var halted *trial // over which the wait is the longest
	for i := range trials {
		t := &trials[i]
		switch {
		case !t.halts():
		case !t.paused || t.until.IsZero():
			return t.refusal
		case halted == nil || t.until.After(halted.until):
			halted = t
		}
	}
	if halted == nil {
		return nil
	}
	if r.proven = false; !more {
		return nil
	}
	left := halted.until.Sub(r.clock.Now())
	pause := max(left, probeWait, r.waited/4)
	if r.waited+pause > redrivePatience || left < -redrivePatience {
		return halted.refusal
	}
	r.waited += pause
	r.clock.sleep(ctx, pause)
	if ctx.Err() != nil {
		return fmt.Errorf("%w, while the redrive waited for a breaker: %w", causeOf(ctx), halted.refusal)
	}
	return nil
}

// trial is what became of a letter when its record was applied, or was refused:
// the zero value is success.
type trial struct {
	failure  error // of the record
	attempts int   // that it made while the breaker was closed

	refusal error     // ClassNotAttempted; a failure beside it is the one over which a breaker opened
	until   time.Time // when a record is worth applying again, by the steady clock, where
	paused  bool      // the refusal tells
	alone   bool      // the refusal is of this record, and says nothing of others
}

// halts reports whether no further record is worth applying for now. The retries
// of one record may have ended for its own sake, by their budget, say.
func (t *trial) halts() bool {
	return t.refusal != nil && !t.alone && (t.failure == nil || t.paused || errors.Is(t.refusal, ErrPark))
}

// trialOf judges a result as it arrives: an end of ctx later on changes nothing.
func (r *redrive[T]) trialOf(ctx context.Context, err error) (t trial) {
	if err == nil {
		return t
	}
	switch classify(ctx, err) {
	case ClassSkipped:
	case ClassNotAttempted:
		if Classify(context.WithoutCancel(ctx), err) != ClassNotAttempted {
			err = unattempted(fmt.Errorf("%w, and what was under way then failed: %w", causeOf(ctx), err))
		}
		t.refusal = err
		t.failure, t.attempts = failureIn(ctx, err)
		t.until, t.paused = pauseOf(err)
		t.until = r.clock.of(t.until)
		_, t.alone = askedLater(err)
		t.alone = t.alone && !t.paused
	default:
		t.failure, t.attempts = err, attemptsOf(err)
	}
	return t
}

// apply applies the records of letters until the destination takes nothing for
// now, together where they may be.
func (r *redrive[T]) apply(ctx context.Context, letters []DeadLetter[T]) []trial {
	ctx = context.WithValue(ctx, redriveKey{}, func(other any) bool { return sameQueue(r.queue, other) })
	records := make([]T, len(letters))
	for i, letter := range letters {
		records[i] = letter.Record
	}
	trials := make([]trial, len(records))
	if r.batch != nil && len(records) > 1 {
		for i, err := range applyOn(ctx, r.batch, records, false).of(len(records)) {
			trials[i] = r.trialOf(ctx, err)
		}
		return trials
	}
	for i := range records {
		if i > 0 && trials[i-1].halts() {
			trials[i] = trials[i-1]
			trials[i].failure = nil
			continue
		}
		trials[i] = r.trialOf(ctx, applyEach(ctx, r.applier, records[i:i+1]).of(1)[0])
	}
	return trials
}

// failureIn returns the failure that an error of class ClassNotAttempted tells of, and
// how many attempts it counts for, 0 for a probe: that over which a breaker
// opened, or after which the retries were cut short. It is nil where no call was
// made.
func failureIn(ctx context.Context, err error) (failure error, attempts int) { //nolint:staticcheck // the failure is what is asked for, and no error of the call
	switch e := err.(type) {
	case *OpenError:
		switch {
		case !e.called:
			return nil, 0
		case e.counted:
			return e.Cause, attemptsOf(e.Cause)
		}
		return e.Cause, 0
	case *askedLaterError:
		return failureIn(ctx, e.err)
	case *pendingError:
		if failure, _ = failureIn(ctx, e.err); failure == nil {
			failure = fmt.Errorf("courier: the record failed %d times, and was not tried again because a breaker refused it: %w", e.usage.used, e.err)
		}
		return failure, e.usage.used
	case *RetryError:
		if e.Attempts == 0 {
			return nil, 0
		}
		return e, e.Attempts
	case *ParkError:
		if e.Err == ErrKeyParked {
			return nil, 0
		}
		return e, attemptsOf(e.Err)
	case *FanOutError:
		for _, f := range e.Failures {
			cause, n := f.Err, attemptsOf(f.Err)
			if classify(ctx, f.Err) == ClassNotAttempted {
				cause, n = failureIn(ctx, f.Err)
			}
			if cause != nil {
				failure, attempts = err, max(attempts, n)
			}
		}
		return failure, attempts
	case interface{ NotAttempted() bool }:
		if e.NotAttempted() {
			return nil, 0
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if cause, n := failureIn(ctx, e.Unwrap()); cause != nil {
			return err, n
		}
	case interface{ Unwrap() []error }:
		for _, child := range e.Unwrap() {
			if cause, n := failureIn(ctx, child); cause != nil {
				return err, n
			}
		}
	}
	return nil, 0
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
func parksInto(stack *layer, wanted func(queue any) bool) bool {
	return slices.ContainsFunc(parkersOf(stack), func(p *parker) bool { return wanted(p.queue) })
}

// sameQueue reports whether two queues keep their letters in the same place.
func sameQueue[T any](queue DeadLetterSink[T], other any) bool {
	o, ok := other.(DeadLetterSink[T])
	if !ok || o == nil {
		return false
	}
	if reflect.ValueOf(queue).Comparable() && reflect.ValueOf(o).Comparable() && queue == o {
		return true
	}
	for _, pair := range [...][2]DeadLetterSink[T]{{queue, o}, {o, queue}} {
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
