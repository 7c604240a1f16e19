package parkguard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var standard = Policy{Rate: 0.5, Window: 100, Min: 20, Pause: time.Minute}

// drive decides n records one after the other and returns how many were parked
// before the first refusal.
func drive(s *State, p *Policy, decided *uint64, n int, poison func(i int) bool, now time.Time) (parked int, refused bool) {
	for i := range n {
		if poison(i) {
			if _, _, ok := s.Park(p, *decided, now); !ok {
				return parked, true
			}
			parked++
		}
		*decided++
	}
	return parked, false
}

func always(int) bool { return true }

func TestAFewPoisonRecordsAtTheStartAreParked(t *testing.T) {
	var s State
	var decided uint64
	parked, refused := drive(&s, &standard, &decided, 20, always, start)
	require.False(t, refused)
	require.Equal(t, 20, parked)
	_, of, ok := s.Park(&standard, decided, start)
	require.False(t, ok, "and then it is enough")
	require.Equal(t, 20, of)
}

func TestARateAtTheLimitIsNotAboveIt(t *testing.T) {
	var s State
	var decided uint64
	_, refused := drive(&s, &standard, &decided, 10_000, func(i int) bool { return i%2 == 1 }, start)
	require.False(t, refused)
}

func TestItRearmsAfterThePauseWithAnEmptyWindow(t *testing.T) {
	var s State
	var decided uint64
	_, refused := drive(&s, &standard, &decided, 1000, always, start)
	require.True(t, refused)
	_, _, ok := s.Park(&standard, decided, start.Add(time.Minute-1))
	require.False(t, ok)
	parked, refused := drive(&s, &standard, &decided, 1000, always, start.Add(time.Minute))
	require.True(t, refused)
	require.Equal(t, 20, parked)
}

func TestARateOfOneNeverRefuses(t *testing.T) {
	var s State
	var decided uint64
	p := Policy{Rate: 1, Window: 10, Min: 1, Pause: time.Minute}
	_, refused := drive(&s, &p, &decided, 1000, always, start)
	require.False(t, refused)
}

// Against a model that keeps every decision since the guard was armed.
func TestGuardAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.IntRange(1, 40).Draw(t, "window")
		p := Policy{
			Rate:   rapid.Float64Range(0.01, 1).Draw(t, "rate"),
			Window: window,
			Min:    rapid.IntRange(1, window).Draw(t, "min"),
			Pause:  time.Duration(rapid.Int64Range(1, 1000).Draw(t, "pause")),
		}
		var s State
		var decided uint64
		var history []bool // parked or not
		now, until := start, time.Time{}
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, 200).Draw(t, "time")))
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0: // it went well
				decided++
				history = append(history, false)
			case 1, 2:
				if !until.IsZero() && !now.Before(until) {
					until, history = time.Time{}, nil
				}
				last := history[max(0, len(history)-window):]
				parked := 0
				for _, p := range last {
					if p {
						parked++
					}
				}
				want := until.IsZero()
				if want && parked >= p.Min && float64(parked) > p.Rate*float64(len(last)) {
					want, until = false, now.Add(p.Pause)
				}
				_, _, ok := s.Park(&p, decided, now)
				require.Equal(t, want, ok)
				require.Equal(t, !until.IsZero(), s.Refusing(now))
				if ok {
					decided++
					history = append(history, true)
				}
			case 3: // the queue did not take the last one
				if until.IsZero() {
					if _, _, ok := s.Park(&p, decided, now); ok {
						s.Undo()
					} else {
						until = now.Add(p.Pause)
					}
				}
			}
			require.LessOrEqual(t, len(s.parks), window+1)
		}
	})
}
