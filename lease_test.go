package courier_test

// Leases: renewals, and leases that are lost at every point.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// expiring is a source whose leases last a minute.
type expiring struct {
	*leasing[int]
	renewed [][]int
	lost    map[int]bool
	err     error
}

func (e *expiring) RenewEvery() time.Duration { return 20 * time.Second }

func (e *expiring) Renew(ctx context.Context, records []int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.renewed = append(e.renewed, slices.Clone(records))
	if e.err != nil {
		return e.err
	}
	return losing(slices.Collect(maps.Keys(e.lost))...)(ctx, records)
}

func TestRenewer_LeasesAreRenewedForAsLongAsRecordsAreInHand(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &expiring{leasing: newLeasing(1, 2, 3), err: errTest} // an error is logged, and it is tried again
				source.wait = streaming
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(25 * time.Second); return nil }}
				var c running = courier.NewPollingCoordinator(source, s, quiet)
				if streaming {
					c = courier.NewStreamingCoordinator(source, s, quiet)
				}
				stop := start(t, c)
				time.Sleep(10 * time.Minute)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				require.GreaterOrEqual(t, len(source.renewed), 3)
				require.LessOrEqual(t, len(source.renewed), 4, "nothing is in hand any more")
				require.Equal(t, []int{1, 2, 3}, source.renewed[0])
				require.Contains(t, source.renewed[2], 3)
			})
		})
	}
}

// D5: a lease that is lost is nothing against the record, and it is not begun.
func TestD5_ARecordWhoseLeaseIsLostIsLeftAlone(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &expiring{leasing: newLeasing(1, 2, 3, 4), lost: map[int]bool{1: true, 3: true}}
				source.wait = streaming
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(25 * time.Second); return nil }}
				applier, dlq := courier.ResilientApplier[int](s, nil)
				opts := []courier.Option{quiet, courier.WithBatchSize(4)}
				var c running = courier.NewPollingCoordinator(source, applier, opts...)
				if streaming {
					c = courier.NewStreamingCoordinator(source, applier, opts...)
				}
				stop := start(t, c)
				time.Sleep(90 * time.Second)
				require.NoError(t, stop())
				require.Equal(t, []int{1, 2, 4}, s.got(), "1 was begun when it was lost, 3 was not")
				require.Equal(t, []int{1, 2, 4}, source.marked())
				n, err := dlq.Count(t.Context())
				require.NoError(t, err)
				require.Zero(t, n)
				require.Zero(t, c.Stats().Failed)
			})
		})
	}
}

// Leases of batches that were fetched ahead are renewed with those in work.
func TestRenewer_LeasesOfWhatIsFetchedAheadAreRenewed(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		source := records.LeasingSource(30*time.Second, numbers(20)...)
		sink := records.Applier(courierttest.MustParse(`delay 20s`))
		courierttest.RunFor(t, courier.NewPollingCoordinator(source, sink, courier.WithBatchSize(3), courier.WithPrefetch(2), quiet), 20*time.Minute)
		courierttest.AssertDeliveredOnce(t, &records)
		courierttest.AssertDrained(t, source)
		require.Empty(t, records.Records(courierttest.Stale))
		require.Len(t, records.Records(courierttest.Fetched), 20, "each was handed out once")
		require.Equal(t, numbers(20), records.Records(courierttest.Applied))
	})
}

// disowned is a leasing source that says of some records that they are lost.
type disowned struct {
	*courierttest.LeasingSource[int]
	lost []int
}

func (l *disowned) Renew(ctx context.Context, records []int) error {
	var lost courier.BatchError
	for i, r := range records {
		if slices.Contains(l.lost, r) {
			lost.Add(i, errTest)
		}
	}
	if err := l.LeasingSource.Renew(ctx, records); err != nil {
		return err
	}
	return lost.ErrorOrNil()
}

// D5: what was fetched ahead and whose lease is lost is not begun, and nothing is
// held against it.
func TestD5_WhatIsFetchedAheadAndLostIsLeftAlone(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		source := &disowned{records.LeasingSource(30*time.Second, numbers(9)...), []int{2, 3, 7}}
		sink := records.Applier(courierttest.MustParse(`delay 20s`))
		run := courierttest.Start(t, courier.NewPollingCoordinator(source, sink, courier.WithBatchSize(3), courier.WithPrefetch(2), quiet))
		time.Sleep(125 * time.Second)
		require.Equal(t, []int{0, 1, 4, 5, 6, 8}, records.Records(courierttest.Applied))
		require.Empty(t, records.Records(courierttest.Failed))
		require.NoError(t, run.Stop())
	})
}

// D5: a stream lets go of what is lost wherever it is: in its queue, with a
// worker, or behind another record of its key.
func TestD5_WhatAStreamHasLostIsLeftAlone(t *testing.T) {
	for _, keys := range []int{0, 2} {
		t.Run(fmt.Sprint(keys, " keys"), func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var records courierttest.Recorder[int]
				source := &hasty{disowned{records.StreamSource(numbers(10)...), []int{2, 3, 6, 9}}}
				sink := records.Applier(courierttest.MustParse(`delay 20s`))
				opts := []courier.Option{courier.WithBatchSize(10), courier.WithStreamWorkers(2), quiet}
				if keys > 0 {
					opts = append(opts, courier.WithOrderKey(byRest(keys)))
				}
				courierttest.RunFor(t, courier.NewStreamingCoordinator(source, sink, opts...), 10*time.Minute)
				got := records.Records(courierttest.Applied)
				slices.Sort(got)
				require.Equal(t, []int{0, 1, 4, 5, 7, 8}, got)
				require.ElementsMatch(t, got, records.Records(courierttest.Marked))
				require.Equal(t, []int{2, 3, 6, 9}, source.Pending())
			})
		})
	}
}

// hasty is a source that wants its leases renewed often.
type hasty struct{ disowned }

func (*hasty) RenewEvery() time.Duration { return 10 * time.Second }

// What was lost of the batch before is not lost of this one.
func TestD5_ALossIsOfItsBatchOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &expiring{leasing: newLeasing(numbers(8)...), lost: map[int]bool{2: true, 5: true}}
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(21 * time.Second); return nil }}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(4)))
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{0, 1, 3, 4, 6, 7}, s.got(), "2 and 5 were lost before they were begun")
	})
}

// desk is a leasing source that hands records out in their order, and again
// those that were given back once their time has come.
type desk struct {
	mu     sync.Mutex
	due    map[int]time.Time // of those given back; the zero time is at once
	out    map[int]bool
	marked map[int]bool
	n      int
	slow   time.Duration // a mark takes so long
	pace   time.Duration // and everything else
}

func newDesk(n int) *desk {
	return &desk{due: map[int]time.Time{}, out: map[int]bool{}, marked: map[int]bool{}, n: n}
}

func (d *desk) Fetch(_ context.Context, limit int) (records []int, _ error) {
	time.Sleep(d.pace)
	d.mu.Lock()
	defer d.mu.Unlock()
	for r := 0; r < d.n && len(records) < limit; r++ {
		if d.marked[r] || d.out[r] {
			continue
		}
		if time.Now().Before(d.due[r]) { // all are of one key: nothing behind it
			break
		}
		d.out[r] = true
		records = append(records, r)
	}
	return records, nil
}

func (d *desk) Mark(_ context.Context, records []int) error {
	time.Sleep(d.slow)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range records {
		d.marked[r] = true
		delete(d.out, r)
	}
	return nil
}

func (d *desk) Release(_ context.Context, records []int, after time.Duration) error {
	time.Sleep(2 * d.pace)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range records {
		delete(d.out, r)
		d.due[r] = time.Now().Add(after)
	}
	return nil
}

// renewedDesk notes what is renewed.
type renewedDesk struct {
	*desk
	renewed map[int]bool
}

func (d *renewedDesk) RenewEvery() time.Duration { return time.Second }

func (d *renewedDesk) Renew(_ context.Context, records []int) error {
	for _, r := range records {
		d.renewed[r] = true
	}
	return nil
}

func (d *renewedDesk) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, _ := d.desk.Fetch(ctx, limit)
	if len(records) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return records, nil
}

// With ordered marks, what is applied waits for the record before it. Its lease
// is not renewed meanwhile, and somebody else gets it.
func TestLease_WhatWaitsForAnEarlierMarkIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewedDesk{newDesk(3), map[int]bool{}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
				if r == 0 {
					time.Sleep(5 * time.Second)
				}
				return nil
			}), courier.WithStreamWorkers(3), courier.WithOrderedMarks(), quiet).Start(ctx)
		}()
		time.Sleep(10 * time.Second)
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, map[int]bool{0: true, 1: true, 2: true}, source.renewed)
	})
}

func losing(lose ...int) func(context.Context, []int) error {
	return func(_ context.Context, records []int) error {
		var lost courier.BatchError
		for i, r := range records {
			if slices.Contains(lose, r) {
				lost.Add(i, errors.New("somebody else has it"))
			}
		}
		return lost.ErrorOrNil()
	}
}

// A record that a worker was given but has not begun, whose lease is lost, and
// that is then taken back for an idle worker, is left alone.
func TestLease_Stream_ALostRecordThatIsTakenBackIsNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1, 2, 3), every: 20 * time.Second, renew: losing(1)}
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			time.Sleep([]time.Duration{time.Minute, time.Second, 25 * time.Second, time.Second}[r])
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet, courier.WithStreamWorkers(2)))
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.NotContains(t, s.got(), 1, "its lease was lost before it was begun")
	})
}

// The same where the share ends before the lost record, over a breaker's pause.
func TestLease_Stream_ALostRecordBehindAHaltIsNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told atomic.Bool
		source := &renewable{leasing: newLeasing(0, 1), every: 20 * time.Second, renew: func(ctx context.Context, records []int) error {
			if told.Load() {
				return nil
			}
			return losing(1)(ctx, records)
		}}
		source.wait = true
		down := true
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			time.Sleep(25 * time.Second)
			if down {
				down = false
				return &courier.OpenError{Until: time.Now().Add(time.Second)}
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet, courier.WithBatchSize(2)))
		time.Sleep(30 * time.Second) // before the next renewal can tell again
		told.Store(true)
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.NotContains(t, s.got(), 1)
		require.NotContains(t, slices.Concat(source.released...), 1, "it is not ours to give back")
	})
}

// With ordered marks, an applied record that waits for its turn is in hand, and
// its lease is renewed.
func TestLease_Stream_WhatWaitsForItsOrderedMarkIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1, 2, 3), every: 20 * time.Second}
		renewed := source.notesRenewals()
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 0 {
				time.Sleep(5 * time.Minute)
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet, courier.WithStreamWorkers(2), courier.WithOrderedMarks(), courier.WithDrainTimeout(time.Hour)))
		time.Sleep(time.Minute)
		require.Empty(t, source.marked())
		seen := renewed()
		require.NoError(t, stop())
		require.NotEmpty(t, seen)
		require.ElementsMatch(t, []int{0, 1, 2, 3}, seen[0], "all are in hand")
	})
}

// While a mark is under way its records are in hand, and renewed. Renew is not
// called with nothing.
func TestLease_Stream_WhatIsBeingMarkedIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1), every: 20 * time.Second, markFor: time.Minute}
		renewed := source.notesRenewals()
		source.wait = true
		stop := start(t, courier.NewStreamingCoordinator(source, &sink[int]{}, quiet, courier.WithDrainTimeout(time.Hour)))
		time.Sleep(50 * time.Second)
		seen := renewed()
		require.NoError(t, stop())
		for _, records := range seen {
			require.ElementsMatch(t, []int{0, 1}, records, "Renew is called with what is in hand, and never with nothing")
		}
	})
}

// A record that fails behind the loss of its lease is another's to try again, where
// a stream keeps what failed to try it by itself.
func TestLease_Stream_WhatFailsBehindItsLossIsNotTriedAgain(t *testing.T) {
	for name, keep := range map[string]courier.Option{
		"ordered marks": courier.WithOrderedMarks(), "order by key": courier.WithOrderKey(func(int) string { return "" }),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &renewable{leasing: newLeasing(0, 1), every: 20 * time.Second, renew: losing(0)}
				source.wait = true
				s := &sink[int]{fail: func(_ context.Context, n, _ int) error {
					if n == 0 {
						time.Sleep(25 * time.Second) // the loss is told at 20 s
						return errTest
					}
					return nil
				}}
				c := courier.NewStreamingCoordinator(source, s, quiet, keep)
				stop := start(t, c)
				time.Sleep(10 * time.Minute)
				require.Equal(t, 2, s.called(), "each once")
				require.Equal(t, []int{1}, source.marked())
				require.Zero(t, c.Stats().InHand)
				require.NoError(t, stop())
			})
		})
	}
}

// A loss is heard of which a Renew tells that was under way when the next batch came
// into work.
func TestLease_Polling_ALossThatIsToldWhileTheBatchChangesIsHeard(t *testing.T) {
	for name, prefetch := range map[string]int{"behind": 0, "ahead": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &renewable{leasing: newLeasing(0, 1, 2, 3), every: 20 * time.Second}
				source.renew = func(ctx context.Context, records []int) error {
					time.Sleep(5 * time.Second)
					return losing(3)(ctx, records)
				}
				if prefetch == 0 { // all four at once: the last two are behind the batch
					source.fetch = func(ctx context.Context, _ int) ([]int, error) { return source.leasing.Fetch(ctx, 4) }
				}
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(11 * time.Second); return nil }}
				stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(2), courier.WithPrefetch(prefetch)))
				time.Sleep(2 * time.Minute) // 2 is begun at 22 s, the loss of 3 told at 25 s, 3 begun at 33 s
				require.NoError(t, stop())
				require.NotContains(t, s.got(), 3)
			})
		})
	}
}

// InHand does not count what was lost behind the batch.
func TestLease_Polling_InHandForgetsWhatWasLostBehindTheBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1, 2, 3), every: 20 * time.Second, renew: losing(3)}
		source.fetch = func(ctx context.Context, _ int) ([]int, error) { return source.leasing.Fetch(ctx, 4) }
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(15 * time.Second); return nil }}
		c := courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(2))
		stop := start(t, c)
		time.Sleep(10 * time.Minute)
		require.Equal(t, []int{0, 1, 2}, s.got())
		require.Zero(t, c.Stats().InHand)
		require.NoError(t, stop())
	})
}

// What was lost is not given back by a stop: it is somebody else's.
// A waiting record whose lease is lost does not come back into hand with the later ones of
// its key when a breaker opens.
func TestLease_Polling_AWaitingRecordThatWasLostIsNotKeptOverAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing[int](), every: 300 * time.Millisecond}
		began := time.Now()
		source.renew = func(ctx context.Context, records []int) error {
			if time.Since(began) < 500*time.Millisecond {
				return nil
			}
			return losing(records...)(ctx, records)
		}
		fetched := false
		source.fetch = func(context.Context, int) ([]int, error) {
			if fetched {
				return nil, nil
			}
			fetched = true
			return []int{0, 1, 3, 2}, nil // more than asked for: two batches
		}
		var mu sync.Mutex
		var begun []int
		applier := courier.ProcessFunc(func(_ context.Context, r int) error {
			mu.Lock()
			begun = append(begun, r)
			mu.Unlock()
			switch r {
			case 0:
				return courier.Later(errTest, 5*time.Second)
			case 3:
				time.Sleep(time.Second)
				return &courier.OpenError{Until: time.Now().Add(time.Second)}
			}
			return nil
		})
		key := func(r int) string { return strconv.Itoa(r % 2) }
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithBatchSize(2), courier.WithOrderKey(key)))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Equal(t, []int{0, 1, 3}, begun)
		require.Empty(t, source.released)
	})
}

func TestLease_Polling_AStopReleasesNothingThatWasLost(t *testing.T) {
	for name, limit := range map[string]int{"in the batch": 2, "behind it": 4} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &renewable{leasing: newLeasing(0, 1, 2, 3), every: 20 * time.Second, renew: losing(limit - 1)}
				source.fetch = func(ctx context.Context, _ int) ([]int, error) { return source.leasing.Fetch(ctx, limit) }
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(25 * time.Second); return nil }}
				stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(2), courier.WithDrainTimeout(time.Minute)))
				time.Sleep(22 * time.Second)
				require.NoError(t, stop())
				require.NotContains(t, slices.Concat(source.released...), limit-1)
			})
		})
	}
}

// A Renew that waits for its context does not keep a run that is at its end.
func TestLease_ARenewUnderWayDoesNotKeepTheRunFromEnding(t *testing.T) {
	for name, streaming := range map[string]bool{"RunOnce": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &renewable{leasing: newLeasing(0), every: 20 * time.Second}
				source.renew = func(ctx context.Context, _ []int) error { <-ctx.Done(); return ctx.Err() }
				done := false
				source.fetch = func(ctx context.Context, limit int) ([]int, error) {
					if done {
						return nil, io.EOF
					}
					done = true
					return source.leasing.Fetch(ctx, limit)
				}
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(25 * time.Second); return nil }}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var ended atomic.Bool
				go func() {
					if streaming {
						_ = courier.NewStreamingCoordinator(source, s, quiet).Start(ctx)
					} else {
						_ = courier.NewPollingCoordinator(source, s, quiet).RunOnce(ctx)
					}
					ended.Store(true)
				}()
				time.Sleep(time.Hour)
				require.Equal(t, []int{0}, source.marked())
				ok := ended.Load()
				cancel()
				time.Sleep(time.Hour)
				require.True(t, ok, "all is settled, an hour ago")
			})
		})
	}
}

// A lease runs out though the clock is set back: renewals go on.
func TestLease_Stream_AClockThatIsSetBackPutsNoRenewalOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clock wallClock
		var renewals atomic.Int32
		source := &renewable{leasing: newLeasing(0), every: 20 * time.Second, renew: func(context.Context, []int) error {
			renewals.Add(1)
			return nil
		}}
		source.wait = true
		s := &sink[int]{fail: func(context.Context, int, int) error {
			time.Sleep(5 * time.Minute)
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet, courier.WithClock(&clock), courier.WithDrainTimeout(time.Hour)))
		time.Sleep(30 * time.Second)
		clock.step(-time.Hour)
		time.Sleep(time.Minute)
		require.EqualValues(t, 4, renewals.Load())
		require.NoError(t, stop())
	})
}

// What a poller passes over to probe with another record is in its hand until it
// is given back, behind the probe's mark.
func TestLease_Polling_WhatAProbePassesOverIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1), every: 20 * time.Second, markFor: 30 * time.Second}
		renewed := source.notesRenewals()
		s := &sink[int]{fail: func(_ context.Context, r, attempt int) error {
			if r == 0 && attempt == 1 {
				return errTest
			}
			return nil
		}}
		applier := courier.NewCircuitBreakerApplier(s, courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1}))
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet))
		time.Sleep(25 * time.Second) // the breaker was open for a second, and the probe is being marked
		seen := renewed()
		require.Len(t, seen, 1)
		require.ElementsMatch(t, []int{0, 1}, seen[0])
		time.Sleep(time.Minute)
		require.NoError(t, stop())
	})
}

// A source may find a record gone that is being marked meanwhile: nothing is lost.
func TestLease_WhatIsMarkedWhileItIsRenewedIsNotLost(t *testing.T) {
	for name, make := range map[string]func(courier.Source[int], courier.Applier[int], ...courier.Option) running{
		"polling": func(s courier.Source[int], a courier.Applier[int], o ...courier.Option) running {
			return courier.NewPollingCoordinator(s, a, o...)
		},
		"streaming": func(s courier.Source[int], a courier.Applier[int], o ...courier.Option) running {
			return courier.NewStreamingCoordinator(s, a, o...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &renewable{leasing: newLeasing(0, 1), every: 20 * time.Second, renew: losing(0, 1), markFor: 30 * time.Second}
				source.wait = name == "streaming"
				var told courierttest.ObserverRecorder
				stop := start(t, make(source, &sink[int]{}, quiet, courier.WithObserver(told.Observer())))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				renewed := courierttest.EventsOf[courier.RenewEvent](&told)
				require.Len(t, renewed, 1)
				require.Zero(t, renewed[0].Lost)
				require.NoError(t, renewed[0].Err)
			})
		})
	}
}

// A record that is to be given back, behind a mark that takes long, is in hand.
func TestLease_Stream_WhatWaitsToBeGivenBackIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0), every: 20 * time.Second, markFor: 30 * time.Second}
		renewed := source.notesRenewals()
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 1 {
				return errTest
			}
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet))
		time.Sleep(time.Second)
		source.add(1)
		time.Sleep(24 * time.Second)
		require.NoError(t, stop())
		seen := renewed()
		require.Len(t, seen, 1)
		require.ElementsMatch(t, []int{0, 1}, seen[0])
	})
}

// A renewal that is under way while its records are marked, and is heard of later,
// has lost nothing.
func TestLease_WhatWasMarkedWhileItWasRenewedIsNotLost(t *testing.T) {
	for name, make := range map[string]func(courier.Source[int], courier.Applier[int], ...courier.Option) running{
		"polling": func(s courier.Source[int], a courier.Applier[int], o ...courier.Option) running {
			return courier.NewPollingCoordinator(s, a, o...)
		},
		"streaming": func(s courier.Source[int], a courier.Applier[int], o ...courier.Option) running {
			return courier.NewStreamingCoordinator(s, a, o...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &renewable{leasing: newLeasing(0, 1), every: 20 * time.Second}
				source.wait = name == "streaming"
				source.renew = func(ctx context.Context, records []int) error { // waits for the rows that a mark has locked
					time.Sleep(10 * time.Second)
					return losing(0, 1)(ctx, records)
				}
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(12 * time.Second); return nil }}
				var told courierttest.ObserverRecorder
				stop := start(t, make(source, s, quiet, courier.WithObserver(told.Observer())))
				time.Sleep(time.Minute)
				require.Equal(t, []int{0, 1}, source.marked())
				require.NoError(t, stop())
				renewed := courierttest.EventsOf[courier.RenewEvent](&told)
				require.Len(t, renewed, 1)
				require.Zero(t, renewed[0].Lost)
				require.NoError(t, renewed[0].Err)
			})
		})
	}
}

// A record that is held back behind a failed one of its key can be lost while the others
// of its batch are marked: that is told, and it does not go back to the source.
func TestLease_Polling_AHeldBackRecordThatIsLostDuringTheMarkIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1, 2), every: 20 * time.Second, renew: losing(2), markFor: 30 * time.Second}
		s := &sink[int]{fail: func(_ context.Context, n, _ int) error {
			if n == 0 {
				return errTest
			}
			return nil
		}}
		var told courierttest.ObserverRecorder
		c := courier.NewPollingCoordinator(source, s, quiet, courier.WithOrderKey(byRest(2)), courier.WithObserver(told.Observer()))
		stop := start(t, c)
		time.Sleep(31 * time.Second) // 1 is marked until 30 s, the loss of 2 told at 20 s
		require.NoError(t, stop())
		renewed := courierttest.EventsOf[courier.RenewEvent](&told)
		require.NotEmpty(t, renewed)
		require.Equal(t, 1, renewed[0].Lost)
		require.NotContains(t, slices.Concat(source.released...), 2)
		require.Zero(t, c.Stats().InHand)
	})
}

// What was given back in a pass is not renewed while the pass goes on.
func TestLease_Polling_WhatWasGivenBackIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1, 2), every: 20 * time.Second, releaseFor: 15 * time.Second}
		renewed := source.notesRenewals()
		s := &sink[int]{fail: func(_ context.Context, n, _ int) error {
			if n == 0 {
				return courier.RetryAfter(errTest, time.Hour)
			}
			return nil
		}}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithOrderKey(byRest(2))))
		time.Sleep(25 * time.Second) // 0 is given back until 15 s, and 2 behind it until 30 s
		seen := renewed()
		require.NoError(t, stop())
		require.Equal(t, [][]int{{2}}, seen)
	})
}

// What is to be applied again in between, where there is an order, is renewed.
func TestLease_Stream_WhatIsToGoInBetweenIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1, 2), every: 20 * time.Second}
		renewed := source.notesRenewals()
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, n, attempt int) error {
			if n == 0 && attempt == 1 {
				return courier.Later(errTest, 5*time.Second)
			}
			time.Sleep(15 * time.Second)
			return nil
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet, courier.WithOrderKey(strconv.Itoa), courier.WithDrainTimeout(time.Hour)))
		time.Sleep(25 * time.Second) // 0 has been due since 5 s; the only worker is at 1 until 15 s, then at 2 or 0
		seen := renewed()
		require.NoError(t, stop())
		require.NotEmpty(t, seen)
		require.Contains(t, seen[0], 0)
	})
}

// A record that waits in hand, whose lease runs out, and that the source hands out again, is
// not lost by the answer to a renewal that was asked for before.
func TestLease_Polling_ARecordThatComesAgainDuringARenewalIsNotLost(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1), every: 2 * time.Second}
		slow := sync.OnceFunc(func() {
			source.mu.Lock()
			delete(source.out, 1) // its lease runs out
			source.mu.Unlock()
			time.Sleep(2 * time.Second)
		})
		lose := losing(1)
		source.renew = func(ctx context.Context, records []int) error {
			slow()
			defer func() { lose = losing() }()
			return lose(ctx, records)
		}
		began := time.Now()
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if left := 10*time.Second - time.Since(began); r == 1 && left > 0 {
				return courier.Later(errTest, left)
			}
			return nil
		}}
		c := courier.NewPollingCoordinator(source, s, quiet, unspread, courier.WithInterval(time.Second))
		stop := start(t, c)
		time.Sleep(5500 * time.Millisecond)
		require.EqualValues(t, 1, c.Stats().InHand)
		time.Sleep(10 * time.Second)
		require.NoError(t, stop())
		require.Equal(t, []int{0, 1}, source.marked())
	})
}

// A run that loses what waits while others are marked fetches no more, and returns the error.
func TestLease_RunOnceFetchesNothingForWhatItHasLost(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(0, 1), every: 2 * time.Second, renew: losing(0), markFor: 3 * time.Second}
		calls := 0
		source.fetch = func(ctx context.Context, limit int) ([]int, error) {
			calls++
			return source.leasing.Fetch(ctx, limit)
		}
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r == 0 {
				return courier.Later(errTest, 4*time.Second)
			}
			source.add(2)
			return nil
		}}
		err := courier.NewPollingCoordinator(source, s, quiet).RunOnce(t.Context())
		require.ErrorIs(t, err, errTest)
		require.Equal(t, 1, calls)
	})
}
