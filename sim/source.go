package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
)

// WrapSource makes a source of your own part of the world: the seed decides when its
// Fetch, Mark, Release, Fail and Renew happen and whether they fail. The wrapped source
// has the capabilities of the source. A call fails as a whole, before or after its
// effect; to put faults inside of it, pass what it does to its store to [World.Call].
//
// It passes on only what courier exports. For functions use [WrapFetch] and [WrapMark].
func WrapSource[T any](w *World, source courier.Source[T]) courier.Source[T] {
	s := &wrappedSource[T]{w, source}
	releaser, releases := source.(courier.Releaser[T])
	failer, fails := source.(courier.Failer[T])
	identifier, names := source.(courier.Identifier[T])
	type (
		named  = courier.Identifier[T]
		takes  = wrappedReleaser[T]
		delays = wrappedFailer[T]
	)
	r, f := takes{s, releaser}, delays{s, failer}
	switch {
	case releases && fails && names:
		return struct {
			*wrappedSource[T]
			takes
			delays
			named
		}{s, r, f, identifier}
	case releases && fails:
		return struct {
			*wrappedSource[T]
			takes
			delays
		}{s, r, f}
	case releases && names:
		return struct {
			*wrappedSource[T]
			takes
			named
		}{s, r, identifier}
	case fails && names:
		return struct {
			*wrappedSource[T]
			delays
			named
		}{s, f, identifier}
	case releases:
		return struct {
			*wrappedSource[T]
			takes
		}{s, r}
	case fails:
		return struct {
			*wrappedSource[T]
			delays
		}{s, f}
	case names:
		return struct {
			*wrappedSource[T]
			named
		}{s, identifier}
	}
	return s
}

// wrappedSource has every capability of which a source can say that it has none.
type wrappedSource[T any] struct {
	w      *World
	source courier.Source[T]
}

func (s *wrappedSource[T]) name(records []T) string {
	named, ok := s.source.(courier.Identifier[T])
	if !ok {
		return fmt.Sprint(records)
	}
	names := make([]string, len(records))
	for i, r := range records {
		names[i] = named.Identity(r)
	}
	return fmt.Sprint(names)
}

// call makes a call about records.
func (s *wrappedSource[T]) call(ctx context.Context, kind Kind, records []T, effect func() error) error {
	name := s.name(records)
	return processOf(ctx).around(ctx, kind, digest(name), name, effect)
}

func (s *wrappedSource[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	return WrapFetch(s.w, func(ctx context.Context) ([]T, error) { return s.source.Fetch(ctx, limit) })(ctx)
}

func (s *wrappedSource[T]) Mark(ctx context.Context, records []T) error {
	return s.call(ctx, Mark, records, func() error { return s.source.Mark(ctx, records) })
}

func (s *wrappedSource[T]) RenewEvery() time.Duration {
	if source, ok := s.source.(courier.Renewer[T]); ok {
		return source.RenewEvery()
	}
	return 0
}

func (s *wrappedSource[T]) Renew(ctx context.Context, records []T) error {
	source, ok := s.source.(courier.Renewer[T])
	if !ok {
		return nil
	}
	return s.call(ctx, Renew, records, func() error { return source.Renew(ctx, records) })
}

func (s *wrappedSource[T]) Revoked() <-chan struct{} {
	if source, ok := s.source.(courier.Revoker); ok {
		return source.Revoked()
	}
	return nil
}

func (s *wrappedSource[T]) Wake() <-chan struct{} {
	if source, ok := s.source.(courier.Waker); ok {
		return source.Wake()
	}
	return nil
}

func (s *wrappedSource[T]) More() bool {
	source, ok := s.source.(courier.Pager)
	return ok && source.More()
}

func (s *wrappedSource[T]) Lag(ctx context.Context) (courier.Lag, error) {
	if source, ok := s.source.(courier.Lagger); ok {
		return source.Lag(ctx)
	}
	return courier.Lag{}, courier.ErrNoLag
}

func (s *wrappedSource[T]) Validate() error {
	if source, ok := s.source.(courier.Validator); ok {
		return source.Validate()
	}
	return nil
}

type wrappedReleaser[T any] struct {
	s      *wrappedSource[T]
	source courier.Releaser[T]
}

func (r wrappedReleaser[T]) Release(ctx context.Context, records []T, after time.Duration) error {
	return r.s.call(ctx, Release, records, func() error { return r.source.Release(ctx, records, after) })
}

type wrappedFailer[T any] struct {
	s      *wrappedSource[T]
	source courier.Failer[T]
}

func (f wrappedFailer[T]) Fail(ctx context.Context, failed []courier.FailedRecord[T]) error {
	records := make([]T, len(failed))
	for i, one := range failed {
		records[i] = one.Record
	}
	return f.s.call(ctx, Fail, records, func() error { return f.source.Fail(ctx, failed) })
}
