package courier_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// What the simulation and the fuzzing have found in the engine, as tests of a few
// records each.

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

// A poller that is stopped while it marks gives back what it has fetched ahead,
// though the stop is seen behind the settling of the batch.
func TestD8_AStopDuringAMarkGivesBackWhatWasFetchedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newDesk(6)
		source.slow = time.Second
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- courier.NewPollingCoordinator(source, courier.ProcessFunc(func(context.Context, int) error { return nil }),
				courier.WithBatchSize(2), courier.WithPrefetch(1), quiet).Start(ctx)
		}()
		time.Sleep(1500 * time.Millisecond) // in the second mark
		cancel()
		require.NoError(t, <-ended)
		require.Empty(t, source.out, "not given back")
	})
}

// With marks in order, what was applied behind a record that is handed back cannot
// be marked, and Start says so.
func TestD1_OrderedMarksThatAreHeldUpAtTheEndAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked []int
		source := courier.NewChannelSource(full(3, false), func(_ context.Context, r []int) error { marked = append(marked, r...); return nil })
		stop := start(t, courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 0 {
				return errTest
			}
			return nil
		}), courier.WithOrderedMarks(), quiet))
		time.Sleep(time.Minute)
		err := stop()
		var left *courier.UnsettledError[int]
		var unmarked *courier.MarkError
		require.ErrorAs(t, err, &left)
		n := len(left.Records) + len(marked)
		if errors.As(err, &unmarked) {
			n += unmarked.Records
		}
		require.Equal(t, 3, n, "each of three records is marked, handed back or told to be unmarked: %v", err)
	})
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
