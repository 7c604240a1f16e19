package courier

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Branch is one destination of a fan-out.
type Branch[T any] struct {
	// Name is the branch's name in errors and OnBranchFailure. It is required, and no two
	// branches share one.
	Name string

	// Applier should be a stack of its own ([ResilientApplier]), because a shared breaker
	// would let one destination stop another. Branches may share a dead letter queue if
	// each gives its letters a name ([DLQPolicy].Branch).
	Applier Applier[T]

	// Optional means that records count as applied even without this branch. Its
	// failures, and refusals of its open breaker, go to OnBranchFailure; they fail no
	// record and pause nothing. Nor does it get a record again for which it asks with
	// [Later]: that is a failure of it too. It does not count for Quorum.
	Optional bool
}

// FanOutConfig configures [NewFanOutFromConfig]. Only the branches are required. They are
// copied.
type FanOutConfig[T any] struct {
	// Branches are applied concurrently. At least one is not optional.
	Branches []Branch[T]

	// Quorum is how many of the required branches must have a record for it to be
	// applied. 0 is all of them. The other branches run as well and are waited for, but
	// once the quorum has the record they do not get it again: their failures go to
	// OnBranchFailure.
	Quorum int

	// OnBranchFailure is called for every failure not returned by Apply: of optional
	// branches, and beyond the quorum. The branch does not get the record, unless the
	// record is delivered again because another branch failed. It is required if any
	// branch is optional or a quorum is set.
	//
	// It is called after all branches have ended, one call at a time for each delivery,
	// in the order of the records and branches. Apply waits for it. A panic in it does no
	// harm.
	OnBranchFailure func(ctx context.Context, record T, branch string, err error)

	// Identity names records, so that a record which is delivered again goes only to the
	// branches that do not have it yet. It returns the same name for the same record and
	// no name for two records. Two versions of a row that is handed out each time it
	// changes are two records and need two names. A record named "", or for which
	// Identity panics, is not remembered.
	//
	// nil remembers nothing: each branch gets a record again that any branch failed.
	// There is no default by content, because an equal record that comes later may be a
	// different one ("set 20", "set 25", "set 20"), which a branch must not miss.
	//
	// It may be called concurrently, and is not called while no record waits to be
	// delivered again.
	Identity func(record T) string

	// Remember bounds how many partially applied records are tracked. 0 is 10,000. The
	// least recently seen record is evicted, and so is a record that did not return among
	// 100,000 others, because it was probably settled elsewhere. An evicted record goes
	// to all branches again. The memory ends with the process.
	Remember int

	// Clone returns a copy for a branch to keep or modify. If it is nil, all branches get
	// the same value, which they must not modify. It may be called concurrently for one
	// record. A panic in it is a failure of the branch that a dead letter queue inside
	// the branch does not see, but a queue around the fan-out does.
	Clone func(record T) T
}

const (
	defaultRemember = 10_000
	rememberAmong   = 100_000
)

// validate reports a bad value, beside what is wrong with the appliers.
func (c *FanOutConfig[T]) validate() error {
	required := 0
	for i, b := range c.Branches {
		field := fmt.Sprintf("FanOutConfig.Branches[%d].Name", i)
		if b.Name == "" {
			return &ConfigError{field, "is empty: name the branch for its errors"}
		}
		if slices.ContainsFunc(c.Branches[:i], func(other Branch[T]) bool { return other.Name == b.Name }) {
			return &ConfigError{field, fmt.Sprintf("is %q, and so is that of another branch: give each branch its own name", b.Name)}
		}
		if !b.Optional {
			required++
		}
	}
	switch {
	case len(c.Branches) == 0:
		return &ConfigError{"FanOutConfig.Branches", "is empty: pass at least one branch"}
	case required == 0:
		return &ConfigError{"FanOutConfig.Branches", "are all optional: at least one branch must be required"}
	case c.Quorum < 0 || c.Quorum > required:
		return &ConfigError{"FanOutConfig.Quorum", fmt.Sprintf("is %d: want 1 to %d, the number of branches that are not optional, or 0 for all of them", c.Quorum, required)}
	case c.OnBranchFailure == nil && (required < len(c.Branches) || c.Quorum != 0 && c.Quorum < required):
		return &ConfigError{"FanOutConfig.OnBranchFailure", "is nil: pass the function to call with a branch's failure that Apply does not return"}
	case c.Remember < 0:
		return &ConfigError{"FanOutConfig.Remember", fmt.Sprintf("is %d: want at least 1, or 0 for the default; without Identity nothing is remembered", c.Remember)}
	case c.Remember > 0 && c.Identity == nil:
		return &ConfigError{"FanOutConfig.Remember", "needs FanOutConfig.Identity, to recognize a record"}
	}
	return nil
}

// FanOutError says which branches a record has yet to reach, and why it did not. Its
// class follows from their errors: ClassNotAttempted if any of them is, so that the
// coordinator pauses and nothing is parked; otherwise retryable if any is; otherwise
// permanent.
//
// If no branch failed and some of them skipped the record, it lists the skips and its
// class is ClassSkipped.
type FanOutError struct {
	Failures []BranchFailure // in the order of the branches

	short int // how many of them the record needs
}

// BranchFailure is one branch's error. The branches of [NewFanOutApplier] are
// named by their position, from "0".
type BranchFailure struct {
	Branch string
	Err    error
}

func (e *FanOutError) Error() string {
	var b strings.Builder
	what := "failed"
	if slices.ContainsFunc(e.Failures, func(f BranchFailure) bool { return notCalled(f.Err) }) {
		what = "do not have the record"
	}
	fmt.Fprintf(&b, "courier: %d of the fan-out's branches %s", len(e.Failures), what)
	for i, f := range e.Failures {
		fmt.Fprintf(&b, "%c branch %s: %s", ":;"[min(i, 1)], f.Branch, inner(f.Err))
	}
	return b.String()
}

// Unwrap returns the branches' errors.
func (e *FanOutError) Unwrap() []error {
	errs := make([]error, len(e.Failures))
	for i, f := range e.Failures {
		errs[i] = f.Err
	}
	return errs
}

func (e *FanOutError) class(ctx context.Context) ErrorClass {
	if len(e.Failures) == 0 { // of somebody's own making
		return ClassRetryable
	}
	result := ClassSkipped
	for _, f := range e.Failures {
		switch class := classify(ctx, f.Err); {
		case class == ClassNotAttempted:
			return ClassNotAttempted
		case class == ClassRetryable || result == ClassSkipped:
			result = class
		}
	}
	return result
}

// pause reports whether the fan-out takes nothing for now because of branches with an
// open breaker, and when enough of them may be probed.
func (e *FanOutError) pause() (until time.Time, paused bool) {
	var times []time.Time
	for _, f := range e.Failures {
		if markedClass(context.Background(), f.Err) != ClassNotAttempted {
			continue // its time is its own, and pauses nothing
		}
		if until, paused := pauseOf(f.Err); paused {
			times = append(times, until)
		}
	}
	if len(times) == 0 {
		return time.Time{}, false
	}
	// Branches that failed otherwise may succeed at any time. Of those that take
	// nothing for now, the rest that is needed must be back, of which nobody knows
	// where a breaker is forced open.
	slices.SortFunc(times, func(a, b time.Time) int {
		if a.IsZero() != b.IsZero() {
			return cmp.Compare(b.Unix(), a.Unix())
		}
		return a.Compare(b)
	})
	others := len(e.Failures) - len(times)
	if others >= e.short {
		return time.Time{}, false // they may do it without
	}
	return times[e.short-others-1], true
}

// NewFanOutApplier applies each record to every branch, concurrently. It is
// [NewFanOutFromConfig] with all branches required, named by their position, and nothing
// else set: if one branch fails a record, all branches get it again.
func NewFanOutApplier[T any](branches ...Applier[T]) Applier[T] {
	var c FanOutConfig[T]
	for i, branch := range branches {
		c.Branches = append(c.Branches, Branch[T]{Name: strconv.Itoa(i), Applier: branch})
	}
	if len(branches) == 0 {
		return newFanOut(c, "branches", &ConfigError{Field: "branches", Problem: "is empty: pass at least one applier"})
	}
	return newFanOut(c, "branches", nil)
}

// NewFanOutFromConfig applies each record to several branches concurrently and waits for
// all of them. A slow branch delays the others, so give its attempts a timeout. A branch
// that fails does not stop the others, and a panic in a branch is its failure. Apply
// returns nil once the record is applied: all required branches have it, or as many as
// the quorum. Otherwise it returns a [*FanOutError]. A branch that skips a record counts
// as having it.
//
// Delivery is at least once for each branch. With FanOutConfig.Identity, a record that is
// delivered again within the process goes only to the branches that do not have it yet,
// so a branch that is down causes no duplicates in the healthy ones. Without Identity,
// and after a restart, all branches get it.
//
// A record is marked at its source when it is applied. So while a required branch is
// down, the coordinator pauses, and the healthy branches get no new records either. If a
// destination must not delay the others, make it optional, leave it beyond a quorum, or
// give it a coordinator of its own.
//
// The fan-out checks the breakers of the branches before it calls any. While a required
// branch refuses calls, no branch gets the record. While a branch is due for a probe, it
// gets the record first, and the others only once it has answered. So an outage of one
// branch causes no duplicates in the others with each probe. The [*FanOutError] has an
// error for a branch that was not called; it says which branch the fan-out waits for.
//
// In a batch each branch gets the records that it does not have yet, in one call if it
// takes batches. The result is as safe for concurrent use as the branches.
func NewFanOutFromConfig[T any](config FanOutConfig[T]) Applier[T] {
	return newFanOut(config, "FanOutConfig.Branches", config.validate())
}

func newFanOut[T any](c FanOutConfig[T], field string, fault error) Applier[T] {
	f := &fanOutApplier[T]{
		branches:  make([]branch[T], len(c.Branches)),
		quorum:    c.Quorum,
		onFailure: c.OnBranchFailure,
		identity:  c.Identity,
		memory:    doneMemory{limit: c.Remember, among: rememberAmong},
		order:     c.Identity != nil || len(c.Branches) == 1,
		fault:     fault,
	}
	if c.Remember == 0 {
		f.memory.limit = defaultRemember
	}
	for i, b := range c.Branches {
		if f.fault == nil {
			f.fault = b.fault(fmt.Sprintf("%s[%d]", field, i))
		}
		if c.Clone != nil && b.Applier != nil {
			b.Applier = &cloneApplier[T]{newStage(cloning, b.Applier, nil), c.Clone}
		}
		f.branches[i] = branch[T]{stage: newStage(branching, b.Applier, nil), name: b.Name, optional: b.Optional}
		if !b.Optional && len(c.Branches) > 1 {
			f.branches[i].breakers = breakersOf(layerOf(b.Applier))
		}
		f.branches[i].retries = retryOwnersOf(layerOf(b.Applier))
		f.batched = f.batched || f.branches[i].batch != nil
		f.order = f.order && f.branches[i].order && !b.Optional
		if c.Quorum == 0 && !b.Optional {
			f.quorum++
		}
		if f.fault == nil {
			f.fault = oneLetterFor(c.Branches[:i+1], fmt.Sprintf("%s[%d]", field, i))
		}
	}
	f.order = f.order && f.quorum == len(f.branches)
	f.tells = layer{kind: branching, fault: f.fault, of: f, batches: f.batched}
	required := 0
	for i := range f.branches {
		if !f.branches[i].optional {
			required++
		}
	}
	for i := range f.branches {
		b := &f.branches[i]
		inner := b.tells.inside[0]
		inner.branch, inner.needed = b.name, !b.optional && required <= f.quorum
		f.tells.inside = append(f.tells.inside, inner)
	}
	return f
}

// oneLetterFor refuses the last of the branches if it parks in the queue of an
// earlier one under the same name: their letters could not be told apart, and of
// two letters of one record a queue by identity would keep one.
func oneLetterFor[T any](branches []Branch[T], field string) error {
	last := branches[len(branches)-1]
	for _, p := range parkersOf(layerOf(last.Applier)) {
		for _, other := range branches[:len(branches)-1] {
			for _, o := range parkersOf(layerOf(other.Applier)) {
				if p.branch == o.branch && p.same(o.queue) {
					return &ConfigError{field, fmt.Sprintf("parks in the same dead letter queue as the branch %s, and both have the DLQPolicy.Branch %q, so that their letters cannot be told apart: give each branch a DLQPolicy.Branch of its own", other.Name, p.branch)}
				}
			}
		}
	}
	return nil
}

// fault returns what is wrong with the branch's applier, and in which branch.
func (b *Branch[T]) fault(field string) error {
	if parksInto(layerOf(b.Applier), marksRecords) {
		return &ConfigError{field, "parks in a dead letter queue that marks the record at its source, and the other branches may not have it yet: give the branch a queue that does not mark records"}
	}
	fault := applierFault(field, b.Applier)
	if c, ok := fault.(*ConfigError); fault == nil || ok && c.Field == field {
		return fault
	}
	return fmt.Errorf("courier: in branch %s: %w", b.Name, fault)
}

type branch[T any] struct {
	stage[T]
	name     string
	optional bool
	breakers []*Breaker // of a required branch, which the fan-out asks before it calls any
	retries  []any
}

type fanOutApplier[T any] struct {
	branches  []branch[T]
	quorum    int // how many of the required ones must have a record
	onFailure func(ctx context.Context, record T, branch string, err error)
	identity  func(T) string
	memory    doneMemory
	tells     layer
	batched   bool
	order     bool // of the records of a call is kept in each branch
	fault     error
}

// Validate reports a fault of the configuration or of a branch.
func (f *fanOutApplier[T]) Validate() error { return f.fault }

func (f *fanOutApplier[T]) OrderedBatches() bool { return f.order }

func (f *fanOutApplier[T]) describe() *layer { return &f.tells }

func (f *fanOutApplier[T]) Apply(ctx context.Context, record T) error {
	switch {
	case f.fault != nil:
		return f.fault
	case ctx == nil:
		return errNoContext
	}
	before := historiesIn(ctx, 1) != nil // it was delivered, in part
	if gates := f.gates(); before || gates != nil || f.remembers() {
		return f.deliver(ctx, []T{record}, gates, func(ctx context.Context, b int, records []T, exit error) verdicts {
			return verdicts{whole: f.branches[b].apply(ctx, records[0], exit)}
		}).of(1)[0]
	}
	errs := make([]error, len(f.branches))
	f.each(ctx, nil, errs, func(b int) error { return f.branches[b].apply(ctx, record, errs[b]) })
	return f.conclude(ctx, record, errs)
}

// apply calls the branch, or goes on after the Goexit that ended the call before.
func (b *branch[T]) apply(ctx context.Context, record T, exit error) error {
	if isExit(exit) {
		return afterExit(ctx, b.inner, record, exit)
	}
	return b.inner.Apply(ctx, record)
}

// resume is for an only branch, which is applied on the caller's goroutine.
func (f *fanOutApplier[T]) resume(ctx context.Context, record T, exit error) error {
	return f.conclude(ctx, record, []error{afterExit(ctx, f.branches[0].inner, record, exit)})
}

// conclude returns what becomes of a record that all branches were called with.
func (f *fanOutApplier[T]) conclude(ctx context.Context, record T, errs []error) error {
	if allNil(errs) {
		return nil
	}
	columns := make([][]error, len(errs))
	for b := range errs {
		columns[b] = errs[b : b+1]
	}
	return f.settle(ctx, []T{record}, nil, columns)[0]
}

func (f *fanOutApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	switch {
	case f.fault != nil:
		return f.fault
	case ctx == nil:
		return errNoContext
	}
	return f.applyMany(ctx, records).err() // each branch at its own pace, be there one that takes batches or none
}

func (f *fanOutApplier[T]) applyMany(ctx context.Context, records []T) verdicts {
	return f.deliver(ctx, records, f.gates(), func(ctx context.Context, b int, records []T, _ error) verdicts {
		batch := f.branches[b].batch
		switch {
		case batch == nil:
			return applyEach(ctx, f.branches[b].inner, records)
		case f.order:
			return applyIsolated(ctx, batch, records, true)
		}
		return applyOn(ctx, batch, records, false)
	})
}

// callOf calls a branch with some records. It is told what ended the goroutine of the call
// before, nil where nothing has.
type callOf[T any] func(ctx context.Context, branch int, records []T, exit error) verdicts

// deliver calls each branch with the records that it does not have yet.
func (f *fanOutApplier[T]) deliver(ctx context.Context, records []T, gates []gate, call callOf[T]) verdicts {
	var names []string
	var known [][]bool
	if f.remembers() {
		names = f.name(records, nil)
		known = f.memory.recall(names)
	}
	told := f.answersTo(ctx, len(records))
	known = f.known(known, told)
	if gates != nil {
		return apart(f.applyInTurn(ctx, records, names, known, told, gates, call))
	}
	skip, shares := f.shares(known) // of each branch that lacks only some records, their indices
	results := f.eachOf(ctx, skip, func(b int, exit error) verdicts {
		if shares != nil && shares[b] != nil {
			ctx, some := shareOf(ctx, records, shares[b])
			return call(ctx, b, some, exit)
		}
		return call(ctx, b, records, exit)
	})
	if told == nil && !slices.ContainsFunc(results, func(v verdicts) bool { return !v.ok() }) {
		f.memory.forget(names)
		return verdicts{}
	}
	columns := make([][]error, len(results))
	for b, v := range results {
		switch {
		case v.ok():
		case shares == nil || shares[b] == nil:
			columns[b] = v.of(len(records))
		default:
			columns[b] = make([]error, len(records))
			v.scatter(shares[b], columns[b])
		}
	}
	f.recollect(told, columns)
	return apart(f.settle(ctx, records, names, columns))
}

// eachOf is each with verdicts on several records.
func (f *fanOutApplier[T]) eachOf(ctx context.Context, skip []bool, call func(branch int, exit error) verdicts) []verdicts {
	results, errs := make([]verdicts, len(f.branches)), make([]error, len(f.branches))
	f.each(ctx, skip, errs, func(b int) error {
		results[b] = call(b, errs[b])
		return results[b].whole
	})
	for b, err := range errs {
		if err != nil {
			results[b] = verdicts{whole: err}
		}
	}
	return results
}

// each runs call for every branch that is not skipped and returns when all have
// ended. A Goexit ends the goroutine of a branch, and call is called again on
// another one, with that in errs; an only branch has the caller's goroutine, see
// resume.
func (f *fanOutApplier[T]) each(ctx context.Context, skip []bool, errs []error, call func(branch int) error) {
	if len(f.branches) == 1 {
		guard(&errs[0], func() error { return call(0) })
		return
	}
	var wg sync.WaitGroup
	worker := exitsIn(ctx)
	for b := range f.branches {
		if skip != nil && skip[b] {
			continue
		}
		worker.fork(1)
		wg.Go(func() {
			defer worker.fork(-1)
			returned := false
			defer func() {
				if !returned {
					isolate(&errs[b], func() error { return call(b) })
				}
			}()
			guard(&errs[b], func() error { return call(b) })
			returned = true
		})
	}
	worker.fork(-1) // which waits for them
	wg.Wait()
	worker.fork(1)
}

// settle decides what becomes of each record of a delivery in which a branch
// returned an error. errs are the records' errors by branch, nil where a branch
// has none. Every failure of a branch is either in the result or reported.
func (f *fanOutApplier[T]) settle(ctx context.Context, records []T, names []string, errs [][]error) []error {
	results := make([]error, len(records))
	past := historiesIn(ctx, len(records))
	var lacking [][]bool // by record that is to come again: which branches have it
	var reports []report
	for i := range records {
		v := f.judge(ctx, i, errs)
		var used history
		if past != nil {
			used = past[i]
		}
		if unfinished := f.unfinished(ctx, i, used, errs, v.err); unfinished != nil {
			v.err, v.tolerated, v.again = unfinished, nil, true
		}
		results[i] = v.err
		for _, failure := range v.tolerated {
			reports = append(reports, report{i, failure})
		}
		if v.again && v.has != nil && f.identity != nil {
			if lacking == nil {
				lacking = make([][]bool, len(records))
			}
			lacking[i] = v.has
		}
	}
	switch {
	case lacking != nil:
		if names == nil {
			names = f.name(records, lacking)
		}
		f.memory.note(names, lacking)
	case names != nil:
		f.memory.forget(names)
	}
	f.report(ctx, records, reports)
	return results
}

// verdict is what becomes of a record.
type verdict struct {
	err       error
	again     bool            // it is to come again
	has       []bool          // by branch, nil when all have it or none
	tolerated []BranchFailure // not in err
}

func (f *fanOutApplier[T]) judge(ctx context.Context, i int, errs [][]error) verdict {
	var failed, skipped []int
	have := 0
	for b := range f.branches {
		switch {
		case errs[b] == nil || errs[b][i] == nil:
		case classify(ctx, errs[b][i]) != ClassSkipped:
			failed = append(failed, b)
			continue
		case !f.branches[b].optional:
			skipped = append(skipped, b)
		}
		if !f.branches[b].optional {
			have++
		}
	}
	failure := func(b int) BranchFailure { return BranchFailure{f.branches[b].name, errs[b][i]} }
	var v verdict
	if len(failed) > 0 && len(failed) < len(f.branches) {
		v.has = make([]bool, len(f.branches))
		for b := range v.has {
			v.has[b] = !slices.Contains(failed, b)
		}
	}
	if have < f.quorum {
		undone := &FanOutError{short: f.quorum - have}
		v.err, v.again = undone, true
		for _, b := range failed {
			switch {
			case !f.branches[b].optional:
				undone.Failures = append(undone.Failures, failure(b))
			case !notCalled(errs[b][i]): // else it gets the record when that comes again
				v.tolerated = append(v.tolerated, failure(b))
			}
		}
		return v
	}
	for _, b := range failed {
		v.tolerated = append(v.tolerated, failure(b))
	}
	if skipped != nil {
		skips := new(FanOutError)
		for _, b := range skipped {
			skips.Failures = append(skips.Failures, failure(b))
		}
		v.err = skips
	}
	return v
}

// report is a tolerated failure of the record with an index.
type report struct {
	record  int
	failure BranchFailure
}

// report passes tolerated failures on, each call guarded from the others.
func (f *fanOutApplier[T]) report(ctx context.Context, records []T, reports []report) {
	if len(reports) == 0 {
		return
	}
	next := 0
	supervise(func() {
		for next < len(reports) {
			r := reports[next]
			next++
			var ignored error
			guard(&ignored, func() error {
				f.onFailure(ctx, records[r.record], r.failure.Branch, r.failure.Err)
				return nil
			})
		}
	})
}

// cloneApplier gives an applier copies of the records.
type cloneApplier[T any] struct {
	stage[T]
	clone func(T) T
}

func (c *cloneApplier[T]) Apply(ctx context.Context, record T) error {
	return c.apply(ctx, c.clone(record))
}

func (c *cloneApplier[T]) resume(ctx context.Context, record T, exit error) error {
	return resumed(ctx, c.inner, c.clone(record), exit)
}

func (c *cloneApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	return applyMany(ctx, BatchApplier[T](c), records).err()
}

func (c *cloneApplier[T]) applyMany(ctx context.Context, records []T) verdicts {
	copies := make([]T, len(records))
	for i, record := range records {
		copies[i] = c.clone(record)
	}
	return c.applyBatch(ctx, copies)
}
