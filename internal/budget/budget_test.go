package budget_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/budget"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// there are never more retries than the burst, the share of the successes, the
// floor while the clock went on, and what was given back; nor fewer than the floor for
// the time that was not there before; and never more saved up than the burst.
func TestR17_ABudgetBoundsRetriesAndRefills(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := budget.Policy{
			Ratio: rapid.SampledFrom([]float64{0, 0.1, 1, 1e6}).Draw(t, "ratio"),
			Floor: rapid.SampledFrom([]float64{1e-9, 2, 1e6}).Draw(t, "floor"),
			Burst: rapid.SampledFrom([]float64{1, 10, 1e6}).Draw(t, "burst"),
		}
		var s budget.State
		now, latest := epoch, epoch
		least, most := p.Burst, p.Burst // what it holds, at the least and at the most
		add := func(least0, most0 float64) {
			least, most = min(p.Burst, least+least0), min(p.Burst, most+most0)
		}
		withdraw := func(t *rapid.T, n float64) {
			const rounding = 1e-6
			got := s.Withdraw(&p, n, now)
			if got && n > most*(1+rounding)+rounding || !got && n < least*(1-rounding)-rounding {
				t.Fatalf("%v retries: %v, of a budget that holds %v to %v", n, got, least, most)
			}
			if got {
				least, most = max(0, least-n), max(0, most-n)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"withdraw": func(t *rapid.T) { withdraw(t, float64(rapid.IntRange(1, 3).Draw(t, "retries"))) },
			"withdraw more than there can be": func(t *rapid.T) {
				if s.Withdraw(&p, p.Burst*1.001, now) {
					t.Fatal("more was saved up than the burst")
				}
			},
			"deposit": func(t *rapid.T) {
				n := float64(rapid.IntRange(1, 5).Draw(t, "successes"))
				s.Deposit(&p, n, now)
				add(n*p.Ratio, n*p.Ratio)
			},
			"refund": func(t *rapid.T) {
				s.Refund(&p, 1)
				add(1, 1)
			},
			"time": func(t *rapid.T) {
				passed := rapid.OneOf(
					rapid.Map(rapid.IntRange(-1000, 2000), func(n int) time.Duration { return time.Duration(n) * time.Millisecond }),
					rapid.SampledFrom([]time.Duration{time.Hour, -time.Hour, 20 * 365 * 24 * time.Hour}),
				).Draw(t, "passed")
				now = now.Add(passed)
				fresh := max(0, now.Sub(latest))
				if fresh > 0 {
					latest = now
				}
				s.Withdraw(&p, 0, now) // that the budget sees the clock where it is
				add(p.Floor*fresh.Seconds(), p.Floor*max(0, passed).Seconds())
			},
		})
		require.True(t, s.Withdraw(&p, 1, latest.Add(time.Duration(min(1e18, 1.001e9/p.Floor)))), "it refills by itself")
	})
}

func TestRefund(t *testing.T) {
	p := budget.Policy{Burst: 1}
	var s budget.State
	require.True(t, s.Withdraw(&p, 1, epoch))
	require.False(t, s.Withdraw(&p, 1, epoch))
	s.Refund(&p, 1)
	s.Refund(&p, 1) // never above the burst
	require.True(t, s.Withdraw(&p, 1, epoch))
	require.False(t, s.Withdraw(&p, 1, epoch))
}
