package courier

// The three kinds of goroutine that run user code. Each notes what it is at
// before it calls, so that its loop can be called again after a Goexit.

type fetcher[T any] struct {
	*stream[T]
	busy   bool
	result fetchResult[T]
}

func (f *fetcher[T]) loop() {
	for {
		if f.busy {
			f.busy = false
			f.fetched <- f.result
		}
		limit, ok := <-f.wanted
		if !ok {
			return
		}
		f.busy, f.result = true, fetchResult[T]{}
		guard(&f.result.err, func() (err error) {
			f.result.records, err = f.source.Fetch(f.intake, limit)
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
			s.settled <- s.result
		}
		j, ok := <-s.jobs
		if !ok {
			return
		}
		s.busy, s.result = true, nil
		guard(&s.result, func() error {
			if j.release {
				return s.releaser.Release(s.life.settle, j.records, j.after)
			}
			return s.source.Mark(s.life.settle, j.records)
		})
	}
}

type worker[T any] struct {
	*stream[T]
	share *share[T]
}

func (w *worker[T]) loop() {
	for {
		if w.share == nil {
			sh, ok := <-w.todo
			if !ok {
				return
			}
			w.share = sh
		}
		w.share.work.run(w.leave, w.life.work)
		w.done <- w.share
		w.share = nil
	}
}
