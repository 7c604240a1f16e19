package breaker_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/breaker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func policy() *breaker.Policy {
	return &breaker.Policy{FailureThreshold: 3, OpenFor: 10 * time.Second, MaxOpenFor: time.Minute, OpenMultiplier: 2, Probes: 1, Successes: 1, ProbeTimeout: time.Minute}
}

// open fails a closed breaker until it opens.
func open(t *testing.T, s *breaker.State, p *breaker.Policy, now time.Time) {
	t.Helper()
	for s.Phase == breaker.Closed {
		permit, ok, _ := s.Acquire(p, now, 0.5)
		require.True(t, ok)
		s.Report(p, permit, breaker.Failure, false, 0, now, 0.5)
	}
}

// B-1: nothing passes in [openedAt, until).
func TestB1_NothingPassesWhileOpen(t *testing.T) {
	var s breaker.State
	p := policy()
	p.Probes = 2
	open(t, &s, p, epoch)
	require.Equal(t, epoch.Add(10*time.Second), s.Until)
	_, ok, _ := s.Acquire(p, s.Until.Add(-1), 0.5)
	require.False(t, ok)
	until := s.Until
	for i := range 4 { // at until exactly Probes pass
		_, ok, _ := s.Acquire(p, until, 0.5)
		require.Equal(t, i < 2, ok)
	}
}

// B-3: a result of an older generation changes nothing.
func TestB3_AStaleResultChangesNothing(t *testing.T) {
	for _, late := range []breaker.Outcome{breaker.Success, breaker.Failure, breaker.Ignored} {
		var s breaker.State
		p := policy()
		slow, _, _ := s.Acquire(p, epoch, 0.5)
		open(t, &s, p, epoch)
		before := s
		s.Report(p, slow, late, false, 0, epoch, 0.5)
		require.Equal(t, before, s)

		_, ok, _ := s.Acquire(p, s.Until, 0.5) // half-open now
		require.True(t, ok)
		before = s
		s.Report(p, slow, late, false, 0, s.Until, 0.5)
		require.Equal(t, before, s)
	}
}

// B-4: an ignored result frees its slot.
func TestB4_AnIgnoredProbeFreesItsSlot(t *testing.T) {
	var s breaker.State
	p := policy()
	open(t, &s, p, epoch)
	for range 3 {
		permit, ok, _ := s.Acquire(p, s.Until, 0.5)
		require.True(t, ok)
		require.True(t, permit.Probe)
		s.Report(p, permit, breaker.Ignored, false, 0, s.Until, 0.5)
	}
}

// B-14: each failed probe reopens at once and for longer, up to the cap, and
// without overflow.
func TestB14_OpenPeriodsGrowToTheCap(t *testing.T) {
	var s breaker.State
	p := policy()
	now := epoch
	open(t, &s, p, now)
	var periods []time.Duration
	for range 1000 {
		periods = append(periods, s.Until.Sub(now))
		now = s.Until
		permit, ok, _ := s.Acquire(p, now, 0.5)
		require.True(t, ok)
		s.Report(p, permit, breaker.Failure, false, 0, now, 0.5)
	}
	require.Equal(t, []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute}, periods[:4])
	for _, period := range periods[4:] {
		require.Equal(t, time.Minute, period)
	}
	permit, _, _ := s.Acquire(p, s.Until, 0.5)
	s.Report(p, permit, breaker.Success, false, 0, s.Until, 0.5)
	require.Equal(t, breaker.Closed, s.Phase)
	open(t, &s, p, s.Until)
	require.Equal(t, 10*time.Second, s.Until.Sub(now.Add(time.Minute)), "a recovery resets the periods")
}

func TestB14_JitterNeverPassesTheCap(t *testing.T) {
	for _, random := range []float64{0, 0.5, math.Nextafter(1, 0)} {
		var s breaker.State
		p := policy()
		p.Jitter, p.MaxOpenFor = 0.2, p.OpenFor
		for s.Phase == breaker.Closed {
			permit, _, _ := s.Acquire(p, epoch, random)
			s.Report(p, permit, breaker.Failure, false, 0, epoch, random)
		}
		require.LessOrEqual(t, s.Until.Sub(epoch), p.MaxOpenFor)
		require.GreaterOrEqual(t, s.Until.Sub(epoch), 8*time.Second)
	}
}

// B-14: an open period is as long as was asked for at the least, within the cap.
func TestB14_AnOpenPeriodIsAsLongAsWasAskedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.SampledFrom([]time.Duration{0, 1, time.Second, time.Minute, time.Hour, math.MaxInt64 - 1, math.MaxInt64})
		p := policy()
		p.FailureThreshold, p.Jitter = 1, rapid.Float64Range(0, 0.999).Draw(t, "jitter")
		p.OpenFor = max(1, d.Draw(t, "OpenFor"))
		p.MaxOpenFor = max(p.OpenFor, d.Draw(t, "MaxOpenFor"))
		p.MaxAfter = d.Draw(t, "MaxAfter")
		var s breaker.State
		now := epoch
		for range rapid.IntRange(1, 4).Draw(t, "periods") {
			permit, ok, _ := s.Acquire(p, now, 0.5)
			after := d.Draw(t, "after")
			s.Report(p, permit, breaker.Failure, false, after, now, rapid.Float64Range(0, 0.999).Draw(t, "random"))
			if period := s.Until.Sub(now); !ok || period < min(after, p.MaxAfter) || period > max(p.MaxOpenFor, min(after, p.MaxAfter)) {
				t.Fatalf("open for %v, with %v asked for, at most %v of that, and else at most %v", period, after, p.MaxAfter, p.MaxOpenFor)
			}
			if s.Until.After(epoch.Add(math.MaxInt64 / 2)) {
				return // the end of what times can be told apart by
			}
			now = s.Until
		}
	})
}

// B-15: probes that hang do not wedge it.
func TestB15_HungProbesOpenItAgain(t *testing.T) {
	var s breaker.State
	p := policy()
	open(t, &s, p, epoch)
	now := s.Until
	hung, _, _ := s.Acquire(p, now, 0.5)
	_, ok, timedOut := s.Acquire(p, now.Add(p.ProbeTimeout-1), 0.5)
	require.False(t, ok)
	require.False(t, timedOut)
	_, ok, timedOut = s.Acquire(p, now.Add(p.ProbeTimeout), 0.5)
	require.False(t, ok)
	require.True(t, timedOut)
	require.Equal(t, breaker.Open, s.Phase)
	before := s
	s.Report(p, hung, breaker.Success, false, 0, s.Until, 0.5)
	require.Equal(t, before, s, "the late result is stale")
	_, ok, _ = s.Acquire(p, s.Until, 0.5)
	require.True(t, ok)
}

// B-17: a clock that steps back keeps it open no longer than it said.
func TestB17_AClockThatStepsBack(t *testing.T) {
	var s breaker.State
	p := policy()
	open(t, &s, p, epoch)
	until := s.Until
	_, ok, _ := s.Acquire(p, epoch.Add(-time.Hour), 0.5)
	require.False(t, ok)
	require.Equal(t, until, s.Until)
	_, ok, _ = s.Acquire(p, until, 0.5)
	require.True(t, ok)
}

// B-11: no rounding, either way.
func TestB11_TheRateIsExact(t *testing.T) {
	for _, test := range []struct {
		rate            float64
		failures, calls int
		opens           bool
	}{
		{0.5, 199, 400, false},
		{0.5, 200, 400, true},
		{0.1, 3, 30, true}, // 0.1 * 30 is more than 3 in floating point
		{0.1, 2, 30, false},
		{0.07, 7, 100, true}, // 0.07 * 100 is more than 7 in floating point
		{1, 30, 30, true},
		{1, 29, 30, false},
		{0.5, 10, 19, false}, // fewer than MinCalls
	} {
		var s breaker.State
		p := policy()
		p.FailureThreshold, p.FailureRate, p.MinCalls, p.WindowCalls = 0, test.rate, 20, 1000
		report := func(o breaker.Outcome) {
			permit, ok, _ := s.Acquire(p, epoch, 0.5)
			require.True(t, ok)
			s.Report(p, permit, o, false, 0, epoch, 0.5)
		}
		for range test.calls - test.failures {
			report(breaker.Success)
		}
		for range test.failures {
			if s.Phase == breaker.Closed {
				report(breaker.Failure)
			}
		}
		require.Equal(t, test.opens, s.Phase == breaker.Open, "%+v", test)
	}
}

// B-12: a result leaves a time window, also when the window is only read.
func TestB12_ATimeWindowForgets(t *testing.T) {
	var s breaker.State
	p := policy()
	p.FailureThreshold, p.FailureRate, p.MinCalls, p.Window = 0, 0.5, 20, 10*time.Second
	for i := range 10 {
		permit, _, _ := s.Acquire(p, epoch, 0.5)
		s.Report(p, permit, breaker.Failure, false, 0, epoch.Add(time.Duration(i)*time.Second), 0.5)
	}
	calls, failures, _ := s.Counts(p, epoch.Add(9*time.Second))
	require.Equal(t, 10, calls)
	require.Equal(t, 10, failures)
	calls, _, _ = s.Counts(p, epoch.Add(15*time.Second))
	require.InDelta(t, 4, calls, 1)
	calls, failures, _ = s.Counts(p, epoch.Add(time.Hour))
	require.Zero(t, calls)
	require.Zero(t, failures)
	calls, _, _ = s.Counts(p, epoch)
	require.Zero(t, calls, "B-17: a clock that steps back brings nothing back")
}

// B-13: calls that outlast the window count when they end.
func TestB13_ASlowOutageTrips(t *testing.T) {
	var s breaker.State
	p := policy()
	p.FailureThreshold, p.FailureRate, p.MinCalls, p.Window = 0, 0.5, 20, 10*time.Second
	now := epoch
	var flight []breaker.Permit
	for n := 0; s.Phase == breaker.Closed && n < 1000; n++ {
		permit, _, _ := s.Acquire(p, now, 0.5)
		if n%10 == 9 {
			now = now.Add(11 * time.Second)
		}
		flight = append(flight, permit)
		if len(flight) == 40 { // all started long ago, and end together
			for _, permit := range flight {
				s.Report(p, permit, breaker.Failure, false, 0, now, 0.5)
			}
			flight = nil
		}
	}
	require.Equal(t, breaker.Open, s.Phase)
}

func TestSlowCalls(t *testing.T) {
	var s breaker.State
	p := policy()
	p.FailureThreshold, p.SlowCallRate, p.MinCalls, p.WindowCalls = 0, 0.5, 4, 4
	report := func(slow bool) {
		permit, ok, _ := s.Acquire(p, epoch, 0.5)
		require.True(t, ok)
		s.Report(p, permit, breaker.Success, slow, 0, epoch, 0.5)
	}
	for range 10 {
		report(false)
	}
	report(true)
	require.Equal(t, breaker.Closed, s.Phase, "one of the last four")
	report(true)
	require.Equal(t, breaker.Open, s.Phase, "two of the last four")
	permit, ok, _ := s.Acquire(p, s.Until, 0.5)
	require.True(t, ok)
	s.Report(p, permit, breaker.Success, true, 0, s.Until, 0.5)
	require.Equal(t, breaker.Open, s.Phase, "a slow probe has failed")
}

// B-18: forced phases stay.
func TestB18_ForcedPhasesStay(t *testing.T) {
	var s breaker.State
	p := policy()
	slow, _, _ := s.Acquire(p, epoch, 0.5)
	s.Force(breaker.ForcedOpen)
	year := epoch.AddDate(1, 0, 0)
	_, ok, _ := s.Acquire(p, year, 0.5)
	require.False(t, ok)
	require.False(t, s.Ready(p, year))
	require.True(t, s.Report(p, slow, breaker.Failure, false, 0, year, 0.5), "of an older generation")
	s.Force(breaker.ForcedClosed)
	for range 100 {
		permit, ok, _ := s.Acquire(p, year, 0.5)
		require.True(t, ok)
		s.Report(p, permit, breaker.Failure, false, 0, year, 0.5)
	}
	require.Equal(t, breaker.ForcedClosed, s.Phase)
	s.Force(breaker.Closed)
	require.Zero(t, s.Streak())
	open(t, &s, p, year)
}

// The windows against a plain list of results, while the clock steps back and forth: a
// result that comes when the clock was set back is of the latest time that was read.
func TestWindowModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := policy()
		p.FailureThreshold, p.FailureRate, p.SlowCallRate, p.MinCalls = 0, 1, 1, math.MaxInt
		byCalls := rapid.Bool().Draw(t, "by calls")
		if byCalls {
			p.WindowCalls = rapid.IntRange(1, 20).Draw(t, "calls")
		} else {
			p.Window = rapid.OneOf(
				rapid.Map(rapid.IntRange(1, 100), func(n int) time.Duration { return time.Duration(n) * time.Second }),
				rapid.SampledFrom([]time.Duration{1, 9, 10, 11, time.Hour, math.MaxInt64}),
			).Draw(t, "window")
		}
		type entry struct {
			at           time.Time
			failed, slow bool
		}
		var s breaker.State
		var all []entry
		now, latest := epoch, time.Time{}
		for range rapid.IntRange(0, 100).Draw(t, "results") {
			passed := rapid.OneOf(
				rapid.Map(rapid.IntRange(0, 20000), func(n int) time.Duration { return time.Duration(n) * time.Millisecond }),
				rapid.Map(rapid.IntRange(-20000, 20000), func(n int) time.Duration { return time.Duration(n) * time.Millisecond }),
				rapid.SampledFrom([]time.Duration{1, -1, time.Hour, -time.Hour, 20 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour}),
			).Draw(t, "passed")
			now = now.Add(passed)
			if now.After(latest) {
				latest = now
			}
			e := entry{latest, rapid.Bool().Draw(t, "failed"), rapid.Bool().Draw(t, "slow")}
			outcome := breaker.Success
			if e.failed {
				outcome = breaker.Failure
			}
			permit, _, _ := s.Acquire(p, now, 0.5)
			s.Report(p, permit, outcome, e.slow, 0, now, 0.5)
			all = append(all, e)
			calls, failures, slow := s.Counts(p, now)
			atLeast, atMost := 0, 0
			var f, sl int
			for i, e := range all {
				if byCalls {
					if len(all)-i <= p.WindowCalls {
						atLeast, atMost = atLeast+1, atMost+1
						f, sl = f+toInt(e.failed), sl+toInt(e.slow)
					}
					continue
				}
				age := latest.Sub(e.at)
				atLeast += toInt(age < p.Window/10*8)
				atMost += toInt(age <= p.Window || p.Window < 10) // which is less than a slice for each nanosecond
			}
			if calls < atLeast || calls > atMost {
				t.Fatalf("%d calls in the window, want %d to %d", calls, atLeast, atMost)
			}
			if byCalls && (failures != f || slow != sl) {
				t.Fatalf("%d failures, %d slow, want %d and %d", failures, slow, f, sl)
			}
			if failures > calls || slow > calls || failures < 0 || slow < 0 {
				t.Fatalf("%d calls, %d failures, %d slow", calls, failures, slow)
			}
		}
	})
}

// B-14, B-17: whatever the policy and the clock say, an open period is between its least
// length and the cap, and only its own end lets a probe through.
func TestB14_AnOpenPeriodOfAnyLength(t *testing.T) {
	lengths := []time.Duration{1, 2, time.Millisecond, time.Second, time.Hour, 100 * 365 * 24 * time.Hour, math.MaxInt64}
	rapid.Check(t, func(t *rapid.T) {
		p := policy()
		p.OpenFor = rapid.SampledFrom(lengths).Draw(t, "open for")
		p.MaxOpenFor = max(p.OpenFor, rapid.SampledFrom(lengths).Draw(t, "at most"))
		p.OpenMultiplier = rapid.SampledFrom([]float64{1, 2, 1e9, math.MaxFloat64}).Draw(t, "multiplier")
		p.Jitter = rapid.SampledFrom([]float64{0, math.SmallestNonzeroFloat64, 0.2, 0.999}).Draw(t, "jitter")
		p.FailureThreshold = 1
		var s breaker.State
		now := epoch
		for range rapid.IntRange(1, 20).Draw(t, "periods") {
			permit, ok, _ := s.Acquire(p, now, 0.5)
			if !ok {
				t.Fatalf("nothing passes at %v, of an open period until %v", now, s.Until)
			}
			s.Report(p, permit, breaker.Failure, false, 0, now, rapid.Float64Range(0, 0.999999).Draw(t, "random"))
			length := s.Until.Sub(now)
			if least := time.Duration(float64(p.OpenFor) * (1 - p.Jitter) * 0.999); length < least || length > p.MaxOpenFor {
				t.Fatalf("a period of %v, want %v to %v", length, least, p.MaxOpenFor)
			}
			for _, early := range []time.Time{now, s.Until.Add(-1)} {
				if early.Before(s.Until) && s.Ready(p, early) {
					t.Fatalf("ready at %v, of an open period until %v", early, s.Until)
				}
			}
			now = s.Until
		}
	})
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A walk at random against the rules: B-1, B-2, B-3, B-4, and transitions that
// only ever go closed → open → half-open → closed or open.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := policy()
		p.FailureThreshold = rapid.IntRange(1, 4).Draw(t, "threshold")
		p.Probes = rapid.IntRange(1, 3).Draw(t, "probes")
		p.Successes = rapid.IntRange(1, 3).Draw(t, "successes")
		var s breaker.State
		now := epoch
		type call struct {
			breaker.Permit
			gen, began int // began is how many failures had been counted
		}
		var flight []call
		inHalfOpen := func() (n int) {
			for _, c := range flight {
				n += toInt(uint64(c.gen) == s.Gen)
			}
			return n
		}
		row, vouched := 0, 0
		var failures []int // how many had been counted when each began
		chain := func() (longest int) {
			var links []int // of the longest chain that ends with each
			for i := vouched; i < len(failures); i++ {
				n := 1
				for j := vouched; j < i && j < failures[i]; j++ {
					n = max(n, links[j-vouched]+1)
				}
				links = append(links, n)
				longest = max(longest, n)
			}
			return longest
		}
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				before := s
				permit, ok, timedOut := s.Acquire(p, now, 0.5)
				if before.Phase == breaker.Closed && !ok {
					t.Fatal("a closed breaker refused")
				}
				if before.Phase == breaker.Open && ok != !now.Before(before.Until) {
					t.Fatal("an open breaker passed a call too early, or refused it too late")
				}
				if timedOut && ok {
					t.Fatal("passed on a probe timeout")
				}
				if !ok {
					return
				}
				flight = append(flight, call{permit, int(s.Gen), len(failures)})
				if permit.Probe != (s.Phase == breaker.HalfOpen) {
					t.Fatal("the permit lies about being a probe")
				}
				if s.Phase == breaker.HalfOpen && inHalfOpen() > p.Probes {
					t.Fatal("more probes in flight than allowed")
				}
			},
			"report": func(t *rapid.T) {
				if len(flight) == 0 {
					t.Skip("nothing in flight")
				}
				i := rapid.IntRange(0, len(flight)-1).Draw(t, "call")
				c := flight[i]
				flight = append(flight[:i], flight[i+1:]...)
				outcome := breaker.Outcome(rapid.IntRange(0, 3).Draw(t, "outcome"))
				before := s
				s.Report(p, c.Permit, outcome, false, 0, now, 0.5)
				failed := outcome == breaker.Failure || outcome == breaker.Mixed
				switch {
				case uint64(c.gen) != before.Gen:
					if s.Phase != before.Phase || s.Gen != before.Gen || s.Streak() != before.Streak() {
						t.Fatal("a stale result changed the state")
					}
					return
				case before.Phase == breaker.Closed && outcome != breaker.Ignored:
					if outcome != breaker.Failure {
						row, vouched = 0, max(vouched, c.began)
					}
					if failed {
						row++
						failures = append(failures, c.began)
					}
				}
				switch streak := max(row, chain()); {
				case before.Phase == breaker.Closed && (s.Phase == breaker.Open) != (failed && streak >= p.FailureThreshold):
					t.Fatalf("after %d failures in a row and %d in a chain the breaker is %v", row, chain(), s.Phase)
				case s.Phase == breaker.Closed && before.Phase == breaker.Closed && s.Streak() != streak:
					t.Fatalf("a streak of %d, want %d", s.Streak(), streak)
				case before.Phase == breaker.HalfOpen && outcome == breaker.Failure && s.Phase != breaker.Open:
					t.Fatal("a failed probe did not reopen")
				case outcome == breaker.Ignored && s.Phase != before.Phase:
					t.Fatal("an ignored result changed the phase")
				}
				if s.Phase != before.Phase {
					row, vouched, failures = 0, 0, nil
					if s.Gen == before.Gen {
						t.Fatal("a transition without a new generation")
					}
				}
			},
			"time passes": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 70).Draw(t, "seconds")) * time.Second)
			},
		})
	})
}

// P-1, C-6: a record whose every call fails from some time on fails no more often than
// the threshold before the breaker opens, whatever the calls before that time did, and
// however late those that were in flight then succeed.
func TestP1_LateSuccessesDoNotHideAnOutage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := policy()
		p.FailureThreshold = rapid.IntRange(1, 6).Draw(t, "threshold")
		var s breaker.State
		var before, during []breaker.Permit
		acquire := func() breaker.Permit {
			permit, ok, _ := s.Acquire(p, epoch, 0.5)
			if !ok {
				t.Fatal("a closed breaker refused")
			}
			return permit
		}
		// end reports a call; a batch of before the outage may fail in it in part.
		end := func(calls []breaker.Permit, outcomes ...breaker.Outcome) []breaker.Permit {
			if len(calls) == 0 || s.Phase != breaker.Closed {
				return calls
			}
			i := rapid.IntRange(0, len(calls)-1).Draw(t, "call")
			s.Report(p, calls[i], rapid.SampledFrom(outcomes).Draw(t, "outcome"), false, 0, epoch, 0.5)
			return append(calls[:i:i], calls[i+1:]...)
		}
		for range rapid.IntRange(0, 30).Draw(t, "calls before") {
			if before = append(before, acquire()); rapid.Bool().Draw(t, "ends") {
				before = end(before, breaker.Success, breaker.Failure, breaker.Mixed, breaker.Ignored)
			}
			if s.Phase != breaker.Closed {
				return
			}
		}
		for n := 1; s.Phase == breaker.Closed; n++ {
			if n > p.FailureThreshold {
				t.Fatalf("the breaker is closed after %d failures of one record, with a threshold of %d", n-1, p.FailureThreshold)
			}
			own := acquire()
			for range rapid.IntRange(0, 5).Draw(t, "others") {
				switch rapid.IntRange(0, 2).Draw(t, "other") {
				case 0:
					before = end(before, breaker.Success, breaker.Failure, breaker.Mixed, breaker.Ignored)
				case 1:
					during = end(during, breaker.Failure, breaker.Ignored)
				default:
					if s.Phase == breaker.Closed {
						during = append(during, acquire())
					}
				}
			}
			s.Report(p, own, breaker.Failure, false, 0, epoch, 0.5)
		}
	})
}

// Failures that were under way at once, and those before a success began, are in a row
// only while no call succeeds.
func TestAStreakIsBrokenByASuccess(t *testing.T) {
	p := policy()
	var s breaker.State
	acquire := func() breaker.Permit {
		permit, ok, _ := s.Acquire(p, epoch, 0.5)
		require.True(t, ok)
		return permit
	}
	report := func(permit breaker.Permit, o breaker.Outcome) { s.Report(p, permit, o, false, 0, epoch, 0.5) }
	for range 100 {
		slow, one, other := acquire(), acquire(), acquire()
		report(one, breaker.Failure)
		report(other, breaker.Failure)
		require.Equal(t, 2, s.Streak())
		report(slow, breaker.Success)
		require.Equal(t, 1, s.Streak(), "the longest chain: they began together")
		report(acquire(), breaker.Success)
		require.Zero(t, s.Streak())
	}
	require.Equal(t, breaker.Closed, s.Phase)
}

// A success takes no failure away that was counted after it began, nor one that began with
// others it does take away.
func TestAStreakOutlivesSuccessesThatBeganBeforeIt(t *testing.T) {
	p := policy()
	p.FailureThreshold = 3
	var s breaker.State
	acquire := func() breaker.Permit {
		permit, ok, _ := s.Acquire(p, epoch, 0.5)
		require.True(t, ok)
		return permit
	}
	report := func(permit breaker.Permit, o breaker.Outcome) { s.Report(p, permit, o, false, 0, epoch, 0.5) }
	first, second, slow := acquire(), acquire(), acquire()
	report(first, breaker.Failure)
	well, late := acquire(), acquire()
	report(well, breaker.Success)
	require.Zero(t, s.Streak())
	report(second, breaker.Failure)
	report(late, breaker.Success) // it began before that one was counted
	require.Equal(t, 1, s.Streak())
	third := acquire()
	report(slow, breaker.Success)
	report(third, breaker.Failure)
	require.Equal(t, 2, s.Streak())
	report(slow, breaker.Success)
	report(acquire(), breaker.Failure)
	require.Equal(t, breaker.Open, s.Phase)
}

// The memory of failures is bounded, whatever the threshold.
func TestAStreakTakesBoundedMemory(t *testing.T) {
	p := policy()
	p.FailureThreshold = 1 << 30
	var s breaker.State
	slow, _, _ := s.Acquire(p, epoch, 0.5)
	for n := 1; n <= 10_000; n++ {
		permit, _, _ := s.Acquire(p, epoch, 0.5)
		s.Report(p, permit, breaker.Failure, false, 0, epoch, 0.5)
		require.Equal(t, n, s.Streak())
	}
	s.Report(p, slow, breaker.Success, false, 0, epoch, 0.5)
	require.Greater(t, s.Streak(), 2000)
	require.LessOrEqual(t, s.Streak(), 1<<12)
}

// B-21: the successes of one half-open phase do not count in the next.
func TestSuccessesBeforeAFailedProbeDoNotCount(t *testing.T) {
	p := &breaker.Policy{FailureThreshold: 1, OpenFor: time.Second, MaxOpenFor: time.Second, OpenMultiplier: 1, Probes: 1, Successes: 2, ProbeTimeout: time.Minute}
	var s breaker.State
	now := time.Unix(0, 0)
	call := func(o breaker.Outcome) {
		permit, ok, _ := s.Acquire(p, now, 0.5)
		if !ok {
			t.Fatal("refused")
		}
		s.Report(p, permit, o, false, 0, now, 0.5)
	}
	call(breaker.Failure)
	now = now.Add(time.Second)
	call(breaker.Success)
	call(breaker.Failure)
	now = now.Add(time.Second)
	call(breaker.Success)
	if s.Phase != breaker.HalfOpen {
		t.Fatal(s.Phase)
	}
}

// A result leaves a window of time after its length, however the calls lie between the
// slices of the window.
func TestWindow_AResultLeavesInTime(t *testing.T) {
	for _, every := range []time.Duration{300 * time.Millisecond, 999 * time.Millisecond, 1900 * time.Millisecond, 3 * time.Second} {
		p := breaker.Policy{FailureRate: 1, MinCalls: 1000, Window: 10 * time.Second}
		var s breaker.State
		report := func(outcome breaker.Outcome, now time.Time) {
			permit, ok, _ := s.Acquire(&p, now, 0)
			require.True(t, ok)
			s.Report(&p, permit, outcome, false, 0, now, 0)
		}
		report(breaker.Failure, epoch)
		for passed := every; passed <= 10*time.Second; passed += every {
			report(breaker.Success, epoch.Add(passed))
			if passed < 9*time.Second {
				_, failures, _ := s.Counts(&p, epoch.Add(passed))
				require.Equal(t, 1, failures, "after %v, one call each %v", passed, every)
			}
		}
		_, failures, _ := s.Counts(&p, epoch.Add(10*time.Second))
		require.Zero(t, failures, "one call each %v", every)
	}
}

// Below MinCalls a rate says nothing, whichever it is.
func TestRates_NeedMinCalls(t *testing.T) {
	for _, p := range []breaker.Policy{
		{FailureRate: 0.5, MinCalls: 5, WindowCalls: 10, OpenFor: time.Second, MaxOpenFor: time.Second},
		{SlowCallRate: 0.5, MinCalls: 5, WindowCalls: 10, OpenFor: time.Second, MaxOpenFor: time.Second},
	} {
		var s breaker.State
		for n := range 5 {
			require.Equal(t, breaker.Closed, s.Phase, "after %d calls", n)
			permit, _, _ := s.Acquire(&p, epoch, 0)
			s.Report(&p, permit, breaker.Failure, true, 0, epoch, 0)
		}
		require.Equal(t, breaker.Open, s.Phase)
	}
}
