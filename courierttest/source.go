package courierttest

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/erfanmomeniii/courier"
)

// Source is a source in memory for a polling coordinator: it returns the pending records,
// oldest first, and the same records again until they are marked. Its only capability is
// [courier.Identifier]. [Recorder.Source] makes it. It is safe for concurrent use; set
// the fields before using it.
type Source[T any] struct {
	// FetchFunc and MarkFunc replace the source's own memory, so that your own functions
	// are recorded, and fail as the faults say. The methods that report on the memory
	// then return nothing.
	FetchFunc func(ctx context.Context, limit int) ([]T, error)
	MarkFunc  func(ctx context.Context, records []T) error

	// FetchFaults and MarkFaults apply to the calls, and may be set at any time. With
	// Lost, Fetch returns an error without the records, and Mark has marked them.
	FetchFaults, MarkFaults Injector

	// Retain keeps marked records, so that a record that is added again is known to be
	// done. The default is to forget them.
	Retain bool

	recorder *Recorder[T]

	mu      sync.Mutex
	records []*kept[T]
}

// kept is a record in a source's memory.
type kept[T any] struct {
	name   string
	record T
	done   bool
}

// Source returns a source in memory with these records pending.
func (r *Recorder[T]) Source(records ...T) *Source[T] {
	s := &Source[T]{recorder: r}
	s.Add(records...)
	return s
}

// Add makes records pending that are not in the source yet.
func (s *Source[T]) Add(records ...T) {
	for _, record := range records {
		if s.add(record) {
			s.recorder.note(Added, nil, record)
		}
	}
}

func (s *Source[T]) add(record T) (added bool) {
	name := s.recorder.name(record)
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.records, func(k *kept[T]) bool { return k.name == name }) {
		return false
	}
	s.records = append(s.records, &kept[T]{name: name, record: record})
	return true
}

// Pending returns the records that are not marked, oldest first.
func (s *Source[T]) Pending() []T { return s.oldest(-1) }

func (s *Source[T]) oldest(limit int) (records []T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.records {
		if !k.done && len(records) != limit {
			records = append(records, k.record)
		}
	}
	return records
}

// Fetch returns up to limit of the oldest pending records.
func (s *Source[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	return watchFetch(ctx, s.recorder, &s.FetchFaults, func(ctx context.Context) ([]T, error) {
		switch {
		case s.FetchFunc != nil:
			return s.FetchFunc(ctx, limit)
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		return s.oldest(max(limit, 0)), nil
	})
}

// Mark notes that records are done.
func (s *Source[T]) Mark(ctx context.Context, records []T) error {
	return watchMark(ctx, s.recorder, &s.MarkFaults, records, func(ctx context.Context) ([]T, error) {
		switch {
		case s.MarkFunc != nil:
			return records, s.MarkFunc(ctx, records)
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		s.settle(s.recorder.names(records))
		return records, nil
	})
}

func (s *Source[T]) settle(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.records {
		k.done = k.done || slices.Contains(names, k.name)
	}
	if !s.Retain {
		s.records = slices.DeleteFunc(s.records, func(k *kept[T]) bool { return k.done })
	}
}

// Identity names a record as the recorder does.
func (s *Source[T]) Identity(record T) string { return s.recorder.name(record) }

// Validate reports an invalid fault.
func (s *Source[T]) Validate() error {
	return errors.Join(s.FetchFaults.Validate(), s.MarkFaults.Validate())
}

// watchFetch is a Fetch with faults that is recorded.
func watchFetch[T any](ctx context.Context, r *Recorder[T], faults *Injector, fetch func(context.Context) ([]T, error)) ([]T, error) {
	verdicts, err := faults.next(r.clock().Now(), "")
	if err != nil {
		return nil, err
	}
	v := verdicts[0]
	pause(ctx, r.clock(), v.delay)
	if err := v.interrupt(ctx); err != nil {
		return nil, err
	}
	if v.effect != OK && v.effect != Lost {
		return nil, v.err()
	}
	records, err := fetch(ctx)
	if v.effect == Lost {
		return nil, v.err()
	}
	r.note(Fetched, nil, records...)
	return records, err
}

// watchMark is a Mark with faults that is recorded. The function returns which
// records it marked.
func watchMark[T any](ctx context.Context, r *Recorder[T], faults *Injector, records []T, mark func(context.Context) ([]T, error)) error {
	verdicts, err := faults.next(r.clock().Now(), "")
	if err != nil {
		return err
	}
	v := verdicts[0]
	pause(ctx, r.clock(), v.delay)
	var marked []T
	err = v.interrupt(ctx)
	if err == nil && (v.effect == OK || v.effect == Lost) {
		marked, err = mark(ctx)
	}
	if err == nil {
		err = v.err()
	}
	if err != nil {
		r.note(MarkFailed, err, records...)
		return err
	}
	r.note(Marked, nil, marked...)
	return nil
}

var (
	_ courier.Source[int]     = (*Source[int])(nil)
	_ courier.Identifier[int] = (*Source[int])(nil)
	_ courier.Validator       = (*Source[int])(nil)
)
