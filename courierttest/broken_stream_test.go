package courierttest

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
)

func TestBrokenStreams(t *testing.T) {
	f := streamFeatures
	f.Failer = true // a source of every defect is one
	every := without(ofEverySource, "hands out nothing when nothing is pending")
	testBroken(t, sourceChecks[int](f, true), leasingTable(slices.Concat(every, ofCapabilities, ofStreams), openStream, f, true))
}

// ofStreams are the defects of a fetch that waits.
var ofStreams = []leasingDefect{
	{"nothing and no error", "waits for the first record", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.shared.block = false
	}},
	{"io.EOF for its context", "waits for the first record", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			records, err := s.LeasingSource.Fetch(ctx, limit)
			if ctx.Err() != nil {
				err = io.EOF
			}
			return records, err
		}
	}},
	{"looks once", "wakes for a record", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if len(s.Pending()) == 0 {
				<-ctx.Done()
			}
			return s.LeasingSource.Fetch(ctx, limit)
		}
	}},
	{"waits for a full batch", "takes what is ready", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) (records []int, err error) {
			for len(records) < limit && err == nil {
				var more []int
				more, err = s.LeasingSource.Fetch(ctx, limit-len(records))
				records = append(records, more...)
			}
			return records, err
		}
	}},
	{"waits on", "ends a wait with its context", func(t *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		until, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		s.fetch = func(_ context.Context, limit int) ([]int, error) { return s.LeasingSource.Fetch(until, limit) }
	}},
	{"a reader of the last fetch takes the next", "ends a wait with its context", func(t *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		until, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			got := make(chan []int, 1)
			go func() {
				records, _ := s.LeasingSource.Fetch(until, limit)
				got <- records
			}()
			select {
			case records := <-got:
				return records, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}},
	{"one lock for both", "marks while a fetch waits", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		lock := make(chan struct{}, 1)
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			lock <- struct{}{}
			defer func() { <-lock }()
			return s.LeasingSource.Fetch(ctx, limit)
		}
		s.mark = func(ctx context.Context, records []int) error {
			lock <- struct{}{}
			defer func() { <-lock }()
			return s.LeasingSource.Mark(ctx, records)
		}
	}},
	{"the end drops what is left", "ends with io.EOF", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if s.shared.ended {
				return nil, io.EOF
			}
			return s.LeasingSource.Fetch(ctx, limit)
		}
	}},
	{"io.EOF once", "ends with io.EOF", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		var once sync.Once
		s.fetch = func(ctx context.Context, limit int) (records []int, err error) {
			records, err = s.LeasingSource.Fetch(ctx, limit)
			if err == io.EOF {
				err = nil
				once.Do(func() { err = io.EOF })
			}
			return records, err
		}
	}},
	{"an error of its own", "ends with io.EOF", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) (records []int, err error) {
			records, err = s.LeasingSource.Fetch(ctx, limit)
			if err == io.EOF {
				err = errors.New("closed")
			}
			return records, err
		}
	}},
}
