package courier_test

import (
	"context"

	"strconv"
	"sync"
	"testing"

	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// hosts is a destination with several hosts: record r is for host r%n. A host that is down
// fails its calls after a while.
type hosts struct {
	n     int
	down  map[int]time.Duration // since the beginning, until when
	takes time.Duration         // a call
	hangs time.Duration         // a call to a host that is down
	bad   map[int]bool          // records that never succeed

	mu      sync.Mutex
	began   time.Time
	calls   []hostCall
	through map[int]time.Duration
	now     map[int]int // calls under way, by host
	most    map[int]int // at once while it was down, once it had failed a few
}

type hostCall struct {
	record int
	at     time.Duration
}

func newHosts(n int, down map[int]time.Duration) *hosts {
	return &hosts{n: n, down: down, began: time.Now(), through: map[int]time.Duration{}, now: map[int]int{}, most: map[int]int{}, bad: map[int]bool{}}
}

func (h *hosts) host(r int) string { return "host " + strconv.Itoa(r%h.n) }

func (h *hosts) Apply(_ context.Context, r int) error {
	h.mu.Lock()
	at := time.Since(h.began)
	down := at < h.down[r%h.n]
	h.calls = append(h.calls, hostCall{r, at})
	h.now[r%h.n]++
	if at > time.Minute {
		h.most[r%h.n] = max(h.most[r%h.n], h.now[r%h.n])
	}
	h.mu.Unlock()
	if down {
		time.Sleep(h.hangs)
	} else {
		time.Sleep(h.takes)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now[r%h.n]--
	if down || h.bad[r] {
		return errTest
	}
	h.through[r] = time.Since(h.began)
	return nil
}

func (h *hosts) callsOf(host int) (at []time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.calls {
		if c.record%h.n == host {
			at = append(at, c.at)
		}
	}
	return at
}

// allThrough returns when the last of the records was through that are of a host, or of
// all others.
func (h *hosts) allThrough(t *testing.T, records int, of bool, host int) (last time.Duration) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range records {
		if (r%h.n == host) == of && !h.bad[r] {
			require.Contains(t, h.through, r)
			last = max(last, h.through[r])
		}
	}
	return last
}

// eitherInHand runs a test with a coordinator of either kind, over a source that takes
// nothing back: what waits stays in hand.
func eitherInHand(t *testing.T, test func(t *testing.T, source *leasing[int], make func(applier courier.Applier[int], opts ...courier.Option) running)) {
	for name, polling := range map[string]bool{"polling": true, "streaming": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newLeasing[int]()
				source.wait = !polling
				test(t, source, func(applier courier.Applier[int], opts ...courier.Option) running {
					opts = append([]courier.Option{quiet, unspread, courier.WithIdentity(strconv.Itoa)}, opts...)
					if polling {
						return courier.NewPollingCoordinator(courier.Source[int](source.shelf), applier, append(opts, courier.WithInterval(time.Second))...)
					}
					return courier.NewStreamingCoordinator(courier.Source[int](struct{ courier.Source[int] }{source}), applier, opts...)
				})
			})
		})
	}
}

func workersOf(source *leasing[int], n int) courier.Option {
	if source.wait {
		return courier.WithStreamWorkers(n)
	}
	return courier.WithWorkers(n)
}

// In an outage of hours of one host its records wait, and those of the others are through
// in time. No record is parked, the host gets probes alone, one at a time, and recovery
// is soon after its end.
func TestKeyedBreaker_ADeadHostStopsNoOther(t *testing.T) {
	const outage, records = 5 * time.Hour, 60
	for _, shape := range []string{"plain", "batches", "keyed order", "by hand", "one worker", "in a branch"} {
		t.Run(shape, func(t *testing.T) {
			eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				destination := newHosts(6, map[int]time.Duration{2: outage})
				destination.hangs = 50 * time.Millisecond
				var applier courier.Applier[int] = destination
				if shape == "batches" {
					applier = eachOfBatch[int]{destination}
				}
				var queue courier.DLQ[int] = courier.NewMemoryDLQ[int](0)
				policy := courier.BreakerPolicy{Name: "hooks"}
				if shape == "by hand" {
					applier = courier.NewDLQApplier(courier.WithRetry(courier.Applier[int](courier.NewKeyedCircuitBreakerApplier(
						courier.NewAttemptTimeoutApplier(applier, time.Second, nil), destination.host, policy))), queue)
				} else {
					applier, _ = courier.ResilientApplier(applier, &courier.ResilientConfig[int]{Breaker: policy, BreakerKey: destination.host, DLQ: queue})
				}
				other := newHosts(1, nil)
				if shape == "in a branch" {
					applier = courier.NewFanOutApplier(applier, courier.Applier[int](other))
				}
				workers := 4
				if shape == "one worker" {
					workers = 1
				}
				var paused []courier.PauseEvent
				opts := []courier.Option{workersOf(source, workers), courier.WithObserver(courier.Observer{
					Paused: func(_ context.Context, e courier.PauseEvent) { paused = append(paused, e) },
				})}
				if shape == "keyed order" {
					opts = append(opts, courier.WithOrderKey(destination.host))
				}
				c := make(applier, opts...)
				stop := start(t, c)
				for r := range records { // one every 2 seconds
					source.add(r)
					time.Sleep(2 * time.Second)
				}
				time.Sleep(time.Minute)
				require.Len(t, source.left(), records/6, "the others are marked")
				for r := range records {
					if r%6 != 2 {
						require.Less(t, destination.through[r], time.Duration(r)*2*time.Second+1500*time.Millisecond, "record %d", r)
					}
				}
				require.NoError(t, c.Ready())
				stats := c.Stats()
				require.Len(t, stats.Breakers, 1)
				require.Equal(t, "hooks/host 2", stats.Breakers[0].Name)
				require.Equal(t, map[bool]string{true: "0"}[shape == "in a branch"], stats.Breakers[0].Branch)
				require.NotEqual(t, courier.BreakerClosed, stats.Breakers[0].State)
				if shape == "keyed order" { // behind the first of the key
					require.Equal(t, 1, stats.Waiting)
				} else {
					require.Equal(t, records/6, stats.Waiting)
				}
				time.Sleep(outage - time.Since(destination.began))
				calls := len(destination.callsOf(2))
				require.Less(t, calls, int(outage/(48*time.Second))+30, "probes alone")
				require.Greater(t, calls, 100)
				time.Sleep(90 * time.Second)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				require.Less(t, destination.allThrough(t, records, true, 2), outage+75*time.Second)
				require.Equal(t, 1, destination.most[2], "probes go one at a time")
				require.Empty(t, paused)
				n, err := queue.Count(t.Context())
				require.NoError(t, err)
				require.Zero(t, n)
				require.Empty(t, c.Stats().Breakers)
				if shape == "in a branch" {
					require.Len(t, other.calls, records, "the other branch gets nothing twice")
				}
			})
		})
	}
}
