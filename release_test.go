package courier_test

// Releaser and Failer: what goes back to the source, and with what.

import (
	"context"
	"slices"
	"strconv"
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

// D5: a Failer is told of records that were attempted in vain, which would burn
// an attempt of its schedule; what was refused goes to Release.
func TestD5_AFailerIsNotToldOfWhatWasNotAttempted(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &scheduling{leasing: newLeasing(0)}
				source.wait = streaming
				s := &sink[int]{fail: func(_ context.Context, _, call int) error {
					if call == 1 {
						return rateLimited{}
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
				require.Empty(t, source.failed)
				require.Equal(t, []int{0}, slices.Concat(source.released...))
				require.Equal(t, []int{0}, source.marked())
			})
		})
	}
}
