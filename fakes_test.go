package courier_test

// Sources, appliers, queues and clocks that the tests of several subjects share.

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// quiet is for tests whose failures are on purpose.
var quiet = courier.WithLogger(slog.New(slog.DiscardHandler))

var errTest = errors.New("the record's own error")

// shelf is a re-reading source in memory: what is not marked is returned again,
// in order.
type shelf[T comparable] struct {
	mu      sync.Mutex
	pending []T
	marks   [][]T // one for each successful call
	fetches int
	limits  []int

	fetchErr func(n int) error // n counts from 1
	markErr  func(n int) error
	markCtx  []error // ctx.Err() at each call
	markN    int
}

func newShelf[T comparable](records ...T) *shelf[T] { return &shelf[T]{pending: records} }

func (s *shelf[T]) Fetch(_ context.Context, limit int) ([]T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches++
	s.limits = append(s.limits, limit)
	if s.fetchErr != nil {
		if err := s.fetchErr(s.fetches); err != nil {
			return nil, err
		}
	}
	return slices.Clone(s.pending[:min(limit, len(s.pending))]), nil
}

func (s *shelf[T]) Mark(ctx context.Context, records []T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.markN++
	s.markCtx = append(s.markCtx, ctx.Err())
	if s.markErr != nil {
		if err := s.markErr(s.markN); err != nil {
			return err
		}
	}
	s.marks = append(s.marks, slices.Clone(records))
	s.pending = slices.DeleteFunc(s.pending, func(r T) bool { return slices.Contains(records, r) })
	return nil
}

func (s *shelf[T]) add(records ...T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, records...)
}

func (s *shelf[T]) left() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pending)
}

func (s *shelf[T]) marked() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.marks...)
}

// leasing is a shelf that hands a record out once until it is given back.
type leasing[T comparable] struct {
	*shelf[T]
	released [][]T
	afters   []time.Duration
	out      map[T]bool
	wait     bool // block for the first record, as a stream does
	more     chan struct{}
}

func newLeasing[T comparable](records ...T) *leasing[T] {
	return &leasing[T]{shelf: newShelf(records...), out: map[T]bool{}, more: make(chan struct{}, 1)}
}

func (l *leasing[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	for {
		l.mu.Lock()
		var records []T
		for _, r := range l.pending {
			if !l.out[r] && len(records) < limit {
				l.out[r] = true
				records = append(records, r)
			}
		}
		l.fetches++
		l.mu.Unlock()
		if len(records) > 0 || !l.wait {
			return records, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.more:
		}
	}
}

func (l *leasing[T]) add(records ...T) {
	l.shelf.add(records...)
	l.wake()
}

func (l *leasing[T]) wake() {
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func (l *leasing[T]) Release(_ context.Context, records []T, after time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.released = append(l.released, slices.Clone(records))
	l.afters = append(l.afters, after)
	for _, r := range records {
		delete(l.out, r)
	}
	l.wake()
	return nil
}

// sink records what is applied, and fails as told.
type sink[T comparable] struct {
	mu      sync.Mutex
	applied []T
	calls   int
	fail    func(ctx context.Context, record T, call int) error // call counts from 1
}

func (s *sink[T]) Apply(ctx context.Context, record T) error {
	s.mu.Lock()
	s.calls++
	call, fail := s.calls, s.fail
	s.mu.Unlock()
	if fail != nil {
		if err := fail(ctx, record, call); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = append(s.applied, record)
	return nil
}

func (s *sink[T]) got() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.applied)
}

func (s *sink[T]) called() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// batchSink is a sink that takes batches, and by default applies them whole.
type batchSink[T comparable] struct {
	sink[T]
	batches   [][]T
	failBatch func(ctx context.Context, records []T, call int) error
}

func (s *batchSink[T]) ApplyBatch(ctx context.Context, records []T) error {
	s.mu.Lock()
	s.batches = append(s.batches, slices.Clone(records))
	call, fail := len(s.batches), s.failBatch
	s.mu.Unlock()
	var err error
	if fail != nil {
		err = fail(ctx, records, call)
	}
	var list *courier.BatchError
	if err != nil && !errors.As(err, &list) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range records {
		failed := list != nil && slices.ContainsFunc(list.Failures, func(f courier.BatchFailure) bool { return f.Index == i })
		if !failed {
			s.applied = append(s.applied, r)
		}
	}
	return err
}

func (s *shelf[T]) fetchCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

// eachOfBatch applies a batch one by one, and lists what fails.
type eachOfBatch[T any] struct{ courier.Applier[T] }

func (b eachOfBatch[T]) ApplyBatch(ctx context.Context, records []T) error {
	var list courier.BatchError
	for i, r := range records {
		if err := b.Apply(ctx, r); err != nil {
			list.Add(i, err)
		}
	}
	return list.ErrorOrNil()
}

func newBreaker(threshold int) *courier.Breaker {
	return courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: threshold, OpenFor: 10 * time.Second, Random: half})
}

// handClock is a clock that the test sets or moves, for breakers, which have no timer. Tests
// with timers take a courierttest.Clock, or a wallClock.
type handClock struct {
	mu  sync.Mutex
	now time.Time
}

func newHandClock() *handClock { return &handClock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *handClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) After(time.Duration) <-chan time.Time { panic("a breaker has no timer") }

func (c *handClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// wallClock is a clock as time.Now().UTC().Round(0) makes one, which somebody sets.
type wallClock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (w *wallClock) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.offset).UTC().Round(0)
}

func (w *wallClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func (w *wallClock) step(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offset += d
}

// collector is a mark function and what it was given.
type collector struct {
	mu    sync.Mutex
	calls [][]int
	ctx   []error
}

func (c *collector) mark(ctx context.Context, records []int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, slices.Clone(records))
	c.ctx = append(c.ctx, ctx.Err())
	return nil
}

func (c *collector) all() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Concat(c.calls...)
}

// running is what both coordinators have in common.
type running interface {
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	Pause()
	Resume()
	Wake()
	Ready() error
	Stats() courier.Stats
	Lag(ctx context.Context) (courier.Lag, error)
}

// fault is an error that a test sets while a coordinator runs.
type fault struct{ p atomic.Pointer[error] }

func (f *fault) set(err error) { f.p.Store(&err) }

func (f *fault) get() error {
	if p := f.p.Load(); p != nil {
		return *p
	}
	return nil
}

// rateLimited is an error of the user's own that says NotAttempted.
type rateLimited struct{}

func (rateLimited) Error() string      { return "rate limited" }
func (rateLimited) NotAttempted() bool { return true }

// dlqFunc is a DLQ of functions.
type dlqFunc struct {
	send func(context.Context, courier.DeadLetter[int]) error
}

func (d *dlqFunc) Send(ctx context.Context, l courier.DeadLetter[int]) error { return d.send(ctx, l) }
func (d *dlqFunc) Receive(context.Context, int) ([]courier.DeadLetter[int], error) {
	return nil, nil
}

func (d *dlqFunc) List(context.Context, string, int) ([]courier.DeadLetter[int], error) {
	return nil, nil
}

func (d *dlqFunc) Update(context.Context, courier.DeadLetter[int]) error { return nil }
func (d *dlqFunc) Delete(context.Context, ...string) error               { return nil }
func (d *dlqFunc) Count(context.Context) (int, error)                    { return 0, nil }

// beyond is a leasing source that pays no heed to the limit.
type beyond struct{ *leasing[int] }

func (s beyond) Fetch(ctx context.Context, _ int) ([]int, error) { return s.leasing.Fetch(ctx, 1000) }

// renewable is a leasing source whose leases are renewed, by a function.
type renewable struct {
	*leasing[int]
	every   time.Duration
	renew   func(ctx context.Context, records []int) error
	fetch   func(ctx context.Context, limit int) ([]int, error)
	markFor time.Duration

	releaseFor time.Duration
}

func (a *renewable) RenewEvery() time.Duration { return a.every }
func (a *renewable) Renew(ctx context.Context, records []int) error {
	return a.renew(ctx, slices.Clone(records))
}

func (a *renewable) Fetch(ctx context.Context, limit int) ([]int, error) {
	if a.fetch != nil {
		return a.fetch(ctx, limit)
	}
	return a.leasing.Fetch(ctx, limit)
}

func (a *renewable) Mark(ctx context.Context, records []int) error {
	if a.markFor > 0 {
		time.Sleep(a.markFor)
	}
	return a.leasing.Mark(ctx, records)
}

func (a *renewable) Release(ctx context.Context, records []int, after time.Duration) error {
	if a.releaseFor > 0 {
		time.Sleep(a.releaseFor)
	}
	return a.leasing.Release(ctx, records, after)
}

// notesRenewals has the source renew what it is asked to, and returns the function
// that tells what it was asked so far.
func (a *renewable) notesRenewals() func() [][]int {
	var mu sync.Mutex
	var renewed [][]int
	a.renew = func(_ context.Context, records []int) error {
		mu.Lock()
		defer mu.Unlock()
		renewed = append(renewed, records)
		return nil
	}
	return func() [][]int {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(renewed)
	}
}

// sourceFuncs is a streaming source that takes nothing back.
type sourceFuncs struct {
	fetch func(ctx context.Context, limit int) ([]int, error)
	mark  func(ctx context.Context, records []int) error
}

func (s sourceFuncs) Fetch(ctx context.Context, limit int) ([]int, error) { return s.fetch(ctx, limit) }
func (s sourceFuncs) Mark(ctx context.Context, records []int) error       { return s.mark(ctx, records) }

// unspread is the middle of every spread.
var unspread = courier.WithRandom(func() float64 { return 0.5 })

// lines is a log that may be read while it is written.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// destination is a sink that is down for a while, and never takes poison.
type destination struct {
	mu      sync.Mutex
	began   time.Time
	outage  time.Duration
	poison  int
	applied map[int]int
	during  int // calls while it was down

	openUntil time.Time // what the breaker last told
	openFrom  time.Time
	whileOpen int
}

// watch listens to the breaker, to know when no call may come.
func (d *destination) watch(_ context.Context, c courier.BreakerChange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.openFrom, d.openUntil = c.At, c.Until
	if c.To != courier.BreakerOpen {
		d.openUntil = time.Time{}
	}
}

// called counts a call that should not be: a call that began with the opening
// was under way.
func (d *destination) called() {
	if now := time.Now(); now.After(d.openFrom) && now.Before(d.openUntil) {
		d.whileOpen++
	}
}

func (d *destination) take(r int) error {
	d.called()
	if time.Since(d.began) < d.outage {
		d.during++
		return errors.New("connection refused")
	}
	if r == d.poison {
		return errors.New("looks transient, and is poison")
	}
	d.applied[r]++
	return nil
}

func (d *destination) Apply(_ context.Context, r int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.take(r)
}

// batches is the same destination, as one that takes batches all or nothing.
type batches struct{ *destination }

func (b batches) ApplyBatch(_ context.Context, records []int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called()
	if time.Since(b.began) < b.outage {
		b.during++
		return errors.New("connection refused")
	}
	for _, r := range records {
		if r == b.poison {
			return errors.New("the batch was refused")
		}
	}
	for _, r := range records {
		b.applied[r]++
	}
	return nil
}

// plain is a policy whose delays can be told beforehand: 1 s, 2 s, 4 s and so on.
var plain = courier.RetryPolicy{InitialDelay: time.Second, MaxDelay: time.Minute, Jitter: courier.NoJitter}

// teller is what tells of a coordinator.
type teller interface {
	running
	Ready() error
	Stats() courier.Stats
}
