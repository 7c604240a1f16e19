package courier_test

// What a source can do besides fetch and mark, and that both coordinators ask
// for it.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// scheduling is a source that keeps a retry schedule.
type scheduling struct {
	*leasing[int]
	failed []courier.FailedRecord[int]
	err    error
}

func (s *scheduling) Fail(_ context.Context, failed []courier.FailedRecord[int]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, failed...)
	return s.err
}

func TestFailer_IsToldOfWhatFailedAndIsGivenBackTheRest(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &scheduling{leasing: newLeasing(numbers(5)...), err: errTest}
				source.wait = streaming
				s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
					if r == 2 {
						return courier.RetryAfter(errTest, 7*time.Second)
					}
					return nil
				}}
				var c running = courier.NewPollingCoordinator(source, s, quiet)
				if streaming {
					c = courier.NewStreamingCoordinator(source, s, quiet)
				}
				stop := start(t, c)
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Len(t, source.failed, 1)
				require.Equal(t, 2, source.failed[0].Record)
				require.ErrorIs(t, source.failed[0].Error, errTest)
				require.Equal(t, 7*time.Second, source.failed[0].After)
				require.Empty(t, slices.Concat(source.released...))
				require.Equal(t, []int{2}, source.left(), "what it does with it is its own affair")
			})
		})
	}
}

// A source that is a Failer may hand out at once what it is given back: the
// coordinators have a pace of their own for what can be settled nowhere.
func TestReleaser_ThatHandsOutAtOnceIsNotFetchedWithoutAPause(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &scheduling{leasing: newLeasing(numbers(30)...)} // whose Release heeds no time
				source.wait = streaming
				s := &sink[int]{fail: func(context.Context, int, int) error { return courier.Permanent(errTest) }}
				full := courier.NewDLQApplier(s, &courier.MemoryDLQ[int]{Capacity: 3}, courier.DLQPolicy[int]{})
				batch := courier.WithBatchSize(10)
				var c running = courier.NewPollingCoordinator(source, full, quiet, batch)
				if streaming {
					c = courier.NewStreamingCoordinator(source, full, quiet, batch)
				}
				stop := start(t, c)
				time.Sleep(10 * time.Minute)
				require.NoError(t, stop())
				require.Len(t, source.left(), 27)
				require.Greater(t, source.fetches, 3)
				require.Less(t, source.fetches, 200)
			})
		})
	}
}

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

// revoking is a source whose leases do not end by time: it tells when some are lost.
type revoking struct {
	*leasing[int]
	lost    map[int]bool
	renewed [][]int
	revoked chan struct{}
	slow    time.Duration // how long a Fetch holds back what it has
	ordered map[int]bool  // of the lost ones, those given over in order
}

func newRevoking(records ...int) *revoking {
	return &revoking{leasing: newLeasing(records...), lost: make(map[int]bool), revoked: make(chan struct{}, 1)}
}

func (r *revoking) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, err := r.leasing.Fetch(ctx, limit)
	time.Sleep(r.slow)
	return records, err
}

func (r *revoking) RenewEvery() time.Duration { return 0 }

func (r *revoking) Revoked() <-chan struct{} { return r.revoked }

func (r *revoking) lose(records ...int) {
	r.mu.Lock()
	for _, n := range records {
		r.lost[n] = true
	}
	r.mu.Unlock()
	r.revoked <- struct{}{}
}

func (r *revoking) Renew(ctx context.Context, records []int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewed = append(r.renewed, slices.Clone(records))
	err := losing(slices.Collect(maps.Keys(r.lost))...)(ctx, records)
	if list := (*courier.BatchError)(nil); errors.As(err, &list) {
		for i, f := range list.Failures {
			if r.ordered[records[f.Index]] {
				list.Failures[i].Err = fmt.Errorf("its partition goes elsewhere: %w", courier.ErrRevoked)
			}
		}
	}
	return err
}

// asked returns what Renew was called with so far.
func (r *revoking) asked() [][]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.renewed)
}

// D5: the loss of a lease is told at once, also of records that were being fetched
// meanwhile, or wait for a retry.
func TestD5_ARecordThatIsRevokedIsNotBegun(t *testing.T) {
	keyed := courier.WithOrderKey(func(n int) string { return strconv.Itoa(n % 2) })
	for name, test := range map[string]struct {
		streaming bool
		opts      []courier.Option
	}{
		"polling":         {opts: []courier.Option{courier.WithBatchSize(4)}},
		"prefetch":        {opts: []courier.Option{courier.WithBatchSize(1), courier.WithPrefetch(3)}},
		"polling by key":  {opts: []courier.Option{keyed}},
		"streaming":       {streaming: true},
		"stream by key":   {streaming: true, opts: []courier.Option{keyed}},
		"one by one":      {streaming: true, opts: []courier.Option{courier.WithBatchSize(1), courier.WithPrefetch(3)}},
		"ordered marking": {streaming: true, opts: []courier.Option{courier.WithOrderedMarks()}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newRevoking(1, 2, 3, 4)
				source.wait = test.streaming
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(25 * time.Second); return nil }}
				applier, dlq := courier.ResilientApplier[int](s, nil)
				opts := append([]courier.Option{quiet}, test.opts...)
				var c running = courier.NewPollingCoordinator(source, applier, opts...)
				if test.streaming {
					c = courier.NewStreamingCoordinator(source, applier, opts...)
				}
				stop := start(t, c)
				time.Sleep(10 * time.Second)
				source.lose(1, 3)
				synctest.Wait()
				require.NotEmpty(t, source.asked(), "at once")
				time.Sleep(90 * time.Second)
				require.NoError(t, stop())
				require.Equal(t, []int{1, 2, 4}, s.got(), "1 was begun when it was lost, 3 was not")
				require.LessOrEqual(t, len(source.asked()), 3, "and not by time")
				n, err := dlq.Count(t.Context())
				require.NoError(t, err)
				require.Zero(t, n)
				require.Zero(t, c.Stats().Failed)
				require.Zero(t, c.Stats().InHand)
			})
		})
	}
}

// bothRevoking runs a test with a coordinator of either kind, over a source of three records
// of which each takes a time to be applied.
func bothRevoking(t *testing.T, takes time.Duration, test func(t *testing.T, source *revoking, s *sink[int], run func() (stop func() error))) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newRevoking(1, 2, 3)
				source.wait = streaming
				s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(takes); return nil }}
				var c running = courier.NewPollingCoordinator(source, s, quiet)
				if streaming {
					c = courier.NewStreamingCoordinator(source, s, quiet)
				}
				test(t, source, s, func() func() error { return start(t, c) })
			})
		})
	}
}

// What a source gives over in order is told at INFO, in a polling coordinator as in a stream:
// nothing went wrong. If any record is really lost, that is a warning, with what is lost later
// while the first is still in work.
func TestLease_WhatIsGivenOverInOrderIsNoWarning(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		for name, test := range map[string]struct {
			lose     [][]int // in this order
			ordered  []int
			warnings int
			infos    int
			revoked  int
		}{
			"in order":        {lose: [][]int{{2, 3}}, ordered: []int{2, 3}, infos: 1, revoked: 2},
			"a loss":          {lose: [][]int{{2, 3}}, warnings: 1},
			"both at once":    {lose: [][]int{{2, 3}}, ordered: []int{3}, warnings: 1, revoked: 1},
			"in order, later": {lose: [][]int{{1}, {2}}, ordered: []int{2}, warnings: 1, infos: 1, revoked: 1},
			"a loss, later":   {lose: [][]int{{1}, {2}}, ordered: []int{1}, warnings: 1, infos: 1, revoked: 1},
			"it is in work":   {lose: [][]int{{1}}, ordered: []int{1}, infos: 1, revoked: 1},
		} {
			t.Run(fmt.Sprintf("%s, streaming %v", name, streaming), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var log lines
					var told courierttest.ObserverRecorder
					source := newRevoking(1, 2, 3)
					source.wait, source.ordered = streaming, make(map[int]bool)
					for _, n := range test.ordered {
						source.ordered[n] = true
					}
					s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Minute); return nil }}
					opts := []courier.Option{courier.WithLogger(slog.New(slog.NewTextHandler(&log, nil))), courier.WithStallAfter(time.Hour), courier.WithObserver(told.Observer())}
					var c running = courier.NewPollingCoordinator(source, s, opts...)
					if streaming {
						c = courier.NewStreamingCoordinator(source, s, opts...)
					}
					stop := start(t, c)
					for _, lose := range test.lose {
						time.Sleep(10 * time.Second)
						source.lose(lose...)
					}
					time.Sleep(4 * time.Minute)
					require.NoError(t, stop())
					require.Equal(t, test.warnings, strings.Count(log.String(), "level=WARN"), log.String())
					require.Equal(t, test.infos, strings.Count(log.String(), "hands records over to another process"), log.String())
					revoked := 0
					for _, e := range courierttest.EventsOf[courier.RenewEvent](&told) {
						require.LessOrEqual(t, e.Revoked, e.Lost)
						revoked += e.Revoked
					}
					require.Equal(t, test.revoked, revoked)
				})
			})
		}
	}
}

// D5: what a Fetch has in its hands when the loss is told is asked about once it is here.
func TestD5_ARecordThatIsRevokedWhileItIsFetchedIsNotBegun(t *testing.T) {
	bothRevoking(t, time.Second, func(t *testing.T, source *revoking, s *sink[int], run func() func() error) {
		source.slow = 20 * time.Second
		stop := run()
		time.Sleep(10 * time.Second)
		source.lose(3)
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{1, 2}, s.got())
		require.Equal(t, [][]int{{1, 2, 3}}, source.asked())
	})
}

// A source waits for what it has taken back until no renewal names it any more: a record in
// work is named until its work has ended, though it is lost.
func TestRevoker_ALostRecordIsNamedUntilItsWorkHasEnded(t *testing.T) {
	bothRevoking(t, 25*time.Second, func(t *testing.T, source *revoking, s *sink[int], run func() func() error) {
		stop := run()
		time.Sleep(10 * time.Second)
		source.lose(1)
		time.Sleep(10 * time.Second)
		source.lose() // once more
		synctest.Wait()
		asked := source.asked()
		require.Len(t, asked, 2)
		require.Equal(t, []int{1, 2, 3}, asked[1])
		time.Sleep(5 * time.Minute)
		source.lose()
		synctest.Wait()
		require.NoError(t, stop())
		require.Len(t, source.asked(), 2, "nothing is in hand")
		require.Equal(t, []int{1, 2, 3}, s.got())
		require.Contains(t, source.marked(), 1, "it was applied, and its source decides")
	})
}

// A source that closes the channel has nothing more to tell.
func TestRevoker_AClosedChannelIsOneValue(t *testing.T) {
	bothRevoking(t, 25*time.Second, func(t *testing.T, source *revoking, s *sink[int], run func() func() error) {
		stop := run()
		time.Sleep(10 * time.Second)
		close(source.revoked)
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{1, 2, 3}, s.got())
		require.LessOrEqual(t, len(source.asked()), 2)
	})
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

// D11: as many batches ahead as were asked for, of a source that leases.
func TestD11_BatchesAreFetchedAhead(t *testing.T) {
	for _, ahead := range []int{0, 1, 3} {
		synctest.Test(t, func(t *testing.T) {
			source := newLeasing(numbers(100)...)
			var mu sync.Mutex
			inHand, most := 0, 0
			watched := courier.WithObserver(courier.Observer{Marked: func(_ context.Context, e courier.MarkEvent) {
				mu.Lock()
				defer mu.Unlock()
				inHand -= e.Records
			}})
			s := &sink[int]{fail: func(context.Context, int, int) error {
				time.Sleep(time.Millisecond)
				source.mu.Lock()
				out := len(source.out)
				source.mu.Unlock()
				mu.Lock()
				defer mu.Unlock()
				most = max(most, out+inHand)
				return nil
			}}
			stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(10), courier.WithPrefetch(ahead), watched))
			time.Sleep(time.Minute)
			require.NoError(t, stop())
			require.Equal(t, numbers(100), s.got())
			require.Empty(t, source.left())
			require.LessOrEqual(t, most, 10*(1+ahead))
			if ahead > 0 {
				require.Greater(t, most, 10)
			}
		})
	}
}

func TestD8_WhatWasFetchedAheadIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(40)...)
		s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(10), courier.WithPrefetch(2)))
		time.Sleep(2500 * time.Millisecond)
		require.NoError(t, stop())
		require.Equal(t, numbers(3), s.got())
		require.ElementsMatch(t, numbers(30)[3:], slices.Concat(source.released...))
	})
}

// holding is a source that holds back the later records of a key whose failure it
// was told of, as a Failer may.
type holding struct {
	*leasing[int]
	held map[string]time.Time
}

func ofPair(r int) string { return strconv.Itoa(r / 2) } // 0 and 1 have one key

func (s *holding) Fetch(_ context.Context, limit int) (records []int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.pending {
		if !s.out[r] && len(records) < limit && !time.Now().Before(s.held[ofPair(r)]) {
			s.out[r] = true
			records = append(records, r)
		}
	}
	return records, nil
}

func (s *holding) Fail(_ context.Context, failed []courier.FailedRecord[int]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range failed {
		s.held[ofPair(f.Record)] = time.Now().Add(time.Minute)
		delete(s.out, f.Record)
	}
	return nil
}

// D4: the records that RunOnce keeps in hand over a breaker's pause are none that
// come after one which the source was told has failed.
func TestFailer_ThatWasToldOfAFailureIsNotPassed(t *testing.T) {
	for _, workers := range []int{1, 3} {
		courierttest.Bubble(t, func(t *testing.T) {
			source := &holding{newLeasing(0, 1, 2, 4, 6), map[string]time.Time{}}
			s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
				switch r {
				case 0:
					return courier.Permanent(errTest)
				case 2:
					return errTest
				}
				return nil
			}}
			a := courier.NewCircuitBreakerApplier[int](s, courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1}))
			_ = courier.NewPollingCoordinator(source, a, quiet, courier.WithOrderKey(ofPair), courier.WithWorkers(workers)).RunOnce(t.Context())
			require.NotContains(t, s.got(), 1)
			require.Contains(t, s.got(), 6)
		})
	}
}
