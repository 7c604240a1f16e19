package courier_test

// Revoker: sources that take records back.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

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
			t.Run(fmt.Sprintf("%s, %s", name, coordinatorOf(streaming)), func(t *testing.T) {
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
