package courier

import "time"

// The goroutines of a stream that call its source. Each notes what it is at
// before it calls, so that its loop can be called again after a Goexit.

type fetcher[T any] struct {
	*stream[T]
	busy   bool
	began  time.Time // of the call, where its duration is asked for
	result fetchResult[T]
}

func (f *fetcher[T]) loop() {
	for {
		if f.busy {
			f.busy = false
			f.fetching.Store(false)
			f.result.took = f.watch.since(f.watch.observer.Fetched != nil, f.began)
			f.result.keys, f.result.unkeyed = f.keysOf(nil, f.result.records)
			f.fetched <- f.result
			f.result = fetchResult[T]{}
		}
		r, ok := <-f.wanted
		if !ok {
			return
		}
		f.busy = true
		f.fetching.Store(true)
		f.began = f.watch.now(f.watch.observer.Fetched != nil)
		guard(&f.result.err, func() (err error) {
			f.result.records, err = f.source.Fetch(r.ctx, r.limit)
			return err
		})
	}
}

type settler[T any] struct {
	*stream[T]
	busy   bool
	result error
}

func (s *settler[T]) loop() {
	for {
		if s.busy {
			s.busy = false
			s.watch.ends(&s.watch.settling)
			s.settled <- s.result
		}
		j, ok := <-s.jobs
		if !ok {
			return
		}
		s.busy, s.result = true, nil
		s.watch.begins(&s.watch.settling, j.kind.String())
		guard(&s.result, func() error {
			switch j.kind {
			case releaseJob:
				return s.releaser.Release(s.life.settle, j.records, j.after)
			case failJob:
				return s.failer.Fail(s.life.settle, j.failed)
			}
			return s.source.Mark(s.life.settle, j.records)
		})
	}
}
