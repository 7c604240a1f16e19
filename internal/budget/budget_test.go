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

// retries never exceed the burst, the floor and the share of successes;
// and a budget that was used up refills.
func TestR17_ABudgetBoundsRetriesAndRefills(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := budget.Policy{Ratio: 0.1, Floor: 2, Burst: 10}
		var s budget.State
		now := epoch
		taken, deposits := 0, 0
		t.Repeat(map[string]func(*rapid.T){
			"withdraw": func(t *rapid.T) {
				if s.Withdraw(&p, 1, now) {
					taken++
				}
			},
			"deposit": func(t *rapid.T) {
				s.Deposit(&p, 1, now)
				deposits++
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(-1000, 2000).Draw(t, "ms")) * time.Millisecond)
			},
			"": func(t *rapid.T) {
				// Time that stepped back is there twice, at most.
				if limit := p.Burst + p.Ratio*float64(deposits) + p.Floor*now.Sub(epoch.Add(-time.Hour)).Seconds(); float64(taken) > limit {
					t.Fatalf("%d retries, more than %v", taken, limit)
				}
			},
		})
		for s.Withdraw(&p, 1, now) {
			taken++
		}
		require.True(t, s.Withdraw(&p, 1, now.Add(time.Hour)), "it refills by itself")
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
