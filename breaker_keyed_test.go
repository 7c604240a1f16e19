package courier_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
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
	if down && at > time.Minute {
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

// untilQuiet waits until no call to a host is under way.
func (h *hosts) untilQuiet(host int) {
	for busy := true; busy; {
		time.Sleep(time.Millisecond)
		synctest.Wait()
		h.mu.Lock()
		busy = h.now[host] > 0
		h.mu.Unlock()
	}
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
	const records = 60
	outage := 5 * time.Hour
	if raceEnabled { // which takes ten times as long
		outage = time.Hour
	}
	for _, shape := range []string{"plain", "batches", "keyed order", "by hand", "one worker", "in a branch"} {
		t.Run(shape, func(t *testing.T) {
			eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				destination := newHosts(6, map[int]time.Duration{2: outage})
				destination.hangs = 50 * time.Millisecond
				var applier courier.Applier[int] = destination
				if shape == "batches" {
					applier = eachOfBatch[int]{destination}
				}
				var queue courier.DLQ[int] = &courier.MemoryDLQ[int]{}
				policy := courier.BreakerPolicy{Name: "hooks"}
				if shape == "by hand" {
					applier = courier.NewDLQApplier(courier.WithRetry(courier.Applier[int](courier.NewKeyedCircuitBreakerApplier(
						courier.NewAttemptTimeoutApplier(applier, time.Second, nil), destination.host, policy))), queue, courier.DLQPolicy[int]{})
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
				destination.untilQuiet(2) // a probe does not wait, nor do the records of its share
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
				require.Greater(t, calls, int(outage/(3*time.Minute)))
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

// keyedOf is a keyed breaker whose keys are the hosts.
func (h *hosts) keyed(policy courier.BreakerPolicy, batches bool) *courier.KeyedBreaker[int] {
	var applier courier.Applier[int] = h
	if batches {
		applier = eachOfBatch[int]{h}
	}
	return courier.NewKeyedCircuitBreakerApplier(applier, h.host, policy)
}

// P-1 to P-4: a poison record of a host that is well is parked, whatever else its host gets,
// and the healthy ones of the host are through.
func TestKeyedBreaker_PoisonIsParkedAndHealthyRecordsAreNot(t *testing.T) {
	for _, batches := range []bool{false, true} {
		for _, poison := range []int{1, 3} {
			for _, apart := range []time.Duration{0, 700 * time.Millisecond, 20 * time.Second} {
				t.Run(fmt.Sprintf("%s, %d poison, %v apart", batched(batches), poison, apart), func(t *testing.T) {
					eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
						destination := newHosts(2, nil)
						destination.takes = 20 * time.Millisecond
						for i := range poison {
							destination.bad[2*i+1] = true
						}
						var applier courier.Applier[int] = destination
						if batches {
							applier = eachOfBatch[int]{destination}
						}
						applier, queue := courier.ResilientApplier(applier, &courier.ResilientConfig[int]{BreakerKey: destination.host, Retry: courier.RetryPolicy{MaxAttempts: 3}, Parking: courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate}})
						stop := start(t, make(applier, workersOf(source, 2)))
						for r := range 30 {
							source.add(r)
							time.Sleep(apart)
						}
						for r := range 10 { // so that there is another one to tell by
							time.Sleep(2 * time.Minute)
							source.add(30 + r)
						}
						time.Sleep(2 * time.Minute)
						require.NoError(t, stop())
						require.Empty(t, source.left())
						destination.allThrough(t, 40, true, 0)
						destination.allThrough(t, 40, true, 1)
						letters, err := queue.Receive(t.Context(), 10)
						require.NoError(t, err)
						require.Len(t, letters, poison)
					})
				})
			}
		}
	}
}

// A key with nothing but a poison record: it stays pending until another one comes.
func TestKeyedBreaker_ALonePoisonRecordWaitsForAnother(t *testing.T) {
	eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		destination := newHosts(2, nil)
		destination.bad[1] = true
		applier, queue := courier.ResilientApplier(courier.Applier[int](destination), &courier.ResilientConfig[int]{BreakerKey: destination.host})
		c := make(applier)
		stop := start(t, c)
		source.add(0, 1)
		time.Sleep(time.Hour)
		require.Equal(t, []int{1}, source.left())
		require.Equal(t, 1, c.Stats().Waiting)
		require.NoError(t, c.Ready())
		source.add(3)
		time.Sleep(3 * time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Contains(t, destination.through, 3)
		n, err := queue.Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

// D11: what waits counts as in hand, and only when it fills that does intake pause.
func TestD11_RecordsOfADeadHostThatFillTheHandPauseTheIntake(t *testing.T) {
	eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		destination := newHosts(2, map[int]time.Duration{1: time.Hour})
		var paused []courier.PauseEvent
		applier, queue := courier.ResilientApplier(courier.Applier[int](destination), &courier.ResilientConfig[int]{BreakerKey: destination.host})
		c := make(applier, workersOf(source, 2), courier.WithBatchSize(10), courier.WithObserver(courier.Observer{
			Paused: func(_ context.Context, e courier.PauseEvent) { paused = append(paused, e) },
		}))
		stop := start(t, c)
		for r := range 200 {
			source.add(r)
			time.Sleep(time.Second)
			require.LessOrEqual(t, c.Stats().InHand, int64(20))
		}
		require.ErrorIs(t, c.Ready(), courier.ErrFullHand)
		require.NotEmpty(t, paused)
		for _, e := range paused {
			require.ErrorIs(t, e.Err, courier.ErrFullHand)
		}
		time.Sleep(time.Hour + 2*time.Minute)
		require.NoError(t, c.Ready())
		require.NoError(t, stop())
		require.Empty(t, source.left())
		n, err := queue.Count(t.Context())
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// A host that is forced open gets nothing, the others go on, and Reset lets it go on.
func TestKeyedBreaker_ForcedOpen(t *testing.T) {
	eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		destination := newHosts(3, nil)
		keyed := destination.keyed(courier.BreakerPolicy{}, false)
		keyed.ForceOpen("host 1")
		require.Equal(t, courier.BreakerForcedOpen, keyed.State("host 1"))
		require.Equal(t, courier.BreakerClosed, keyed.State("host 0"))
		require.ErrorIs(t, keyed.Apply(t.Context(), 1), courier.ErrForcedOpen)
		stop := start(t, make(courier.WithRetry(courier.Applier[int](keyed))))
		source.add(numbers(9)...)
		time.Sleep(time.Hour)
		require.Equal(t, []int{1, 4, 7}, source.left())
		require.Empty(t, destination.callsOf(1))
		keyed.Reset("host 1")
		time.Sleep(6 * time.Second)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Empty(t, keyed.Metrics())
	})
	destination := newHosts(1, nil)
	destination.bad[0] = true
	keyed := destination.keyed(courier.BreakerPolicy{FailureThreshold: 1}, false)
	keyed.ForceClosed("host 0")
	for range 10 {
		require.NotErrorIs(t, keyed.Apply(t.Context(), 0), courier.ErrOpen)
	}
	require.Equal(t, courier.BreakerForcedClosed, keyed.Metrics()[0].State)
	keyed.Reset("another")
	keyed.Reset("host 0")
	require.ErrorIs(t, keyed.Apply(t.Context(), 0), courier.ErrOpen)
}

// D11: no more breakers are kept than MaxKeys. Closed ones go first, and of these the one
// that was not used for the longest; one that is forced never goes.
func TestD11_KeyedBreakersAreBounded(t *testing.T) {
	clock := newHandClock()
	var fails bool
	changes := map[string]int{}
	keyed := courier.NewKeyedCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, string) error {
		if fails {
			return errTest
		}
		return nil
	}), func(r string) string { return r }, courier.BreakerPolicy{FailureThreshold: 2, MaxKeys: 3, Clock: clock, DisableJitter: true, OpenFor: time.Minute, OnStateChange: func(_ context.Context, c courier.BreakerChange) { changes[c.Breaker]++ }})
	fail := func(key string) error { fails = true; return keyed.Apply(t.Context(), key) }
	succeed := func(key string) error { fails = false; return keyed.Apply(t.Context(), key) }
	open := func() (names []string) {
		for _, m := range keyed.Metrics() {
			names = append(names, m.Name)
		}
		return names
	}
	for range 2 {
		_ = fail("a")
	}
	_ = fail("b")
	_ = fail("c")
	require.NoError(t, succeed("b")) // used after c
	_ = fail("d")                    // and c is forgotten, with its failure
	require.NotErrorIs(t, fail("c"), courier.ErrOpen)
	require.Equal(t, []string{"a"}, open(), "one that is open stays while others can go")
	require.ErrorIs(t, fail("c"), courier.ErrOpen)
	for _, key := range []string{"x", "y", "x", "y", "z"} {
		_ = fail(key)
	}
	require.Equal(t, []string{"a", "c"}, open())
	_ = fail("z")
	require.Equal(t, []string{"a", "c", "z"}, open())
	require.ErrorIs(t, succeed("a"), courier.ErrOpen) // used
	_ = fail("e")
	require.Equal(t, []string{"a", "z"}, open(), "all are open, and the one goes that was not used for the longest")
	keyed.ForceOpen("forced 1")
	keyed.ForceOpen("forced 2")
	for i := range 100 {
		_ = fail("n" + strconv.Itoa(i))
		_ = fail("n" + strconv.Itoa(i))
	}
	require.Len(t, keyed.Metrics(), 3)
	require.Subset(t, open(), []string{"forced 1", "forced 2"})
	for i := range 1000 {
		require.NoError(t, succeed("healthy "+strconv.Itoa(i)))
	}
	require.Subset(t, open(), []string{"forced 1", "forced 2", "n99"}, "keys that never fail take no room")
	require.Equal(t, 1, changes["forced 1"])
}

func TestKeyedBreaker_MisuseIsAConfigError(t *testing.T) {
	apply := courier.ProcessFunc(nop[int])
	key := strconv.Itoa
	for name, applier := range map[string]courier.Applier[int]{
		"no key":              courier.NewKeyedCircuitBreakerApplier(apply, nil, courier.BreakerPolicy{}),
		"no applier":          courier.NewKeyedCircuitBreakerApplier[int](nil, key, courier.BreakerPolicy{}),
		"around a retry":      courier.NewKeyedCircuitBreakerApplier(courier.WithRetry(apply), key, courier.BreakerPolicy{}),
		"in a timeout":        courier.NewAttemptTimeoutApplier(courier.Applier[int](courier.NewKeyedCircuitBreakerApplier(apply, key, courier.BreakerPolicy{})), time.Second, nil),
		"keys":                courier.NewKeyedCircuitBreakerApplier(apply, key, courier.BreakerPolicy{MaxKeys: -1}),
		"keys of one breaker": courier.NewCircuitBreakerApplier(apply, courier.NewBreaker(courier.BreakerPolicy{MaxKeys: 1})),
		"the zero value":      new(courier.KeyedBreaker[int]),
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrConfig)
			require.ErrorIs(t, applier.(courier.BatchApplier[int]).ApplyBatch(t.Context(), []int{1}), courier.ErrConfig)
			require.ErrorIs(t, courier.NewPollingCoordinator(courier.Source[int](newShelf[int]()), applier).Start(t.Context()), courier.ErrConfig)
		})
	}
	zero := new(courier.KeyedBreaker[int])
	zero.ForceOpen("a")
	zero.Reset("a")
	require.Equal(t, courier.BreakerClosed, zero.State("a"))
	require.Empty(t, zero.Metrics())
}

// A key function that panics, or ends the goroutine, is its record's failure, and no
// breaker's.
func TestD9_AKeyFunctionThatPanicsIsItsRecordsFailure(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("no host") }, "Goexit": runtime.Goexit} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", name, batched(batches)), func(t *testing.T) {
				eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
					destination := newHosts(1, nil)
					var applier courier.Applier[int] = destination
					if batches {
						applier = eachOfBatch[int]{destination}
					}
					applier, queue := courier.ResilientApplier(applier, &courier.ResilientConfig[int]{Retry: courier.RetryPolicy{MaxAttempts: 3}, BreakerKey: func(r int) string {
						if r == 1 {
							end()
						}
						return "one"
					}})
					c := make(applier)
					stop := start(t, c)
					source.add(numbers(4)...)
					time.Sleep(time.Minute)
					require.Empty(t, c.Stats().Breakers)
					require.NoError(t, stop())
					require.Empty(t, source.left())
					require.Len(t, destination.calls, 3)
					letters, err := queue.Receive(t.Context(), 2)
					require.NoError(t, err)
					require.Len(t, letters, 1)
					require.Equal(t, 3, letters[0].Attempts)
					require.ErrorContains(t, letters[0].Error, "the key of the record's breaker is not known")
				})
			})
		}
	}
}

// P-3: the record that failed the last probe is not the next one while another waits, so
// that no number of bad records keeps the healthy ones of their host from ever being asked.
func TestP3_AKeyedBreakerProbesWithAnotherRecord(t *testing.T) {
	eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		destination := newHosts(1, map[int]time.Duration{0: 10 * time.Minute})
		applier, _ := courier.ResilientApplier(courier.Applier[int](destination), &courier.ResilientConfig[int]{BreakerKey: destination.host})
		stop := start(t, make(applier))
		source.add(numbers(5)...)
		time.Sleep(9 * time.Minute)
		probes := map[int]int{}
		destination.mu.Lock()
		for _, call := range destination.calls[len(destination.calls)-5:] {
			probes[call.record]++
		}
		destination.mu.Unlock()
		require.Len(t, probes, 5, "they take turns: %v", probes)
		time.Sleep(3 * time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
	})
}

// Half-open with several successes wanted: probes go one at a time until there were enough,
// and no record asks again and again meanwhile.
func TestKeyedBreaker_SeveralSuccessesClose(t *testing.T) {
	eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		destination := newHosts(1, map[int]time.Duration{0: 2 * time.Minute})
		destination.takes = 300 * time.Millisecond
		var closed time.Duration
		applier, _ := courier.ResilientApplier(courier.Applier[int](destination), &courier.ResilientConfig[int]{BreakerKey: destination.host, Breaker: courier.BreakerPolicy{Successes: 3, MaxOpenFor: 10 * time.Second, OnStateChange: func(_ context.Context, c courier.BreakerChange) {
			if c.To == courier.BreakerClosed {
				closed = time.Since(destination.began)
			}
		}}})
		c := make(applier, workersOf(source, 8))
		stop := start(t, c)
		source.add(numbers(20)...)
		time.Sleep(2*time.Minute - time.Second)
		rejected := c.Stats().Breakers[0].Rejected
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Less(t, rejected, uint64(20*2*20), "each record asks a few times in an open period")
		require.NotZero(t, closed)
		before := 0
		for _, at := range destination.callsOf(0) {
			if at > 2*time.Minute && at < closed {
				before++
			}
		}
		require.Equal(t, 3, before)
		require.Less(t, closed, 2*time.Minute+15*time.Second)
	})
}

// In a batch the records go in one call whose breakers let them; a probe is one record; and
// each breaker is told what became of the records of its key.
func TestKeyedBreaker_ABatch(t *testing.T) {
	clock := newHandClock()
	var calls [][]int
	var fail func(records []int) error
	destination := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
		calls = append(calls, slices.Clone(records))
		return fail(records)
	}}
	keyed := courier.NewKeyedCircuitBreakerApplier(courier.Applier[int](destination), func(r int) string {
		if r < 0 {
			panic("no key")
		}
		return strconv.Itoa(r % 10)
	}, courier.BreakerPolicy{FailureThreshold: 2, OpenFor: time.Minute, DisableJitter: true, Clock: clock})
	of := func(bad ...int) func([]int) error {
		return func(records []int) error {
			var list courier.BatchError
			for i, r := range records {
				if slices.Contains(bad, r) {
					list.Add(i, errTest)
				}
			}
			return list.ErrorOrNil()
		}
	}
	apply := func(records ...int) map[int]error {
		calls = nil
		err := keyed.ApplyBatch(t.Context(), records)
		errs := map[int]error{}
		var list *courier.BatchError
		if errors.As(err, &list) {
			for _, f := range list.Failures {
				errs[records[f.Index]] = f.Err
			}
		} else if err != nil {
			for _, r := range records {
				errs[r] = err
			}
		}
		return errs
	}

	fail = of(1, 11, 2)
	errs := apply(1, 2, 11, 12, 3, -1)
	require.Equal(t, [][]int{{1, 2, 11, 12, 3}}, calls)
	require.Len(t, errs, 4)
	require.ErrorIs(t, errs[-1], courier.ErrPanic)
	require.NotErrorIs(t, errs[1], courier.ErrOpen, "one call is one failure")
	errs = apply(1, 11, 2, 12) // the second in a row of 1; of 2 others got through
	require.Len(t, errs, 3)
	for _, r := range []int{1, 11} {
		var open *courier.OpenError
		require.ErrorAs(t, errs[r], &open)
		require.True(t, courier.Counted(open))
		require.ErrorIs(t, errs[r], errTest)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), errs[r]))
	}
	require.NotErrorIs(t, errs[2], courier.ErrOpen)

	fail = of()
	errs = apply(1, 2, 3, 11)
	require.Equal(t, [][]int{{2, 3}}, calls, "what is refused is not attempted")
	require.Len(t, errs, 2)
	require.ErrorIs(t, errs[11], courier.ErrOpen)
	errs = apply(1, 11)
	require.Empty(t, calls)
	require.Len(t, errs, 2)

	fail = func([]int) error { return errTest }
	errs = apply(2, 1, 3)
	require.Equal(t, [][]int{{2, 3}}, calls)
	for _, r := range []int{1, 2, 3} { // each goes alone next
		require.Equal(t, errTest, errs[r])
	}
	require.Equal(t, courier.BreakerClosed, keyed.State("2"))

	clock.advance(time.Minute)
	fail = of(1)
	errs = apply(1, 11, 2, 21)
	require.Equal(t, [][]int{{1, 2}}, calls, "a probe is one record")
	require.Len(t, errs, 3)
	var open *courier.OpenError
	require.ErrorAs(t, errs[1], &open)
	require.False(t, courier.Counted(open))
	require.Equal(t, courier.BreakerOpen, keyed.State("1"))
	clock.advance(2 * time.Minute)
	fail = of()
	require.Len(t, apply(1, 11, 2), 1)
	require.Equal(t, courier.BreakerClosed, keyed.State("1"))
	require.Empty(t, apply(1, 11, 2))
	require.Equal(t, [][]int{{1, 11, 2}}, calls)
}

// A panic and a Goexit of the applier are failures as any other, plain and in a batch, and
// free the slot of a probe.
func TestB4_AKeyedBreakerCountsPanics(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("down") }, "Goexit": runtime.Goexit} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", name, batched(batches)), func(t *testing.T) {
				eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
					destination := newHosts(2, nil)
					began := time.Now()
					applier := courier.ProcessFunc(func(ctx context.Context, r int) error {
						if r%2 == 1 && time.Since(began) < time.Hour {
							end()
						}
						return destination.Apply(ctx, r)
					})
					if batches {
						applier = eachOfBatch[int]{applier}
					}
					applier, queue := courier.ResilientApplier(applier, &courier.ResilientConfig[int]{BreakerKey: destination.host})
					stop := start(t, make(applier))
					for r := range 10 {
						source.add(r)
						time.Sleep(2 * time.Second)
					}
					time.Sleep(30 * time.Minute)
					require.Equal(t, []int{1, 3, 5, 7, 9}, source.left())
					time.Sleep(32 * time.Minute)
					require.NoError(t, stop())
					require.Empty(t, source.left())
					n, err := queue.Count(t.Context())
					require.NoError(t, err)
					require.Zero(t, n)
				})
			})
		}
	}
}

// A keyed breaker does what one Breaker for each key would do: the same calls get through,
// and each opens and closes at the same times, also where calls overlap.
func TestKeyedBreaker_IsABreakerForEachKey(t *testing.T) {
	type under struct {
		key    string
		permit courier.Permit
		end    chan error
		ended  chan error
	}
	rapid.Check(t, func(rt *rapid.T) {
		clock := newHandClock()
		policy := courier.BreakerPolicy{
			FailureThreshold: rapid.IntRange(1, 4).Draw(rt, "threshold"), OpenFor: 10 * time.Second, DisableJitter: true,
			Successes: rapid.IntRange(1, 2).Draw(rt, "successes"), Probes: rapid.IntRange(1, 2).Draw(rt, "probes"), Clock: clock,
		}
		if rapid.Bool().Draw(rt, "rated") {
			policy.FailureRate, policy.MinCalls, policy.Window = 0.5, 3, 30*time.Second
		}
		keys := []string{"a", "b", "c"}
		models := map[string]*courier.Breaker{}
		var told, modelTold []string
		tell := func(list *[]string) func(context.Context, courier.BreakerChange) {
			return func(_ context.Context, c courier.BreakerChange) {
				*list = append(*list, fmt.Sprint(c.Breaker, c.From, c.To, c.At, c.Until))
			}
		}
		for _, key := range keys {
			p := policy
			p.Name, p.OnStateChange = key, tell(&modelTold)
			models[key] = courier.NewBreaker(p)
		}
		entered := make(chan *under)
		policy.OnStateChange = tell(&told)
		keyed := courier.NewKeyedCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, u *under) error {
			entered <- u
			return <-u.end
		}), func(u *under) string { return u.key }, policy)
		var flight []*under
		ctx := context.Background()
		finish := func(i int, err error) {
			u := flight[i]
			flight = slices.Delete(flight, i, i+1)
			u.end <- err
			got, want := <-u.ended, models[u.key].Report(ctx, u.permit, err)
			if errors.Is(got, courier.ErrOpen) != errors.Is(want, courier.ErrOpen) {
				rt.Fatalf("the call to %s ended with %v, and with a breaker of its own %v", u.key, got, want)
			}
		}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				clock.advance(time.Duration(rapid.IntRange(1, 15).Draw(rt, "seconds")) * time.Second)
			case 1, 2:
				u := &under{key: rapid.SampledFrom(keys).Draw(rt, "key"), end: make(chan error), ended: make(chan error, 1)}
				go func() { u.ended <- keyed.Apply(ctx, u) }()
				var refused error
				in := false
				select {
				case <-entered:
					in = true
				case refused = <-u.ended:
				}
				permit, err := models[u.key].Acquire(ctx)
				if in != (err == nil) {
					rt.Fatalf("%s was let through: %v (%v), and by a breaker of its own: %v", u.key, in, refused, err)
				}
				if in {
					u.permit = permit
					flight = append(flight, u)
				}
			default:
				if len(flight) > 0 {
					finish(rapid.IntRange(0, len(flight)-1).Draw(rt, "which"), rapid.SampledFrom([]error{nil, errTest, errTest, courier.Permanent(errTest), courier.Later(errTest, 1)}).Draw(rt, "outcome"))
				}
			}
			for _, key := range keys {
				if got, want := keyed.State(key), models[key].State(); got != want {
					rt.Fatalf("%s is %s, and a breaker of its own %s", key, got, want)
				}
			}
		}
		for len(flight) > 0 {
			finish(0, nil)
		}
		if !slices.Equal(told, modelTold) {
			rt.Fatalf("told %v, and breakers of their own %v", told, modelTold)
		}
	})
}

// A redrive leaves the letters of a host that is down, and goes on with the others.
func TestRedrive_AKeyedBreakerKeepsItsOwnLettersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		destination := newHosts(3, map[int]time.Duration{1: time.Hour})
		queue := &courier.MemoryDLQ[int]{}
		for r := range 12 {
			require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[int]{Record: r}))
		}
		keyed := destination.keyed(courier.BreakerPolicy{FailureThreshold: 2}, false)
		result, err := courier.Redrive(t.Context(), courier.DLQ[int](queue), courier.Applier[int](keyed), nil)
		require.ErrorIs(t, err, courier.ErrRedrive)
		require.ErrorIs(t, err, courier.ErrOpen)
		require.Equal(t, courier.RedriveResult{Attempted: 10, Succeeded: 8, Failed: 2, Left: 2}, result)
		time.Sleep(time.Hour)
		result, err = courier.Redrive(t.Context(), courier.DLQ[int](queue), courier.Applier[int](keyed), nil)
		require.NoError(t, err)
		require.Equal(t, 4, result.Succeeded)
	})
}

// D3, I-1: one dead host of 50 costs the others no time, whatever is around.
func TestD3_OneDeadHostOf50CostsTheOthersNoTime(t *testing.T) {
	const records = 1000
	for _, workers := range []int{1, 8} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d workers, %s", workers, batched(batches)), func(t *testing.T) {
				eitherTakes := map[bool]map[bool]time.Duration{true: {}, false: {}}
				for _, dead := range []bool{false, true} {
					t.Run(choose(dead, "one dead host", "no dead host"), func(t *testing.T) {
						eitherInHand(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
							down := map[int]time.Duration{}
							if dead {
								down[3] = time.Hour
							}
							destination := newHosts(50, down)
							destination.takes, destination.hangs = time.Millisecond, time.Millisecond
							var applier courier.Applier[int] = destination
							if batches {
								applier = eachOfBatch[int]{destination}
							}
							applier, queue := courier.ResilientApplier(applier, &courier.ResilientConfig[int]{BreakerKey: destination.host})
							opts := []courier.Option{workersOf(source, workers), courier.WithBatchSize(200)}
							if batches {
								opts = append(opts, courier.WithApplyBatchSize(10))
							}
							if workers == 1 { // which would wait for a retry without
								opts = append(opts, courier.WithOrderKey(destination.host))
							}
							source.add(numbers(records)...)
							stop := start(t, make(applier, opts...))
							time.Sleep(time.Minute)
							if err := stop(); err != nil {
								var unsettled *courier.UnsettledError[int]
								require.ErrorAs(t, err, &unsettled)
							}
							eitherTakes[source.wait][dead] = destination.allThrough(t, records, false, 3)
							n, err := queue.Count(t.Context())
							require.NoError(t, err)
							require.Zero(t, n)
						})
					})
				}
				for _, takes := range eitherTakes {
					t.Logf("%.2f times as long: %v instead of %v", float64(takes[true])/float64(takes[false]), takes[true], takes[false])
					require.LessOrEqual(t, takes[true], takes[false]*12/10)
				}
			})
		}
	}
}

// A source whose leases cannot be renewed gets the records of a dead host back for as long
// as its breaker is open, and none is parked for that.
func TestKeyedBreaker_AnOpenPeriodIsTheSourcesToKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		destination := newHosts(3, map[int]time.Duration{1: time.Hour})
		source := r.LeasingSource(time.Minute, numbers(30)...)
		applier, queue := courier.ResilientApplier(courier.Applier[int](destination), &courier.ResilientConfig[int]{BreakerKey: destination.host})
		c := courier.NewPollingCoordinator(courier.Source[int](struct {
			courier.Source[int]
			courier.Releaser[int]
		}{source, source}), applier, quiet, unspread, courier.WithWorkers(2))
		stop := start(t, c)
		time.Sleep(time.Minute)
		require.EqualValues(t, 20, c.Stats().Marked)
		time.Sleep(time.Hour + 2*time.Minute)
		require.NoError(t, stop())
		require.EqualValues(t, 30, c.Stats().Marked)
		n, err := queue.Count(t.Context())
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// Inside a call that keeps the order nothing overtakes a record whose breaker refuses it,
// even where records of one order key are for several hosts.
func TestKeyedBreaker_NothingInAnOrderedCallOvertakesARefusedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(2)
		breaker := courier.NewKeyedCircuitBreakerApplier(o, byRest(3), courier.BreakerPolicy{})
		breaker.ForceOpen("1")
		err := breaker.ApplyBatch(t.Context(), []int{0, 1, 2, 3})
		require.Equal(t, [][]int{{0}}, o.calls)
		require.Empty(t, o.problems)
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.Len(t, list.Failures, 3)
		require.NotErrorIs(t, list.Failures[0].Err, courier.ErrBehindFailed)
		require.ErrorIs(t, list.Failures[0].Err, courier.ErrOpen)
		require.ErrorIs(t, list.Failures[1].Err, courier.ErrBehindFailed)
		require.ErrorIs(t, list.Failures[2].Err, courier.ErrBehindFailed)
	})
}

// slowFetch is a source whose fetches take a moment.
type slowFetch struct {
	courier.Source[int]
	courier.Releaser[int]
}

func (s slowFetch) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, err := s.Source.Fetch(ctx, limit)
	time.Sleep(50 * time.Millisecond)
	return records, err
}

// A poison record that waits in hand is the probe sooner than those of its host that wait at
// the source. It gives way for as long as they need to come.
func TestD10_WhatWaitsAtTheSourceIsTheProbeInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		destination := newHosts(1, nil)
		destination.bad[0] = true
		source := r.StreamSource(0)
		applier, queue := courier.ResilientApplier(courier.Applier[int](destination), &courier.ResilientConfig[int]{BreakerKey: destination.host})
		stop := start(t, courier.NewStreamingCoordinator(courier.Source[int](slowFetch{source, source}), applier, quiet, unspread, courier.WithStreamWorkers(2)))
		time.Sleep(10 * time.Minute)
		source.Add(1, 2)
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Empty(t, source.Pending())
		letters, err := queue.Receive(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		require.Equal(t, 0, letters[0].Record)
	})
}

// At the end of a stream a record that asks to come later is waited for as long as that may
// come to something, and given up then: nobody else would end the wait.
func TestKeyed_AtTheEndOfAStream(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		for recovers, most := range map[time.Duration]time.Duration{0: time.Hour, 4 * time.Minute: 10 * time.Minute} {
			t.Run(fmt.Sprintf("keyed %v, recovers after %v", keyed, recovers), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					began := time.Now()
					applier := courier.ProcessFunc(func(context.Context, int) error {
						switch {
						case recovers > 0 && time.Since(began) > recovers:
							return nil
						case keyed:
							return errTest
						}
						return courier.Later(errTest, time.Second)
					})
					if keyed {
						applier, _ = courier.ResilientApplier(applier, &courier.ResilientConfig[int]{BreakerKey: byRest(1)})
					}
					err := courier.NewStreamingCoordinator(courier.NewChannelSource(full(5, true), nop[[]int]), applier, quiet, unspread).Start(t.Context())
					require.Less(t, time.Since(began), most)
					if recovers > 0 {
						require.NoError(t, err)
						return
					}
					require.GreaterOrEqual(t, time.Since(began), 5*time.Minute)
					var unsettled *courier.UnsettledError[int]
					require.ErrorAs(t, err, &unsettled)
					require.Len(t, unsettled.Records, 5)
				})
			})
		}
	}
}
