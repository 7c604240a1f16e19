package courier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// A fan-out of which a branch has a breaker that is open, or due for a probe.

// behind puts an applier behind a breaker that one failure opens, for a second
// first.
func behind(a courier.Applier[int]) (courier.Applier[int], *courier.Breaker) {
	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, DisableJitter: true})
	return courier.NewCircuitBreakerApplier(a, b), b
}

// open opens a breaker.
func open(t *testing.T, b *courier.Breaker) {
	t.Helper()
	permit, err := b.Acquire(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, b.Report(t.Context(), permit, errTest), courier.ErrOpen)
}

// forms are the two ways to apply records, by name.
var forms = map[string]func(ctx context.Context, a courier.Applier[int], r int) error{
	"single": func(ctx context.Context, a courier.Applier[int], r int) error { return a.Apply(ctx, r) },
	"batch": func(ctx context.Context, a courier.Applier[int], r int) error {
		err := asBatch(a).ApplyBatch(ctx, []int{r})
		var list *courier.BatchError
		if errors.As(err, &list) {
			return list.Failures[0].Err
		}
		return err
	},
}

func TestF3_WhileANeededBranchIsOpenNoneIsCalled(t *testing.T) {
	for name, apply := range forms {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var heard missed
				a, down, extra := &batchSink[int]{}, &sink[int]{}, &sink[int]{}
				b, breaker := behind(down)
				open(t, breaker)
				fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{
					Branches:        append(named(a, b), courier.Branch[int]{Name: "extra", Applier: extra, Optional: true}),
					OnBranchFailure: heard.note,
				})
				err := apply(t.Context(), fan, 1)
				e := fanOutError(t, err)
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
				require.Equal(t, breaker.RetryAt(), courier.RetryAt(e))
				require.Len(t, e.Failures, 2)
				require.EqualError(t, e.Failures[0].Err, "not called: the fan-out waits for branch b")
				require.ErrorIs(t, e.Failures[1].Err, courier.ErrOpen)
				require.ErrorContains(t, err, "2 of the fan-out's branches do not have the record: branch a: not called")
				for _, s := range []*sink[int]{&a.sink, down, extra} {
					require.Zero(t, s.called())
				}
				require.Empty(t, a.batches)
				require.Empty(t, heard.take(), "what was not called has not failed")
			})
		})
	}
}

func TestF3_ABranchThatIsDueForAProbeGoesFirst(t *testing.T) {
	for name, apply := range forms {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var heard missed
				var mu sync.Mutex
				var order []string
				failure := errTest
				say := func(name string) courier.Applier[int] {
					return courier.ProcessFunc(func(context.Context, int) error {
						mu.Lock()
						defer mu.Unlock()
						if order = append(order, name); name == "b" {
							return failure
						}
						return nil
					})
				}
				b, breaker := behind(say("b"))
				open(t, breaker)
				fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{
					Branches:        append(named(say("a"), b), courier.Branch[int]{Name: "extra", Applier: say("extra"), Optional: true}),
					OnBranchFailure: heard.note,
				})
				for probe := range 5 {
					time.Sleep(time.Second << probe)
					err := apply(t.Context(), fan, 1)
					require.Equal(t, breaker.RetryAt(), courier.RetryAt(fanOutError(t, err)))
					require.ErrorContains(t, err, "the fan-out waits for branch b")
					require.ErrorContains(t, err, errTest.Error())
				}
				require.Equal(t, []string{"b", "b", "b", "b", "b"}, order)
				require.Empty(t, heard.take())

				time.Sleep(time.Minute)
				order, failure = nil, nil
				require.NoError(t, apply(t.Context(), fan, 1))
				require.Equal(t, "b", order[0])
				require.ElementsMatch(t, []string{"a", "b", "extra"}, order)
				require.EqualValues(t, "closed", breaker.State())
			})
		})
	}
}

// F-1: a branch that fails the record for good has answered its probe, and the
// others get the record.
func TestF1_AProbeThatIsRefusedForGoodIsAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &sink[int]{}
		b, breaker := behind(always(courier.Permanent(errTest)))
		open(t, breaker)
		time.Sleep(time.Second)
		err := courier.NewFanOutApplier[int](a, b).Apply(t.Context(), 1)
		require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), err))
		require.Equal(t, []int{1}, a.got())
	})
}

// What a quorum can do without the open branch, it does at once.
func TestF3_AnOpenBranchThatIsNotNeededHoldsNobodyUp(t *testing.T) {
	for name, apply := range forms {
		for state, wait := range map[string]time.Duration{"open": 0, "due for a probe": time.Second} {
			t.Run(name+", "+state, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var heard missed
					a, c := &sink[int]{}, &sink[int]{}
					b, breaker := behind(always(errTest))
					open(t, breaker)
					time.Sleep(wait)
					fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b, c), Quorum: 2, OnBranchFailure: heard.note})
					require.NoError(t, apply(t.Context(), fan, 1))
					require.Equal(t, []int{1}, a.got())
					require.Equal(t, []int{1}, c.got())
					require.Len(t, heard.take(), 1)

					optional, other := behind(always(errTest))
					open(t, other)
					time.Sleep(wait)
					branches := named(a, optional)
					branches[1].Optional = true
					require.NoError(t, apply(t.Context(), courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: branches, OnBranchFailure: heard.note}), 2))
					require.Equal(t, []int{1, 2}, a.got())
					require.Len(t, heard.take(), 1)
				})
			})
		}
	}
}

// It does so at once, and does not wait for the probe of a branch that it does not
// need.
func TestF3_AQuorumWaitsForNoProbeThatItDoesNotNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		called := make(chan struct{})
		a := courier.ProcessFunc(func(context.Context, int) error {
			close(called)
			return nil
		})
		b, breaker := behind(courier.ProcessFunc(func(context.Context, int) error {
			select {
			case <-called:
				return nil
			case <-time.After(time.Minute):
				return errTest
			}
		}))
		open(t, breaker)
		time.Sleep(time.Second)
		fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b), Quorum: 1, OnBranchFailure: (&missed{}).note})
		require.NoError(t, fan.Apply(t.Context(), 1))
		require.EqualValues(t, "closed", breaker.State())
	})
}

// Of a quorum of two, one is calm, one is open, and one is due for a probe: the
// quorum hangs on the probe.
func TestF3_AQuorumThatNeedsAProbeWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &sink[int]{}
		failure := errTest
		b, first := behind(courier.ProcessFunc(func(context.Context, int) error { return failure }))
		open(t, first)
		time.Sleep(time.Second)
		c, second := behind(always(nil))
		open(t, second)
		fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b, c), Quorum: 2, OnBranchFailure: (&missed{}).note})
		err := fan.Apply(t.Context(), 1)
		require.Zero(t, a.called())
		require.Equal(t, second.RetryAt(), courier.RetryAt(fanOutError(t, err)), "either will do, and this is the earlier one")

		time.Sleep(time.Minute)
		failure = nil
		require.NoError(t, fan.Apply(t.Context(), 1))
		require.Equal(t, 1, a.called())
	})
}

// A breaker that is forced open has no time at which it is worth asking again.
func TestF4_ABranchForcedOpenHasNoTime(t *testing.T) {
	a, _ := behind(always(nil))
	b, forced := behind(always(nil))
	forced.ForceOpen()
	c, other := behind(always(nil))
	open(t, other)
	err := courier.NewFanOutApplier(a, b, c).Apply(t.Context(), 1)
	require.ErrorIs(t, err, courier.ErrForcedOpen)
	require.Zero(t, courier.RetryAt(fanOutError(t, err)))
}

// P-2: what the retries of a branch have used is kept by deliveries that do not
// call it.
func TestP2_ADeliveryThatWaitsForAnotherBranchForgetsNoAttempt(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		began := time.Now()
		up := func(from, to time.Duration) bool { return time.Since(began) < from || time.Since(began) >= to }
		policy := courier.RetryPolicy{MaxAttempts: 5, InitialDelay: time.Second, MaxDelay: time.Second, Jitter: courier.NoJitter}
		closed := 0 // attempts on the poison record while the breaker is closed
		breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, DisableJitter: true})
		poison := courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 1 {
				if breaker.State() == courier.BreakerClosed {
					closed++
				}
				return errTest
			}
			return nil
		})
		queue := &courier.MemoryDLQ[int]{}
		a := courier.NewDLQApplier(courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(poison, breaker), policy), courier.DLQ[int](queue), courier.DLQPolicy[int]{})
		b, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
			if up(2*time.Second, 10*time.Minute) {
				return nil
			}
			return errTest
		}), &courier.ResilientConfig[int]{Retry: policy, Breaker: courier.BreakerPolicy{FailureThreshold: 2}})
		source.add(1, 2, 3)
		stop := start(t, make(courier.NewFanOutApplier(a, b), quiet))
		for r := range 60 {
			time.Sleep(time.Minute)
			source.add(4 + r)
		}
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		letters := lettersIn(t, queue)
		require.Len(t, letters, 1)
		require.Equal(t, 5, letters[1].Attempts)
		require.Equal(t, 5, closed)
	})
}

// What the retries of a branch have used on a record is over once the branch has
// taken it, though others have not. When the record comes again, in an outage of
// that branch, it is not parked as if it had failed all the time.
func TestP2_ABranchThatTookARecordBeginsAnew(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		began := time.Now()
		within := func(from, to time.Duration) bool { return time.Since(began) >= from && time.Since(began) < to }
		config := courier.ResilientConfig[int]{
			Retry:   courier.RetryPolicy{MaxAttempts: 3, InitialDelay: 10 * time.Millisecond, Jitter: courier.NoJitter},
			Breaker: courier.BreakerPolicy{FailureThreshold: 2, DisableJitter: true},
		}
		branch := func(down func() bool) (courier.Applier[int], courier.DLQ[int]) {
			return courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
				if down() {
					return errTest
				}
				return nil
			}), &config)
		}
		a, parked := branch(func() bool { return within(0, 2*time.Second) || within(30*time.Second, 10*time.Minute) })
		b, _ := branch(func() bool { return within(0, 40*time.Second) })
		source.add(1)
		stop := start(t, make(courier.NewFanOutApplier(a, b, always(nil)), quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Empty(t, recordsIn(t, parked), "it is healthy")
		require.Equal(t, []int{1}, source.marked())
	})
}

// A day without one branch: the others get no record more than twice.
func TestF3_ADayWithoutABranchCostsTheOthersNoDuplicates(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		for n, batches := range []bool{false, true} {
			began := time.Now()
			healthy := &sink[int]{}
			down := &sink[int]{fail: func(context.Context, int, int) error {
				if time.Since(began) < 24*time.Hour {
					return errTest
				}
				return nil
			}}
			var first courier.Applier[int] = healthy
			if batches {
				first = eachOfBatch[int]{healthy}
			}
			a, _ := courier.ResilientApplier(first, nil)
			b, _ := courier.ResilientApplier[int](down, nil)
			for r := range 30 {
				source.add(100*n + r)
			}
			stop := start(t, make(courier.NewFanOutApplier(a, b), quiet))
			time.Sleep(25 * time.Hour)
			require.NoError(t, stop())
			require.Empty(t, source.left())
			times := map[int]int{}
			for _, r := range healthy.got() {
				times[r]++
			}
			require.Len(t, times, 30)
			most := 30 + 1 // the delivery in which the breaker opened comes again
			if batches {
				most = 30 + 30
			}
			require.LessOrEqual(t, len(healthy.got()), most, "%v", times)
		}
	})
}

// gatedBranch is a branch of the property below.
type gatedBranch struct {
	breakers []*courier.Breaker
	down     bool
	bad      int          // the record that it refuses for good
	known    map[int]bool // records that the fan-out remembers it to have
	gate     string       // what its breakers say before a delivery: calm, due or closed
	called   []int        // records of the delivery
	took     []int
}

func (b *gatedBranch) Apply(_ context.Context, r int) error {
	b.called = append(b.called, r)
	switch {
	case b.down:
		return errTest
	case r == b.bad:
		return courier.Permanent(errTest)
	}
	b.took = append(b.took, r)
	return nil
}

func (b *gatedBranch) begin() {
	b.called, b.took, b.gate = nil, nil, "calm"
	for _, breaker := range b.breakers {
		switch {
		case breaker.State() == courier.BreakerClosed:
		case !breaker.Ready():
			b.gate = "closed"
		case b.gate == "calm":
			b.gate = "due"
		}
	}
}

// Random branches, quorums, outages and memories: whom a delivery calls is by what
// the breakers say before it, and by what those that were due for a probe answer.
func TestFanOut_PropertyOfTurns(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		clock := &handClock{now: time.Unix(1_000_000, 0)}
		required := rapid.IntRange(1, 4).Draw(rt, "required")
		quorum := rapid.IntRange(0, required).Draw(rt, "quorum")
		needed := quorum
		if needed == 0 {
			needed = required
		}
		var heard missed
		config := courier.FanOutConfig[int]{Quorum: quorum, OnBranchFailure: heard.note}
		if rapid.Bool().Draw(rt, "remembers") {
			config.Identity = strconv.Itoa
		}
		branches := make([]*gatedBranch, required+rapid.IntRange(0, 2).Draw(rt, "optional"))
		if len(branches) == 1 {
			rt.Skip("a single branch has nobody to wait for")
		}
		for i := range branches {
			b := &gatedBranch{bad: rapid.IntRange(0, 9).Draw(rt, "bad record"), known: map[int]bool{}}
			branches[i] = b
			var a courier.Applier[int] = b
			if rapid.Bool().Draw(rt, "takes batches") {
				a = eachOfBatch[int]{b}
			}
			for range rapid.SampledFrom([]int{0, 1, 1, 1, 2}).Draw(rt, "breakers") {
				policy := courier.BreakerPolicy{
					FailureThreshold: rapid.IntRange(1, 3).Draw(rt, "threshold"), Successes: rapid.IntRange(1, 2).Draw(rt, "successes"),
					DisableJitter: true, Clock: clock,
				}
				if rapid.Bool().Draw(rt, "by rate") {
					policy.FailureRate, policy.MinCalls = 0.5, 2
				}
				b.breakers = append(b.breakers, courier.NewBreaker(policy))
				a = courier.NewCircuitBreakerApplier(a, b.breakers[len(b.breakers)-1])
			}
			config.Branches = append(config.Branches, courier.Branch[int]{Name: strconv.Itoa(i), Applier: a, Optional: i >= required})
		}
		fan := courier.NewFanOutFromConfig(config)
		for range rapid.IntRange(1, 40).Draw(rt, "deliveries") {
			clock.now = clock.now.Add(time.Duration(rapid.IntRange(0, 3).Draw(rt, "seconds")) * time.Second)
			for _, b := range branches {
				b.down = b.down != (rapid.IntRange(0, 3).Draw(rt, "turns") == 0)
				for _, breaker := range b.breakers {
					if rapid.IntRange(0, 20).Draw(rt, "an operator") == 0 {
						rapid.SampledFrom([]func(){breaker.ForceOpen, breaker.Reset}).Draw(rt, "does")()
					}
				}
				b.begin()
			}
			records := rapid.SliceOfNDistinct(rapid.IntRange(0, 9), 1, 3, rapid.ID[int]).Draw(rt, "records")
			errs := make([]error, len(records))
			if len(records) == 1 && rapid.Bool().Draw(rt, "single") {
				errs[0] = fan.Apply(rt.Context(), records[0])
			} else if err := asBatch(fan).ApplyBatch(rt.Context(), records); err != nil {
				var list *courier.BatchError
				if !errors.As(err, &list) {
					rt.Fatalf("not a list: %v", err)
				}
				for _, f := range list.Failures {
					errs[f.Index] = f.Err
				}
			}
			reports := heard.take()
			for i, r := range records {
				checkTurns(rt, branches, required, needed, r, len(records) == 1)
				checkVerdict(rt, branches, required, needed, r, errs[i], reports)
				for _, b := range branches {
					b.known[r] = config.Identity != nil && errs[i] != nil && (b.known[r] || slices.Contains(b.took, r))
				}
			}
		}
	})
}

// checkTurns looks at whom a delivery has called with a record.
func checkTurns(rt *rapid.T, branches []*gatedBranch, required, needed, r int, alone bool) {
	sure, able, answered := 0, 0, 0 // required branches that have the record or are calm; and those due; and those that have answered
	for _, b := range branches[:required] {
		switch {
		case b.known[r] || b.gate == "calm":
			sure, able, answered = sure+1, able+1, answered+1
		case b.gate == "due":
			able++
			if slices.Contains(b.called, r) && !b.down {
				answered++
			}
		}
	}
	for n, b := range branches {
		called, due := slices.Contains(b.called, r), n < required && b.gate == "due"
		wanted := able >= needed && (due || sure >= needed || answered >= needed)
		switch {
		case called && b.known[r]:
			rt.Fatalf("record %d: branch %d is called, and has it", r, n)
		case called && !wanted:
			rt.Fatalf("record %d: branch %d, which is %s, is called: of the branches %d are sure, %d able, %d have answered, and %d needed", r, n, b.gate, sure, able, answered, needed)
		case !called && wanted && !b.known[r] && b.gate != "closed" && alone:
			rt.Fatalf("record %d: branch %d, which is %s, is not called: of the branches %d are sure, %d able, %d have answered, and %d needed", r, n, b.gate, sure, able, answered, needed)
		}
	}
}

// checkVerdict looks at the result for a record: it is applied when enough have
// it; else the error lists all that lack it, and an optional branch that was not
// called is not reported.
func checkVerdict(rt *rapid.T, branches []*gatedBranch, required, needed, r int, err error, reports []string) {
	var lacking []string
	for n, b := range branches[:required] {
		if !b.known[r] && !slices.Contains(b.took, r) {
			lacking = append(lacking, strconv.Itoa(n))
		}
	}
	if applied := required-len(lacking) >= needed; applied != (err == nil) {
		rt.Fatalf("record %d: %v lack it, %d are needed, and the verdict is %v", r, lacking, needed, err)
	}
	if err == nil {
		return
	}
	var told []string
	for _, f := range fanOutError(rt, err).Failures {
		told = append(told, f.Branch)
	}
	if !slices.Equal(told, lacking) {
		rt.Fatalf("record %d: the error lists %v, and %v lack it", r, told, lacking)
	}
	for n, b := range branches[required:] {
		report := func(text string) bool { return strings.HasPrefix(text, fmt.Sprintf("%d/%d: ", required+n, r)) }
		if b.breakers == nil && !slices.Contains(b.called, r) && slices.ContainsFunc(reports, report) {
			rt.Fatalf("record %d: branch %d was not called, and is reported: %v", r, required+n, reports)
		}
	}
}

// A branch that has asked for another time has answered and does not have the record: while
// its breaker is due for a probe, the others wait for that.
func TestF3_ABranchThatWaitsHasNotTakenTheRecord(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		late, other := newBusy(10*time.Second, 1), newBusy(2*time.Second, 1)
		a, breaker := behind(late)
		source.add(1)
		option := courier.WithWorkers(2)
		if source.wait {
			option = courier.WithStreamWorkers(2)
		}
		stop := start(t, make(courier.NewFanOutApplier[int](a, other), unspread, option))
		time.Sleep(500 * time.Millisecond)
		open(t, breaker)
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Equal(t, []time.Duration{0, 10 * time.Second}, late.called(1))
		require.Equal(t, []time.Duration{0, 10 * time.Second}, other.called(1))
	})
}
