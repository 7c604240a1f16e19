package courier_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
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

func numbers(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

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

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func (s *shelf[T]) fetchCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

// stacks are the decorators around an applier, by name.
func stacks(apply courier.Applier[int]) map[string]courier.Applier[int] {
	retry := courier.WithRetry(apply)
	breaker := courier.WithCircuitBreaker(apply)
	dlq, _ := courier.WithDLQ(apply)
	resilient, _ := courier.ResilientApplier(apply, nil)
	return map[string]courier.Applier[int]{"plain": apply, "retry": retry, "breaker": breaker, "dlq": dlq, "resilient": resilient}
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

// countOf returns the number of letters in a queue.
func countOf(queue interface {
	Count(ctx context.Context) (int, error)
}) int {
	n, _ := queue.Count(context.Background())
	return n
}
