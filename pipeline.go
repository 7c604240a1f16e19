package courier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/erfanmomeniii/courier/internal/engine"
	"github.com/erfanmomeniii/courier/internal/ledger"
)

// pipeline is what the runs of both coordinators have: the source that they call, the
// applier, and the phases of a stop.
type pipeline[T any] struct {
	config  *config
	control *control
	watch   *watch
	clock   *steady
	life    *lifecycle
	stalls  *stalls[T]

	source      Source[T]
	releaser    Releaser[T]       // nil if the source is none
	failer      Failer[T]         // likewise
	pager       Pager             // likewise; nil in a stream, which asks for no pages
	number      uint64            // of the last record that was fetched; they count from 1
	renewer     Renewer[T]        // nil unless the source wants its leases renewed
	leases      *engine.Leases[T] // likewise
	renewEvery  time.Duration     // 0: never by time
	revoked     <-chan struct{}   // renew now; nil unless the source is told of losses
	missed      chan struct{}     // renew now: records came in hand that the last such renewal has missed
	renewing    context.Context   // what leases are renewed under
	endRenewals context.CancelCauseFunc

	applier  Applier[T]
	apply    func(context.Context, T) error // the applier's
	together BatchApplier[T]                // nil unless the applier is better at batches
	ordered  bool                           // and keeps the order inside a call
	portion  int                            // of records that go together; 0 is an equal share
	keyOf    func(T) string                 // nil when no order was asked for
	keyless  uint64                         // records met without a key

	markPace callPace
	lastPace callPace // of marks, once the run stops
}

func newPipeline[T any](control *control, config *config, source Source[T], applier Applier[T]) *pipeline[T] {
	p := &pipeline[T]{
		config: config, control: control, watch: control.watch, clock: config.clock, source: source,
		applier: applier, apply: applier.Apply, together: asBatch(applier), portion: config.applyBatch,
	}
	p.ordered = isOrdered(applier)
	if fn, ok := applier.(processFunc[T]); ok { // one call less for each record
		p.apply = fn
	}
	p.keyOf, _ = config.keyOf.(func(T) string)
	p.releaser, _ = source.(Releaser[T])
	p.failer, _ = source.(Failer[T])
	if r, ok := source.(Renewer[T]); ok {
		if every, revoked := max(0, renewEvery(r)), revokedBy(r); every > 0 || revoked != nil {
			p.renewer, p.renewEvery, p.revoked = r, every, revoked
			p.leases, p.missed = new(engine.Leases[T]), make(chan struct{}, 1)
		}
	}
	return p
}

// begin opens the phases of the run. progress returns what the workers are at, and fetching
// whether a fetch is under way.
func (p *pipeline[T]) begin(ctx context.Context, progress func() ([]inProgress[T], bool), fetching func() bool) {
	p.life = beginLifecycle(ctx, p.watch, p.clock.Clock, p.config.drainTimeout, func() (tell func()) {
		all, _ := progress()
		fetch := fetching()
		return func() { tellDrainOver(p.life.settle, p.watch, all, fetch) }
	})
	p.stalls = newStalls(p.life.work, p.config, p.watch, progress)
	p.renewing, p.endRenewals = context.WithCancelCause(p.life.settle)
}

// keysOf returns the keys of records, in the memory of keys, nil when no order
// was asked for. A record whose key function panics has none, but the error.
func (p *pipeline[T]) keysOf(keys []string, records []T) (_ []string, unkeyed map[int]error) {
	if p.keyOf == nil { // apart, to allocate nothing
		return nil, nil
	}
	return p.keysIn(keys, records)
}

func (p *pipeline[T]) keysIn(keys []string, records []T) (_ []string, unkeyed map[int]error) {
	keys = append(keys[:0], make([]string, len(records))...)
	for next := 0; next < len(records); {
		var err error
		isolate(&err, func() error {
			for ; next < len(records); next++ {
				if keys[next] = p.keyOf(records[next]); keys[next] == "" { // in no order
					p.keyless++
					keys[next] = "courier: no key " + strconv.FormatUint(p.keyless, 10)
				}
			}
			return nil
		})
		if err != nil {
			if unkeyed == nil {
				unkeyed = make(map[int]error)
			}
			unkeyed[next] = fmt.Errorf("courier: the record's order key is not known: %w", err)
			next++
		}
	}
	return keys, unkeyed
}

// fetchResult is what a fetch has brought.
type fetchResult[T any] struct {
	records   []T
	first     uint64   // the number of the first record, where the others follow
	keys      []string // parallel to the records; nil when no order was asked for
	unkeyed   map[int]error
	took      time.Duration
	err       error
	more      bool // the source says that it has more
	skipped   bool // it was not made, see ahead
	cancelled bool // its error, if it has one, tells of that
}

// callFetch calls the source, and numbers what it brings. A call that ends the goroutine
// leaves its result, as call does. There is one at a time.
func (p *pipeline[T]) callFetch(ctx context.Context, limit int, result *fetchResult[T]) {
	*result = fetchResult[T]{}
	guard(&result.err, func() (err error) {
		result.records, err = p.source.Fetch(ctx, limit)
		result.first = p.number + 1
		p.number += uint64(len(result.records))
		if p.leases.Enter(result.first, result.records) {
			nudge(p.missed)
		}
		result.more = err == nil && p.pager != nil && p.pager.More()
		return err
	})
}

// job is one call of the source about records that it has handed out.
type job[T any] struct {
	kind    jobKind
	records []T
	failed  []FailedRecord[T]
	numbers []uint64 // of either; nil where no leases are renewed, but for releases
	after   time.Duration
	began   time.Time // where the duration is asked for

	overPause bool // released for as long as a breaker's pause
}

type jobKind int

const (
	markJob jobKind = iota
	releaseJob
	failJob
	jobKinds
)

func (k jobKind) String() string { return [...]string{"mark", "release", "note of failures"}[k] }

// call makes the call of a job. Whoever goes on with its result, which it leaves also
// where the call ends the goroutine, calls callEnded.
func (p *pipeline[T]) call(j *job[T], result *error) {
	j.began = p.watch.now(p.watch.observer.Marked != nil && j.kind == markJob)
	p.watch.begins(&p.watch.settling, j.kind.String())
	guard(result, func() error {
		switch j.kind {
		case releaseJob:
			return p.releaser.Release(p.life.settle, j.records, j.after)
		case failJob:
			return p.failer.Fail(p.life.settle, j.failed)
		}
		return p.source.Mark(p.life.settle, j.records)
	})
}

func (p *pipeline[T]) callEnded() { p.watch.ends(&p.watch.settling) }

// numbered is a record in hand. Records are numbered in the order fetched, from 1 on.
type numbered[T any] struct {
	record T
	number uint64
}

func (n numbered[T]) inOrder() uint64 { return n.number }

// byNumber puts records in the order fetched.
func byNumber[E interface{ inOrder() uint64 }](items []E) {
	slices.SortFunc(items, func(a, b E) int { return cmp.Compare(a.inOrder(), b.inOrder()) })
}

// releaseOf is the job of giving records back.
func releaseOf[T any](some []numbered[T], after time.Duration) job[T] {
	j := job[T]{kind: releaseJob, after: after}
	for _, one := range some {
		j.records, j.numbers = append(j.records, one.record), append(j.numbers, one.number)
	}
	return j
}

// faults is records that have failed, for a source that keeps a retry schedule.
type faults[T any] struct {
	failed  []FailedRecord[T]
	numbers []uint64
}

func (f *faults[T]) add(one numbered[T], err error) {
	f.failed = append(f.failed, FailedRecord[T]{one.record, err, afterOf(err, maxAfter)})
	f.numbers = append(f.numbers, one.number)
}

// take removes them all, for one call.
func (f *faults[T]) take() job[T] {
	j := job[T]{kind: failJob, failed: f.failed, numbers: f.numbers}
	*f = faults[T]{}
	return j
}

// released tells of records that went back to the source.
func (p *pipeline[T]) released(j *job[T], err error) {
	p.leases.Leave(j.numbers...)
	p.watch.released(p.life.settle, ReleaseEvent{Records: len(j.records) + len(j.failed), Failed: j.kind == failJob, After: j.after, Err: err})
}

// markEvent is what is told of a mark.
func (p *pipeline[T]) markEvent(j *job[T], err error) MarkEvent {
	return MarkEvent{Records: len(j.records), Elapsed: p.watch.since(p.watch.observer.Marked != nil, j.began), Err: err}
}

// retryMarkIn returns when a mark that failed is tried again.
func (p *pipeline[T]) retryMarkIn(err error) time.Duration {
	in := p.markPace.after(p.config, err)
	if p.life.stop.Err() != nil {
		in = p.lastPace.atStop(p.config, err)
	}
	return in
}

// tally adds record i of a batch, which is neither settled nor waits, to what is told of
// the batch, and tells of it where it failed or was refused. It reports whether that is so:
// a record that a stop, a pause, a lost lease or another one of its key has held back is
// told only where the drain timeout has cut it short.
func (b *batch[T]) tally(event *ApplyEvent, i int, err error) bool {
	failed := b.ledger.State(i) == ledger.Failed
	stopped := b.life.stop.Err() != nil && !errors.Is(err, ErrPark)
	switch {
	case failed:
		event.Failed++
	case stopped || err == errHeldBack || err == errLeaseLost || b.paused() != nil:
		if event.Err == nil && b.life.drainTimedOut() { // the first that was cut short
			event.Record, event.Err = b.describe(i), err
		}
		return false
	default:
		event.NotAttempted++
	}
	if event.Err == nil || event.Failed+event.NotAttempted == 1 || failed && event.Failed == 1 {
		event.Record, event.Err = b.describe(i), err
	}
	if b.watch.observer.Failed != nil {
		b.watch.failed(b.life.work, FailEvent{Record: b.describe(i), Class: classOf(failed, err), Err: err})
	}
	return true
}
