package courierttest

import (
	"context"
	"errors"
	"io"
)

// What a source does whose Fetch waits.

func (s *sourceRun[T]) waits() {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), glance)
	defer cancel()
	var records []T
	waited := false
	err, _ := s.do(ctx, "Fetch", func(ctx context.Context) (err error) {
		records, err = s.Source.Fetch(ctx, 10)
		waited = ctx.Err() != nil
		return err
	})
	switch {
	case !waited:
		s.tb.Errorf("Fetch did not wait for a record: it returned %q and the error %v", namesBy(s.name, records), err)
	case len(records) > 0:
		s.tb.Errorf("Fetch returned %q from a source with nothing pending", namesBy(s.name, records))
	case errors.Is(err, io.EOF):
		s.tb.Errorf("Fetch returned io.EOF, which ends the stream, when its context ended")
	}
}

// waiting runs a Fetch that has nothing to return yet, and does something
// meanwhile.
func (s *sourceRun[T]) waiting(meanwhile func(cancel context.CancelFunc)) (records []T, err error, soon bool) {
	s.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	begun, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		<-begun
		look, stop := context.WithTimeout(context.Background(), glance)
		defer stop()
		<-look.Done()
		meanwhile(cancel)
	}()
	err, soon = s.do(ctx, "Fetch", func(ctx context.Context) (err error) {
		close(begun)
		records, err = s.Source.Fetch(ctx, 10)
		return err
	})
	<-done
	return records, err, soon
}

func (s *sourceRun[T]) wakes() {
	s.tb.Helper()
	var want []string
	records, err, soon := s.waiting(func(context.CancelFunc) { want = s.Add(1) })
	if got := namesBy(s.name, records); !soon || err != nil || !same(got, want, true) {
		s.tb.Errorf("a Fetch that waited returned %q and the error %v, want %q, which came meanwhile", got, err, want)
	}
}

func (s *sourceRun[T]) takesWhatIsReady() {
	s.tb.Helper()
	s.add(2)
	var records []T
	err, soon := s.do(context.Background(), "Fetch", func(ctx context.Context) (err error) {
		records, err = s.Source.Fetch(ctx, 10)
		return err
	})
	if !soon || err != nil || len(records) == 0 {
		s.tb.Errorf("Fetch with a limit of 10 returned %q and the error %v while 2 records were ready: it takes what there is", namesBy(s.name, records), err)
	}
}

func (s *sourceRun[T]) endsWait() {
	s.tb.Helper()
	records, err, soon := s.waiting(func(cancel context.CancelFunc) { cancel() })
	if !soon || len(records) > 0 || errors.Is(err, io.EOF) {
		s.tb.Errorf("a Fetch that waited returned %q and the error %v when its context ended (at once: %v)", namesBy(s.name, records), err, soon)
	}
	want := s.add(2)
	settle() // a Fetch that waits on in secret has its chance first
	s.expect(s.Source, want, "after a Fetch whose context ended while it waited")
}

func (s *sourceRun[T]) marksBesideFetch() {
	s.tb.Helper()
	records := s.take(1)
	var err error
	marked := false
	_, _, _ = s.waiting(func(cancel context.CancelFunc) {
		defer cancel()
		ctx, stop := context.WithTimeout(context.Background(), s.patience/2)
		defer stop()
		done := make(chan error, 1)
		go func() { done <- s.Source.Mark(ctx, records) }()
		select {
		case err = <-done:
			marked = true
		case <-ctx.Done():
		}
	})
	if !marked || err != nil {
		s.tb.Errorf("Mark while a Fetch waited (returned: %v) had the error %v: a streaming coordinator calls both at once", marked, err)
	}
}

func (s *sourceRun[T]) endsWithEOF() {
	s.tb.Helper()
	if s.End == nil {
		return
	}
	want := s.add(3)
	s.End()
	var got []string
	for len(got) < len(want) {
		var records []T
		err, soon := s.do(context.Background(), "Fetch", func(ctx context.Context) (err error) {
			records, err = s.Source.Fetch(ctx, 2)
			return err
		})
		got = append(got, namesBy(s.name, records)...)
		if len(records) > 0 {
			s.mark(s.Source, records...)
		}
		if err != nil || !soon || len(records) == 0 {
			break
		}
	}
	if !same(got, want, false) {
		s.tb.Errorf("at the end of the stream the source handed out %q, want %q", got, want)
	}
	for range 2 {
		err, soon := s.do(context.Background(), "Fetch", func(ctx context.Context) error {
			_, err := s.Source.Fetch(ctx, 2)
			return err
		})
		if !soon || !errors.Is(err, io.EOF) {
			s.tb.Fatalf("after the end of the stream Fetch returned the error %v, want io.EOF, each time", err)
		}
	}
}
