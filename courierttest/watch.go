package courierttest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier"
)

// WatchSource returns your own source with its calls recorded. It has the capabilities of
// the source, and is a [courier.Identifier] that names records as the source does, or
// else as the recorder. Records given to Fail are recorded as Released. A record that
// Mark skips because its lease is lost is still recorded as Marked.
//
// It passes on only what courier exports. Record a courier.BatchSourceFunc, whose Fetch
// has no limit, through [Source].FetchFunc and MarkFunc, which also put faults around the
// functions.
func (r *Recorder[T]) WatchSource(source courier.Source[T]) courier.Source[T] {
	if source == nil {
		return nil
	}
	w := &watchedSource[T]{Source: source, recorder: r}
	releaser, releases := source.(courier.Releaser[T])
	failer, fails := source.(courier.Failer[T])
	switch {
	case releases && fails:
		return struct {
			*watchedSource[T]
			watchedReleaser[T]
			watchedFailer[T]
		}{w, watchedReleaser[T]{releaser, r}, watchedFailer[T]{failer, r}}
	case releases:
		return struct {
			*watchedSource[T]
			watchedReleaser[T]
		}{w, watchedReleaser[T]{releaser, r}}
	case fails:
		return struct {
			*watchedSource[T]
			watchedFailer[T]
		}{w, watchedFailer[T]{failer, r}}
	}
	return w
}

// watchedSource has all capabilities of which there is an answer that says that
// there is none.
type watchedSource[T any] struct {
	courier.Source[T]
	recorder *Recorder[T]
	faults   Injector // none
}

func (w *watchedSource[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	return watchFetch(ctx, w.recorder, &w.faults, func(ctx context.Context) ([]T, error) {
		return w.Source.Fetch(ctx, limit)
	})
}

func (w *watchedSource[T]) Mark(ctx context.Context, records []T) error {
	return watchMark(ctx, w.recorder, &w.faults, records, func(ctx context.Context) ([]T, error) {
		return records, w.Source.Mark(ctx, records)
	})
}

func (w *watchedSource[T]) Identity(record T) string {
	if s, ok := w.Source.(courier.Identifier[T]); ok {
		return s.Identity(record)
	}
	return w.recorder.name(record)
}

func (w *watchedSource[T]) Wake() <-chan struct{} {
	if s, ok := w.Source.(courier.Waker); ok {
		return s.Wake()
	}
	return nil
}

func (w *watchedSource[T]) More() bool {
	s, ok := w.Source.(courier.Pager)
	return ok && s.More()
}

func (w *watchedSource[T]) RenewEvery() time.Duration {
	if s, ok := w.Source.(courier.Renewer[T]); ok {
		return s.RenewEvery()
	}
	return 0
}

func (w *watchedSource[T]) Renew(ctx context.Context, records []T) error {
	if s, ok := w.Source.(courier.Renewer[T]); ok {
		return s.Renew(ctx, records)
	}
	return nil
}

func (w *watchedSource[T]) Revoked() <-chan struct{} {
	if s, ok := w.Source.(courier.Revoker); ok {
		return s.Revoked()
	}
	return nil
}

func (w *watchedSource[T]) Lag(ctx context.Context) (courier.Lag, error) {
	if s, ok := w.Source.(courier.Lagger); ok {
		return s.Lag(ctx)
	}
	return courier.Lag{}, courier.ErrNoLag
}

func (w *watchedSource[T]) Validate() error { return validate(w.Source) }

func validate(v any) error {
	if s, ok := v.(courier.Validator); ok {
		return s.Validate()
	}
	return nil
}

type watchedReleaser[T any] struct {
	releaser courier.Releaser[T]
	recorder *Recorder[T]
}

func (w watchedReleaser[T]) Release(ctx context.Context, records []T, after time.Duration) error {
	err := w.releaser.Release(ctx, records, after)
	if err == nil {
		w.recorder.note(Released, nil, records...)
	}
	return err
}

type watchedFailer[T any] struct {
	failer   courier.Failer[T]
	recorder *Recorder[T]
}

func (w watchedFailer[T]) Fail(ctx context.Context, failed []courier.FailedRecord[T]) error {
	err := w.failer.Fail(ctx, failed)
	if err == nil {
		for _, f := range failed {
			w.recorder.note(Released, f.Error, f.Record)
		}
	}
	return err
}

// WatchApplier returns your own applier with its calls recorded: the destination itself,
// inside the decorators. It takes batches if the applier does, and keeps their order if
// the applier does. A batch that fails as a whole has an event for each record.
func (r *Recorder[T]) WatchApplier(applier courier.Applier[T]) courier.Applier[T] {
	if applier == nil {
		return nil
	}
	watched := &watchedApplier[T]{Applier: applier, recorder: r}
	if batches, ok := applier.(courier.BatchApplier[T]); ok {
		return &watchedBatchApplier[T]{watched, batches}
	}
	return watched
}

type watchedApplier[T any] struct {
	courier.Applier[T]
	recorder *Recorder[T]
}

func (w *watchedApplier[T]) Apply(ctx context.Context, record T) error {
	return w.watch(ctx, []T{record}, func() error { return w.Applier.Apply(ctx, record) })
}

func (w *watchedApplier[T]) Validate() error { return validate(w.Applier) }

// watch records a call, one that ends in a panic or a Goexit included.
func (w *watchedApplier[T]) watch(ctx context.Context, records []T, apply func() error) (err error) {
	returned := false
	defer func() {
		if !returned {
			w.recorder.note(Failed, nil, records...)
		}
	}()
	err = apply()
	returned = true
	var list *courier.BatchError
	listed := errors.As(err, &list)
	for i, record := range records {
		failure := err
		if listed {
			failure = nil
			if at := slices.IndexFunc(failuresOf(list), func(f courier.BatchFailure) bool { return f.Index == i }); at >= 0 {
				failure = list.Failures[at].Err
			}
		}
		kind := Applied
		switch {
		case failure != nil && courier.Classify(ctx, failure) == courier.ClassSkipped:
			kind = Skipped
		case failure != nil:
			kind = Failed
		}
		w.recorder.note(kind, failure, record)
	}
	return err
}

type watchedBatchApplier[T any] struct {
	*watchedApplier[T]
	batches courier.BatchApplier[T]
}

func (w *watchedBatchApplier[T]) OrderedBatches() bool {
	ordered, ok := w.Applier.(courier.OrderedBatcher)
	return ok && ordered.OrderedBatches()
}

func (w *watchedBatchApplier[T]) ApplyBatch(ctx context.Context, records []T) error {
	return w.watch(ctx, records, func() error { return w.batches.ApplyBatch(ctx, records) })
}
