package courierttest

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
)

// ErrLeaseLost is why a [LeasingSource] does not renew a lease: another one was
// given since.
var ErrLeaseLost = errors.New("courierttest: the lease of the record is lost")

// LeasingSource is a source in memory that hands out a record once, until it is marked,
// given back, or its lease ends. Leases are fenced: after losing a lease, a process can
// neither mark nor release nor renew the record. It has every capability of a source but
// [courier.Failer], which [SchedulingSource] has. [Recorder.LeasingSource] and
// [Recorder.StreamSource] make it. It is safe for concurrent use.
type LeasingSource[T any] struct {
	// FetchFaults and MarkFaults apply to the calls. With Lost, Fetch has leased the
	// records, and Mark has marked them.
	FetchFaults, MarkFaults Injector

	recorder *Recorder[T]
	shared   *leases[T]

	mu     sync.Mutex
	tokens map[string]uint64 // of the leases that this value was given
}

// leases is what the processes on one source share.
type leases[T any] struct {
	length time.Duration // 0 is without end
	block  bool

	mu      sync.Mutex
	ended   bool
	records []*leased[T]
	changed chan struct{} // closed when something may have become ready
	wake    chan struct{}
}

type leased[T any] struct {
	kept[T]
	token uint64 // of the last lease
	out   bool
	until time.Time // of the lease, zero without end; or when the record is ready
	since time.Time // when it was added
	fails int
}

// LeasingSource returns a source with the given pending records that leases them for the
// given time. Its Fetch does not wait: it is for a polling coordinator.
func (r *Recorder[T]) LeasingSource(lease time.Duration, records ...T) *LeasingSource[T] {
	return r.leasing(&leases[T]{length: lease}, records)
}

// StreamSource returns a source with the given pending records. Its Fetch waits for the
// first record and its leases do not end: it is for a streaming coordinator.
func (r *Recorder[T]) StreamSource(records ...T) *LeasingSource[T] {
	return r.leasing(&leases[T]{block: true}, records)
}

func (r *Recorder[T]) leasing(shared *leases[T], records []T) *LeasingSource[T] {
	shared.changed = make(chan struct{})
	shared.wake = make(chan struct{}, 1)
	s := &LeasingSource[T]{recorder: r, shared: shared, tokens: make(map[string]uint64)}
	s.Add(records...)
	return s
}

// Join returns another source over the same records, for another process, or for the same
// process after a restart. It does not hold the leases of this one.
func (s *LeasingSource[T]) Join() *LeasingSource[T] {
	return &LeasingSource[T]{recorder: s.recorder, shared: s.shared, tokens: make(map[string]uint64)}
}

// Add makes records pending.
func (s *LeasingSource[T]) Add(records ...T) {
	now := s.now()
	s.recorder.note(Added, nil, records...)
	l := s.shared
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, name := range s.recorder.names(records) {
		l.records = append(l.records, &leased[T]{kept: kept[T]{name: name, record: records[i]}, since: now})
	}
	l.change()
	l.wakeUp()
}

// End says that no more records are added: once all are marked, Fetch returns io.EOF.
func (s *LeasingSource[T]) End() {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.shared.ended = true
	s.shared.change()
}

// Pending returns the records that are not marked, leased or not, oldest first.
func (s *LeasingSource[T]) Pending() []T {
	return s.those(func(*leased[T]) bool { return true })
}

// InHand returns the leased records of all processes, oldest first.
func (s *LeasingSource[T]) InHand() []T {
	now := s.now()
	return s.those(func(r *leased[T]) bool { return r.out && !r.ready(now) })
}

func (s *LeasingSource[T]) those(wanted func(*leased[T]) bool) (records []T) {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	for _, r := range s.shared.records {
		if wanted(r) {
			records = append(records, r.record)
		}
	}
	return records
}

// Fetch leases up to limit of the oldest records that are ready.
func (s *LeasingSource[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	return watchFetch(ctx, s.recorder, &s.FetchFaults, func(ctx context.Context) ([]T, error) {
		for {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			records, next, changed := s.lease(limit)
			switch {
			case len(records) > 0 || limit <= 0:
				return records, nil
			case changed == nil:
				return nil, io.EOF
			case !s.shared.block:
				return nil, nil
			}
			var due <-chan time.Time
			if !next.IsZero() {
				due = s.recorder.clock().After(next.Sub(s.now()))
			}
			select {
			case <-changed:
			case <-due:
			case <-ctx.Done():
			}
		}
	})
}

// lease takes what is ready. Where nothing is, it returns when something will
// be, zero for never, and a channel that is closed when that may have changed;
// nil at the end.
func (s *LeasingSource[T]) lease(limit int) (records []T, next time.Time, changed <-chan struct{}) {
	now := s.now()
	l := s.shared
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended && len(l.records) == 0 {
		return nil, time.Time{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range l.records {
		if len(records) >= limit {
			break
		}
		if !r.ready(now) {
			if !r.until.IsZero() && (next.IsZero() || r.until.Before(next)) {
				next = r.until
			}
			continue
		}
		r.token++
		r.out, r.until = true, l.end(now)
		s.tokens[r.name] = r.token
		records = append(records, r.record)
	}
	return records, next, l.changed
}

func (r *leased[T]) ready(now time.Time) bool {
	if r.until.IsZero() {
		return !r.out
	}
	return !now.Before(r.until)
}

func (l *leases[T]) end(now time.Time) time.Time {
	if l.length <= 0 {
		return time.Time{}
	}
	return now.Add(l.length)
}

// change tells who waits to look again. The lock is held.
func (l *leases[T]) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// wakeUp tells that there is work now.
func (l *leases[T]) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Mark notes that records are done, and forgets them. It skips records whose lease is
// lost: with an error the coordinator would mark them again and again.
func (s *LeasingSource[T]) Mark(ctx context.Context, records []T) error {
	return watchMark(ctx, s.recorder, &s.MarkFaults, records, func(ctx context.Context) ([]T, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		stale := s.mine(records, func(_ int, r *leased[T]) { r.done = true })
		var marked []T
		for i, record := range records {
			if !slices.Contains(stale, i) {
				marked = append(marked, record)
			}
		}
		return marked, nil
	})
}

// Release gives records back, to be handed out again after a while.
func (s *LeasingSource[T]) Release(ctx context.Context, records []T, after time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var released []T
	ready := s.now().Add(after)
	s.mine(records, func(i int, r *leased[T]) {
		if r.out {
			r.out, r.until = false, ready
			released = append(released, records[i])
		}
	})
	s.recorder.note(Released, nil, released...)
	if after <= 0 && len(released) > 0 {
		s.shared.wakeUp()
	}
	return nil
}

// RenewEvery returns a third of the lease, and an hour for leases without end.
func (s *LeasingSource[T]) RenewEvery() time.Duration {
	if s.shared.length <= 0 {
		return time.Hour
	}
	return s.shared.length / 3
}

// Renew extends the leases of records, and lists those whose lease is lost.
func (s *LeasingSource[T]) Renew(ctx context.Context, records []T) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	until := s.shared.end(s.now())
	var lost courier.BatchError
	stale := s.mine(records, func(i int, r *leased[T]) {
		if r.out {
			r.until = until
		} else {
			lost.Add(i, ErrLeaseLost)
		}
	})
	for _, i := range stale {
		lost.Add(i, ErrLeaseLost)
	}
	return lost.ErrorOrNil()
}

// mine calls do for those of the records whose last lease was this value's, and
// returns the indices of those that somebody else was given since.
func (s *LeasingSource[T]) mine(records []T, do func(i int, r *leased[T])) (stale []int) {
	var others []T
	l := s.shared
	l.mu.Lock()
	s.mu.Lock()
	for i, name := range s.recorder.names(records) {
		at := slices.IndexFunc(l.records, func(r *leased[T]) bool { return r.name == name })
		switch {
		case at < 0: // done
		case l.records[at].token != s.tokens[name]:
			stale, others = append(stale, i), append(others, records[i])
		default:
			do(i, l.records[at])
		}
	}
	l.records = slices.DeleteFunc(l.records, func(r *leased[T]) bool { return r.done })
	l.change()
	s.mu.Unlock()
	l.mu.Unlock()
	s.recorder.note(Stale, ErrLeaseLost, others...)
	return stale
}

// Wake returns a channel that gets a value when records are added or given back.
func (s *LeasingSource[T]) Wake() <-chan struct{} { return s.shared.wake }

// Lag returns how many records could be fetched now, and the age of the oldest.
func (s *LeasingSource[T]) Lag(context.Context) (courier.Lag, error) {
	now := s.now()
	var lag courier.Lag
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	for _, r := range s.shared.records {
		if r.ready(now) {
			lag.Pending++
			lag.Oldest = max(lag.Oldest, now.Sub(r.since))
		}
	}
	return lag, nil
}

// Identity names a record as the recorder does.
func (s *LeasingSource[T]) Identity(record T) string { return s.recorder.name(record) }

// Validate reports an invalid fault.
func (s *LeasingSource[T]) Validate() error {
	return errors.Join(s.FetchFaults.Validate(), s.MarkFaults.Validate())
}

func (s *LeasingSource[T]) now() time.Time { return s.recorder.clock().Now() }

// SchedulingSource is a [LeasingSource] that schedules retries itself, as a
// [courier.Failer]: it hands out a failed record again after Backoff, after twice that
// the second time, and so on up to an hour, and never sooner than its error asks for.
type SchedulingSource[T any] struct {
	*LeasingSource[T]

	// Backoff is the delay after the first failure. 0 is a second.
	Backoff time.Duration
}

// SchedulingSource returns a leasing source that keeps the schedule of retries.
func (r *Recorder[T]) SchedulingSource(lease time.Duration, records ...T) *SchedulingSource[T] {
	return &SchedulingSource[T]{LeasingSource: r.LeasingSource(lease, records...)}
}

// Fail schedules records again.
func (s *SchedulingSource[T]) Fail(ctx context.Context, failed []courier.FailedRecord[T]) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now := s.now()
	first := s.Backoff
	if first <= 0 {
		first = time.Second
	}
	records := make([]T, len(failed))
	for i, f := range failed {
		records[i] = f.Record
	}
	s.mine(records, func(i int, r *leased[T]) {
		if r.out {
			delay := min(first<<min(r.fails, 20), time.Hour)
			r.fails++
			r.out, r.until = false, now.Add(max(delay, failed[i].After))
		}
	})
	for _, f := range failed {
		s.recorder.note(Released, f.Error, f.Record)
	}
	return nil
}

var (
	_ courier.Source[int]     = (*LeasingSource[int])(nil)
	_ courier.Releaser[int]   = (*LeasingSource[int])(nil)
	_ courier.Renewer[int]    = (*LeasingSource[int])(nil)
	_ courier.Waker           = (*LeasingSource[int])(nil)
	_ courier.Lagger          = (*LeasingSource[int])(nil)
	_ courier.Identifier[int] = (*LeasingSource[int])(nil)
	_ courier.Validator       = (*LeasingSource[int])(nil)
	_ courier.Failer[int]     = (*SchedulingSource[int])(nil)
)
