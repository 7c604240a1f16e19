package courier_test

// Stops (D8): what is in flight, dead letter queues that take their time, and what is
// given back.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestD1_AStopHandsBackWhatWaitsBehindAFailedRecord(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		sink := records.Applier(courierttest.MustParse(`error if record "0"`))
		var marked []int
		source := courier.NewChannelSource(full(6, false), func(_ context.Context, records []int) error {
			marked = append(marked, records...)
			return nil
		})
		run := courierttest.Start(t, courier.NewStreamingCoordinator(source, sink, courier.WithOrderKey(byRest(2)), courier.WithStreamWorkers(2), quiet))
		time.Sleep(time.Minute)
		err := run.Stop()
		var left *courier.UnsettledError[int]
		require.ErrorAs(t, err, &left)
		require.Equal(t, []int{0, 2, 4}, left.Records, "in the order fetched")
		require.ErrorIs(t, left.Err, courierttest.ErrInjected)
		require.Equal(t, []int{1, 3, 5}, marked)
	})
}

func TestD8_AStopReleasesWhatWaitsBehindAFailedRecord(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		sink := records.Applier(courierttest.MustParse(`error if record "0"`))
		source := records.StreamSource(numbers(6)...)
		courierttest.RunFor(t, courier.NewStreamingCoordinator(source, sink, courier.WithOrderKey(byRest(2)), quiet), time.Minute)
		require.ElementsMatch(t, []int{0, 2, 4}, records.Records(courierttest.Released), "each once, at the stop")
		require.Empty(t, source.InHand())
		require.Equal(t, []int{1, 3, 5}, records.Records(courierttest.Marked))
	})
}

func TestD8_StopEndsTheRunAndWaitsForIt(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(5)...)
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		c := make(s)
		require.NoError(t, c.Stop(t.Context()), "nothing runs")
		ended := false
		result := error(nil)
		go func() {
			result = c.Start(t.Context())
			ended = true
		}()
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, c.Stop(t.Context()))
		synctest.Wait()
		require.True(t, ended)
		require.NoError(t, result)
		require.Equal(t, []int{0, 1}, s.got())
		require.Equal(t, []int{0, 1}, source.marked())
		require.Equal(t, []int{2, 3, 4}, source.left())

		// Start after Stop works.
		stop := start(t, c)
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
	})
}

func TestD8_StopReturnsWhenItsOwnContextEnds(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(1)
		c := make(&sink[int]{fail: func(context.Context, int, int) error { time.Sleep(5 * time.Second); return nil }})
		ended := start(t, c)
		time.Sleep(time.Second)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, c.Stop(impatient), context.DeadlineExceeded)
		require.NoError(t, c.Stop(t.Context()), "the stop goes on")
		require.NoError(t, ended())
		require.Equal(t, []int{1}, source.marked())
	})
}

// A fetch that lingers for a full batch and returns what it has when it is told
// to stop: "the others … are applied within the drain timeout".
func TestD8_Stream_WhatAFetchReturnsAtAStopIsAppliedWithinTheDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		first := true
		source := sourceFuncs{func(ctx context.Context, _ int) ([]int, error) {
			<-ctx.Done()
			if first {
				first = false
				time.Sleep(time.Millisecond)
				return []int{1, 2}, nil
			}
			return nil, ctx.Err()
		}, marked.mark}
		stop := start(t, courier.NewStreamingCoordinator(source, courier.Applier[int](&sink[int]{}), quiet))
		time.Sleep(time.Second)
		require.NoError(t, stop())
		require.Equal(t, []int{1, 2}, marked.all())
	})
}

func TestD8_AStopBoundsTheMarkAndTheReleaseInFlight(t *testing.T) {
	for name, hang := range map[string]func(*hanging){
		"mark":    func(h *hanging) { h.mark = true },
		"release": func(h *hanging) { h.release = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &hanging{leasing: newLeasing(1, 2)}
				hang(source)
				s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
					if r == 2 {
						return errTest
					}
					return nil
				}}
				stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithDrainTimeout(time.Second)))
				time.Sleep(time.Minute)
				before := time.Now()
				_ = stop()
				require.LessOrEqual(t, time.Since(before), time.Second)
			})
		})
	}
}

// hanging is a source whose calls heed nothing but their context.
type hanging struct {
	*leasing[int]
	mark, release bool
}

func (h *hanging) Mark(ctx context.Context, records []int) error {
	if h.mark {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.leasing.Mark(ctx, records)
}

func (h *hanging) Release(ctx context.Context, records []int, after time.Duration) error {
	if h.release {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.leasing.Release(ctx, records, after)
}

func TestD8_AStopReleasesWhatCameBeyondTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := beyond{newLeasing(numbers(10)...)}
		ctx, cancel := context.WithCancel(t.Context())
		c := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 1 {
				cancel()
			}
			return nil
		}), quiet, courier.WithBatchSize(3))
		require.NoError(t, c.Start(ctx))
		require.Equal(t, []int{0, 1}, source.marked())
		require.ElementsMatch(t, []int{2, 3, 4, 5, 6, 7, 8, 9}, slices.Concat(source.released...))
	})
}

func TestD8_Stream_ARecordThatArrivesWithTheStop(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			ch := make(chan int)
			var marked collector
			stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.ProcessFunc(func(ctx context.Context, _ int) error {
				<-ctx.Done()
				return ctx.Err()
			}), quiet, courier.WithDrainTimeout(time.Second)))
			synctest.Wait()
			go func() {
				select {
				case ch <- 1:
				case <-t.Context().Done():
				}
			}()
			before := time.Now()
			_ = stop() // the record is in the channel, or comes back as unsettled
			require.LessOrEqual(t, time.Since(before), 2*time.Second)
		})
	}
}

func TestD8_AQueueThatHangsIsAskedOnceABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &dlqFunc{send: func(ctx context.Context, _ courier.DeadLetter[int]) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
			var e courier.BatchError
			for i := range records {
				e.Add(i, courier.Permanent(errTest))
			}
			return &e
		}}
		source := newShelf(numbers(100)...)
		stop := start(t, courier.NewPollingCoordinator(source, courier.NewDLQApplier[int](s, courier.DLQ[int](store), courier.DLQPolicy[int]{}), quiet))
		synctest.Wait()
		before := time.Now()
		require.NoError(t, stop())
		require.LessOrEqual(t, time.Since(before), 20*time.Second)
		require.Len(t, source.left(), 100)
	})
}

// What is left at the end is told as Start returns it.
func TestStop_WhatIsLeftIsTold(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		source.add(numbers(25)...)
		source.markErr = func(int) error { return errTest }
		c := make(always(nil), courier.WithBatchSize(10), courier.WithObserver(told.Observer()))
		stop := start(t, c)
		time.Sleep(time.Second)
		var lost *courier.MarkError
		require.ErrorAs(t, stop(), &lost)
		marks := courierttest.EventsOf[courier.MarkEvent](&told)
		require.Zero(t, marks[len(marks)-1].RetryIn)
		require.Equal(t, lost.Records, marks[len(marks)-1].Records)
		require.ErrorAs(t, courierttest.EventsOf[courier.StopEvent](&told)[0].Err, &lost)
	})
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		ch := make(chan int, 3)
		ch <- 1
		ch <- 2
		ch <- 3
		close(ch)
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 2 {
				return errTest
			}
			return nil
		}), quiet, courier.WithObserver(told.Observer()))
		err := c.Start(t.Context())
		require.Error(t, err)
		require.Equal(t, []courier.StopEvent{{Unsettled: 1, Err: err}}, courierttest.EventsOf[courier.StopEvent](&told))
	})
}

// slowQueue is a dead letter queue whose calls last for so long, or until their
// context ends.
type slowQueue struct {
	*courier.MemoryDLQ[int]
	log *queueLog
}

type queueLog struct {
	mu    sync.Mutex
	lasts func(began time.Time) time.Duration
	calls []queueCall
}

type queueCall struct {
	began, ended time.Time
	cut          bool // by its context
}

func (l *queueLog) call(ctx context.Context) error {
	c := queueCall{began: time.Now()}
	l.mu.Lock()
	lasts := l.lasts(c.began)
	l.mu.Unlock()
	select {
	case <-time.After(lasts):
	case <-ctx.Done():
		c.cut = true
	}
	c.ended = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, c)
	if c.cut {
		return errors.New("driver: the request was cancelled") // as many a driver puts it
	}
	return nil
}

func (q *slowQueue) Send(ctx context.Context, l courier.DeadLetter[int]) error {
	if err := q.log.call(ctx); err != nil {
		return err
	}
	return q.MemoryDLQ.Send(ctx, l)
}

func (q *slowQueue) ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error) {
	if err := q.log.call(ctx); err != nil {
		return nil, err
	}
	return q.MemoryDLQ.ParkedKeys(ctx, branch, keys)
}

// batchOf applies a batch record by record.
type batchOf struct{ courier.Applier[int] }

func (b batchOf) ApplyBatch(ctx context.Context, records []int) error {
	errs := make([]error, len(records))
	var wg sync.WaitGroup
	for i, r := range records {
		wg.Go(func() { errs[i] = b.Apply(ctx, r) })
	}
	wg.Wait()
	var failed courier.BatchError
	for i, err := range errs {
		if err != nil {
			failed.Add(i, err)
		}
	}
	return failed.ErrorOrNil()
}

// stopStacks are the stacks in which a queue may hang.
func stopStacks(l *queueLog, a courier.Applier[int]) map[string]courier.Applier[int] {
	park := func(a courier.Applier[int], policy courier.DLQPolicy[int]) courier.Applier[int] {
		policy.MaxParkRate = courier.AnyParkRate
		return courier.NewDLQApplier(a, courier.DLQ[int](&slowQueue{&courier.MemoryDLQ[int]{}, l}), policy)
	}
	plain := courier.DLQPolicy[int]{}
	keyed := courier.DLQPolicy[int]{Key: func(r int) string { return fmt.Sprint(r % 2) }}
	resilient, _ := courier.ResilientApplier(a, &courier.ResilientConfig[int]{DLQ: &slowQueue{&courier.MemoryDLQ[int]{}, l}})
	return map[string]courier.Applier[int]{
		"plain":          park(a, plain),
		"batch":          park(batchOf{a}, plain),
		"keyed":          park(a, keyed),
		"keyed batch":    park(batchOf{a}, keyed),
		"resilient":      resilient,
		"fan-out":        courier.NewFanOutApplier(park(a, plain), park(a, keyed)),
		"fan-out, batch": courier.NewFanOutApplier(park(a, plain), park(batchOf{a}, keyed), park(batchOf{a}, plain)),
	}
}

// stopShapes are the coordinators that are stopped. mark is called in the place of
// the source's memory.
func stopShapes(mark func(ctx context.Context, records []int) error) map[string]func(a courier.Applier[int], o ...courier.Option) running {
	shelf := func() courier.Source[int] {
		return struct {
			sourceFetch
			sourceMark
		}{sourceFetch{newShelf(numbers(5)...)}, mark}
	}
	leasing := func(wait bool) courier.Source[int] {
		l := newLeasing(numbers(5)...)
		l.wait = wait
		return struct {
			sourceFetch
			sourceMark
			courier.Releaser[int]
		}{sourceFetch{l}, mark, l}
	}
	polling := func(source func() courier.Source[int], more ...courier.Option) func(courier.Applier[int], ...courier.Option) running {
		return func(a courier.Applier[int], o ...courier.Option) running {
			return courier.NewPollingCoordinator(source(), a, append(o, more...)...)
		}
	}
	streaming := func(source func() courier.Source[int], more ...courier.Option) func(courier.Applier[int], ...courier.Option) running {
		return func(a courier.Applier[int], o ...courier.Option) running {
			return courier.NewStreamingCoordinator(source(), a, append(o, more...)...)
		}
	}
	channel := func() courier.Source[int] {
		ch := make(chan int, 5)
		for _, n := range numbers(5) {
			ch <- n
		}
		return courier.NewChannelSource(ch, mark)
	}
	return map[string]func(courier.Applier[int], ...courier.Option) running{
		"polling":                 polling(shelf),
		"polling, 3 workers":      polling(shelf, courier.WithWorkers(3)),
		"polling, by key":         polling(shelf, courier.WithWorkers(2), courier.WithOrderKey(func(r int) string { return fmt.Sprint(r % 2) })),
		"polling, fetching ahead": polling(func() courier.Source[int] { return leasing(false) }, courier.WithBatchSize(2), courier.WithPrefetch(1)),
		"stream":                  streaming(func() courier.Source[int] { return leasing(true) }),
		"stream, 3 workers":       streaming(func() courier.Source[int] { return leasing(true) }, courier.WithStreamWorkers(3)),
		"channel":                 streaming(channel),
		"channel, 3 workers":      streaming(channel, courier.WithStreamWorkers(3)),
	}
}

type sourceFetch struct{ source courier.Source[int] }

func (s sourceFetch) Fetch(ctx context.Context, limit int) ([]int, error) {
	return s.source.Fetch(ctx, limit)
}

type sourceMark func(ctx context.Context, records []int) error

func (m sourceMark) Mark(ctx context.Context, records []int) error { return m(ctx, records) }

// eachStop runs a test over drain timeouts, shapes, stacks and when the verdicts
// come: before the stop, with it, in the middle of the drain, and at its end.
func eachStop(t *testing.T, test func(t *testing.T, s *stopCase)) {
	for _, drain := range []time.Duration{time.Second, 3 * time.Second, 30 * time.Second} {
		for shape := range stopShapes(nil) {
			for stack := range stopStacks(&queueLog{}, courier.ProcessFunc(nop[int])) {
				for moment, after := range map[string]time.Duration{"before": -drain / 7, "at": 0, "after": drain / 2, "at the end": 2 * drain} {
					t.Run(fmt.Sprintf("drain timeout %v/%s/%s/verdict %s", drain, shape, stack, moment), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { test(t, newStopCase(drain, shape, stack, after)) })
					})
				}
			}
		}
	}
}

// stopCase is a coordinator that is stopped a while after its records were begun,
// the first of which have their verdicts at some time from the stop.
type stopCase struct {
	queueLog
	drain   time.Duration
	began   time.Time
	stop    time.Time
	verdict time.Time
	c       running
	mu      sync.Mutex
	marked  []int
	mark    func(ctx context.Context) error
}

func newStopCase(drain time.Duration, shape, stack string, after time.Duration) *stopCase {
	s := &stopCase{drain: drain, began: time.Now()}
	s.stop = s.began.Add(drain)
	s.verdict = s.stop.Add(after)
	a := courier.ProcessFunc(func(ctx context.Context, r int) error {
		select {
		case <-time.After(time.Until(s.verdict)):
		case <-ctx.Done():
		}
		return courier.Permanent(errTest)
	})
	s.c = stopShapes(func(ctx context.Context, records []int) error {
		if s.mark != nil {
			if err := s.mark(ctx); err != nil {
				return err
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.marked = append(s.marked, records...)
		return nil
	})[shape](stopStacks(&s.queueLog, a)[stack], quiet, courier.WithDrainTimeout(drain))
	return s
}

// run stops the coordinator and returns how long that took.
func (s *stopCase) run(t *testing.T) (time.Duration, error) {
	end := start(t, s.c)
	time.Sleep(time.Until(s.stop))
	err := end()
	return time.Since(s.stop), err
}

// bound is when the context of a call of the queue ends at the latest.
func (s *stopCase) bound(c queueCall, late time.Time) time.Time {
	timeout := min(10*time.Second, s.drain)
	end := s.stop.Add(s.drain)
	if !c.began.Before(end) {
		timeout, end = min(10*time.Second, s.drain/2), late.Add(s.drain/2)
	}
	if own := c.began.Add(timeout); own.Before(end) {
		return own
	}
	return end
}

func TestStop_AQueueThatHangsHoldsItUpForTwiceTheDrainTimeoutAtTheMost(t *testing.T) {
	eachStop(t, func(t *testing.T, s *stopCase) {
		s.lasts = func(began time.Time) time.Duration {
			if began.Before(s.verdict) && s.verdict.Before(s.stop.Add(s.drain)) {
				return 0 // whether a key is parked
			}
			return time.Hour
		}
		took, err := s.run(t)
		if err != nil {
			require.ErrorIs(t, err, courier.ErrUnsettled)
		}
		require.LessOrEqual(t, took, 2*s.drain)
		require.Empty(t, s.marked)
		s.checkCalls(t, true)
	})
}

// checkCalls checks that the calls of the queue that were cut short had the time
// that is theirs.
func (s *stopCase) checkCalls(t *testing.T, cut bool) {
	t.Helper()
	calls := slices.DeleteFunc(s.calls, func(c queueCall) bool { return !c.cut })
	require.Equal(t, cut, len(calls) > 0)
	for _, c := range calls {
		if c.ended.Equal(c.began) && c.began.Equal(s.stop.Add(s.drain)) {
			continue // it began as the drain timeout ended, before or after
		}
		require.Equal(t, s.bound(c, s.stop.Add(s.drain)).Sub(s.stop), c.ended.Sub(s.stop), "a call that began at %v from the stop", c.began.Sub(s.stop))
	}
}

// The bounds are no shorter than that: what the queue takes just in time, and the
// source then marks just in time, is parked.
func TestStop_WhatAQueueTakesInTimeIsParkedAndMarked(t *testing.T) {
	eachStop(t, func(t *testing.T, s *stopCase) {
		var slow time.Time // until when the first call is, the others are quick
		s.lasts = func(began time.Time) time.Duration {
			if began.Before(s.verdict) && began.Before(s.stop.Add(s.drain)) || !slow.IsZero() {
				return 0
			}
			slow = s.bound(queueCall{began: began}, began).Add(-time.Millisecond)
			return slow.Sub(began)
		}
		marking := false
		s.mark = func(ctx context.Context) error {
			s.mu.Lock()
			now := time.Now()
			quick := marking || slow.IsZero() || now.Before(slow) || now.Before(s.stop)
			marking = marking || !quick
			s.mu.Unlock()
			if quick {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(s.drain/2 - time.Millisecond):
				return nil
			}
		}
		took, err := s.run(t)
		if err != nil {
			require.ErrorIs(t, err, courier.ErrUnsettled)
			require.NotErrorIs(t, err, courier.ErrMark)
		}
		require.LessOrEqual(t, took, 2*s.drain)
		require.NotEmpty(t, s.marked)
		s.checkCalls(t, false)
	})
}

// All verdicts that come at the end of the drain share half a drain timeout: a
// queue that answers slowly does not add it up.
func TestStop_ASlowQueueAndManyVerdictsAtTheEndOfTheDrain(t *testing.T) {
	const drain = 10 * time.Second
	for shape := range stopShapes(nil) {
		for stack := range stopStacks(&queueLog{}, courier.ProcessFunc(nop[int])) {
			t.Run(shape+"/"+stack, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStopCase(drain, shape, stack, 2*drain)
					s.lasts = func(began time.Time) time.Duration {
						if began.Before(s.stop) {
							return 0
						}
						return 2 * time.Second
					}
					took, err := s.run(t)
					if err != nil {
						require.ErrorIs(t, err, courier.ErrUnsettled)
					}
					require.Less(t, took, drain*3/2+drain/2)
					require.NotEmpty(t, s.marked)
					for _, c := range s.calls {
						require.LessOrEqual(t, c.ended.Sub(s.stop), drain*3/2)
					}
				})
			})
		}
	}
}

// An apply that does not heed its context, and ends long after: its record is
// parked all the same, and marked.
func TestStop_AVerdictLongAfterTheDrainTimeoutIsParked(t *testing.T) {
	const drain = 10 * time.Second
	for _, stack := range []string{"plain", "batch", "keyed batch", "fan-out"} {
		for shape := range stopShapes(nil) {
			t.Run(shape+"/"+stack, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					log := &queueLog{lasts: func(began time.Time) time.Duration { return drain/2 - time.Millisecond }}
					if stack == "keyed batch" || stack == "fan-out" { // which ask for the keys first
						asked := time.Now()
						log.lasts = func(began time.Time) time.Duration {
							if began.Equal(asked) {
								return 0
							}
							return drain/2 - time.Millisecond
						}
					}
					marked := 0
					a := courier.ProcessFunc(func(context.Context, int) error {
						time.Sleep(time.Minute)
						return courier.Permanent(errTest)
					})
					mark := func(ctx context.Context, records []int) error {
						marked += len(records)
						return ctx.Err()
					}
					stop := start(t, stopShapes(mark)[shape](stopStacks(log, a)[stack], quiet, courier.WithDrainTimeout(drain)))
					time.Sleep(time.Second)
					began := time.Now()
					if err := stop(); err != nil {
						require.ErrorIs(t, err, courier.ErrUnsettled)
						require.NotErrorIs(t, err, courier.ErrMark)
					}
					require.Positive(t, marked)
					require.Less(t, time.Since(began), 2*time.Minute+drain)
				})
			})
		}
	}
}

// Marks and releases have a drain timeout from the end of the last apply, or what
// is left of two from the stop, but half of one at the least.
func TestStop_TheTimeOfMarks(t *testing.T) {
	for _, drain := range []time.Duration{time.Second, 7 * time.Second} {
		for _, tenths := range []int{-3, 3, 10, 12, 15, 17, 20, 50} {
			ends := drain / 10 * time.Duration(tenths)
			for shape := range stopShapes(nil) {
				t.Run(fmt.Sprintf("drain timeout %v/apply ends after %v/%s", drain, ends, shape), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						verdict := time.Now().Add(10*time.Second + ends)
						a := courier.ProcessFunc(func(context.Context, int) error {
							time.Sleep(time.Until(verdict))
							return nil
						})
						var cut []time.Time
						mark := func(ctx context.Context, records []int) error {
							<-ctx.Done()
							cut = append(cut, time.Now())
							return ctx.Err()
						}
						stop := start(t, stopShapes(mark)[shape](a, quiet, courier.WithDrainTimeout(drain), courier.WithBatchSize(3)))
						time.Sleep(10 * time.Second)
						began := time.Now()
						err := stop()
						require.ErrorIs(t, err, courier.ErrMark)
						ends := max(0, ends)
						require.Equal(t, ends+min(drain, max(drain/2, 2*drain-ends)), cut[0].Sub(began))
						require.Equal(t, cut[0].Sub(began), time.Since(began))
					})
				})
			}
		}
	}
}

// A Fetch that does not heed its context, and brings records long after the stop:
// they are given back under a live context.
func TestStop_WhatAFetchBringsTooLateIsGivenBack(t *testing.T) {
	for name, opts := range map[string][]courier.Option{
		"polling":        {courier.WithBatchSize(2)},
		"fetching ahead": {courier.WithBatchSize(2), courier.WithPrefetch(1)},
		"stream":         nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &renewable{leasing: newLeasing(numbers(4)...)}
				fetches := 0
				source.fetch = func(ctx context.Context, limit int) ([]int, error) {
					if fetches++; fetches > 1 {
						time.Sleep(5 * time.Minute)
					}
					return source.leasing.Fetch(ctx, min(limit, 2))
				}
				live := map[int]bool{}
				given := &givesBack{renewable: source, release: func(ctx context.Context, records []int) {
					for _, r := range records {
						live[r] = ctx.Err() == nil
					}
				}}
				var c running = courier.NewPollingCoordinator(given, &sink[int]{}, append(opts, quiet)...)
				if name == "stream" {
					c = courier.NewStreamingCoordinator(given, &sink[int]{}, quiet)
				}
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NoError(t, stop())
				require.Equal(t, map[int]bool{2: true, 3: true}, live)
			})
		})
	}
}

type givesBack struct {
	*renewable
	release func(ctx context.Context, records []int)
}

func (g *givesBack) Release(ctx context.Context, records []int, after time.Duration) error {
	g.release(ctx, records)
	return g.renewable.Release(ctx, records, after)
}
