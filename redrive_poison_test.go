package courier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// Redrives of letters that still fail, over breakers that cannot tell them from
// an outage. Time is that of a bubble.

// lettersIn returns the letters of a queue, by record.
func lettersIn(t *testing.T, q courier.DLQ[int]) map[int]courier.DeadLetter[int] {
	t.Helper()
	letters := map[int]courier.DeadLetter[int]{}
	for letter, err := range courier.Letters(t.Context(), q) {
		require.NoError(t, err)
		letters[letter.Record] = letter
	}
	return letters
}

// breaking puts a breaker around an applier, and a retry around that, without
// jitter: five attempts with delays of 1, 2, 4 and 8 seconds, five failures in a
// row, and open periods of 1, 2, 4, … seconds.
func breaking(a courier.Applier[int]) (courier.Applier[int], *courier.Breaker) {
	b := courier.NewBreaker(courier.BreakerPolicy{DisableJitter: true})
	return courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(a, b), plain), b
}

// transaction is a batch applier of which a batch fails as one.
type transaction struct{ *sink[int] }

func (x transaction) ApplyBatch(ctx context.Context, records []int) error {
	for _, r := range records {
		if err := x.fail(ctx, r, 0); err != nil {
			return err
		}
	}
	for _, r := range records {
		_ = x.Apply(ctx, r)
	}
	return nil
}

// One redrive gets past letters that still fail, whatever the stack and however
// the records are applied.
func TestRedrive_LettersThatStillFailHoldUpNoOther(t *testing.T) {
	for name, wrap := range map[string]func(courier.Applier[int]) courier.Applier[int]{
		"plain":   func(a courier.Applier[int]) courier.Applier[int] { return a },
		"retry":   courier.WithRetry[int],
		"breaker": courier.WithCircuitBreaker[int],
		"retry and breaker": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.WithRetry(courier.WithCircuitBreaker(a))
		},
		"a breaker that each failure opens": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewCircuitBreakerApplier(a, courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1}))
		},
		"a breaker by rate": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.WithRetry(courier.NewCircuitBreakerApplier(a, courier.NewBreaker(courier.BreakerPolicy{FailureRate: 0.2, MinCalls: 2})))
		},
		"a fan-out": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewFanOutApplier(courier.WithRetry(courier.WithCircuitBreaker(a)), always(nil))
		},
		"decoding": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewDecodingApplier(courier.WithRetry(courier.WithCircuitBreaker(a)), func(r int) (int, error) { return r, nil })
		},
		"a retry that gives up by time": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewRetryableApplier(a, courier.RetryPolicy{MaxElapsed: time.Second, InitialDelay: time.Second, Jitter: courier.NoJitter})
		},
		"an empty retry budget": func(a courier.Applier[int]) courier.Applier[int] {
			budget := courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Ratio: 0.001, Floor: 0.001})
			return courier.NewRetryableApplier(a, courier.RetryPolicy{Budget: budget})
		},
	} {
		for _, form := range []string{"single", "batch", "transaction"} {
			for _, poison := range [][]int{{0}, {0, 1}, {3, 9}, {9, 10, 11}} {
				t.Run(fmt.Sprintf("%s, %s, poison %v", name, form, poison), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						q := queueOf(numbers(12)...)
						s := &sink[int]{fail: failing(poison...)}
						var a courier.Applier[int] = s
						switch form {
						case "batch":
							a = eachOfBatch[int]{s}
						case "transaction":
							a = transaction{s}
						}
						result, err := courier.Redrive(t.Context(), q, wrap(a), nil)
						require.NoError(t, err)
						require.Equal(t, courier.RedriveResult{Attempted: 12, Succeeded: 12 - len(poison), Failed: len(poison)}, result)
						require.Equal(t, poison, recordsIn(t, q))
						for _, letter := range lettersIn(t, q) {
							require.Equal(t, 1, letter.FailedRedrives)
							require.ErrorIs(t, letter.Error, errTest)
						}
					})
				})
			}
		}
	}
}

func TestRedrive_ALetterOverWhichTheBreakerOpenedIsNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queueOf(numbers(4)...)
		began := time.Now()
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r < 2 {
				return fmt.Errorf("record %d: %w", r, errTest)
			}
			return nil
		}}
		policy := plain
		policy.MaxAttempts = 3
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 3, DisableJitter: true})
		a := courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(s, b), policy)
		result, err := courier.Redrive(t.Context(), q, a, nil)
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 4, Succeeded: 2, Failed: 2}, result)
		letters := lettersIn(t, q)
		require.Len(t, letters, 2)

		opened := letters[0]
		require.EqualError(t, opened.Error, "record 0: "+errTest.Error(), "its own failure, and not that a breaker is open")
		require.Equal(t, 3, opened.Attempts)
		require.Equal(t, 1, opened.FailedRedrives)
		require.Equal(t, courier.ReasonExhausted, opened.Reason)
		require.Equal(t, began.Add(3*time.Second), opened.FailedAt)

		probe := letters[1]
		require.EqualError(t, probe.Error, "record 1: "+errTest.Error())
		require.Equal(t, 5, probe.Attempts, "P-1: a failed probe is no attempt")
		require.Equal(t, 1, probe.FailedRedrives)
		require.Equal(t, began.Add(4*time.Second), probe.FailedAt)
		require.Equal(t, 3+1+2, s.called(), "nothing is tried again beyond its attempts")
	})
}

// A real outage: the redrive gives up within its patience, and harms nobody that
// it has not called.
func TestRedrive_AnOutageEndsIt(t *testing.T) {
	for name, batches := range map[string]bool{"single": false, "batches": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := queueOf(numbers(50)...)
				before := lettersIn(t, q)
				s := &sink[int]{fail: func(context.Context, int, int) error { return errTest }}
				var inner courier.Applier[int] = s
				if batches {
					inner = eachOfBatch[int]{s}
				}
				a, _ := breaking(inner)
				began := time.Now()
				result, err := courier.Redrive(t.Context(), q, a, &courier.RedriveConfig[int]{BatchSize: 5})
				require.ErrorIs(t, err, courier.ErrRedrive)
				require.ErrorIs(t, err, courier.ErrOpen)
				var stopped *courier.RedriveError
				require.ErrorAs(t, err, &stopped)
				require.Equal(t, began.Add((15+1+2+4+8)*time.Second), stopped.Until, "15 seconds of retries, and the open periods")
				require.Equal(t, 22*time.Second, time.Since(began), "the next wait would have been beyond 10 seconds in all")
				require.Equal(t, 50, countOf(q))
				require.Zero(t, result.Succeeded)
				require.Equal(t, 50, result.Failed+result.Left)
				touched := 0
				for r, letter := range lettersIn(t, q) {
					if letter.FailedRedrives == 0 {
						require.Equal(t, before[r], letter, "not called, and not changed")
						continue
					}
					touched++
				}
				require.Equal(t, touched, result.Failed)
				if !batches {
					require.Equal(t, 4, touched, "the one over which the breaker opened, and the probes")
					require.Equal(t, 5+3, s.called())
				}

				// Called again too early, it waits for the breaker and tries one of the others.
				calls := s.called()
				again, err := courier.Redrive(t.Context(), q, a, &courier.RedriveConfig[int]{Limit: 1})
				require.NoError(t, err)
				require.Equal(t, courier.RedriveResult{Attempted: 1, Failed: 1, Left: 49}, again)
				require.Equal(t, calls+1, s.called())
				require.Equal(t, 30*time.Second, time.Since(began))
				now := lettersIn(t, q)
				require.Equal(t, 1, now[touched].FailedRedrives)
			})
		})
	}
}

func TestRedrive_GoesOnOnceAnOutageHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queueOf(numbers(20)...)
		began := time.Now()
		s := &sink[int]{fail: func(context.Context, int, int) error {
			if time.Since(began) < 17*time.Second {
				return errTest
			}
			return nil
		}}
		a, _ := breaking(s)
		result, err := courier.Redrive(t.Context(), q, a, nil)
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 20, Succeeded: 18, Failed: 2}, result, "the first, and a probe")
		result, err = courier.Redrive(t.Context(), q, a, nil)
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 2, Succeeded: 2}, result)
	})
}

// Each success renews the patience, so that poison letters among healthy ones
// end no redrive, however many there are.
func TestRedrive_ASuccessRenewsThePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queueOf(numbers(100)...)
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r%3 < 2 {
				return errTest
			}
			return nil
		}}
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, OpenFor: 3 * time.Second, DisableJitter: true})
		result, err := courier.Redrive(t.Context(), q, courier.NewCircuitBreakerApplier(s, b), nil)
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 100, Succeeded: 33, Failed: 67}, result)
		require.Equal(t, 100, s.called())
	})
}

// More poison letters in front than one redrive has the patience for: the next
// one begins with the others.
func TestRedrive_TheNextOneBeginsWithOtherLetters(t *testing.T) {
	for _, sameProcess := range []bool{true, false} {
		t.Run(choose(sameProcess, "same process", "new process"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := queueOf(numbers(30)...)
				s := &sink[int]{fail: failing(numbers(20)...)}
				a, _ := breaking(s)
				redrives := 0
				for ; countOf(q) > 20; redrives++ {
					require.Less(t, redrives, 25)
					if !sameProcess {
						a, _ = breaking(s)
					}
					_, err := courier.Redrive(t.Context(), q, a, nil)
					if redrives == 0 {
						require.ErrorIs(t, err, courier.ErrOpen)
					}
					time.Sleep(time.Minute)
				}
				if !sameProcess {
					require.Equal(t, 6, redrives, "four letters each")
				}
				_, err := courier.Redrive(t.Context(), q, a, &courier.RedriveConfig[int]{
					Match: func(l courier.DeadLetter[int]) bool { return l.FailedRedrives == 0 },
				})
				require.NoError(t, err, "nothing is left that was not tried")
			})
		})
	}
}

// The order in which letters have their turn, and that it costs one walk more
// for each count of failed redrives that there is.
func TestRedrive_TakesTheLettersFirstThatFailedTheFewest(t *testing.T) {
	q := &courier.MemoryDLQ[int]{}
	for r, redriven := range []int{2, 0, 5, 1, 0, 2} {
		require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: r, FailedRedrives: redriven, FailedAt: time.Now().Add(time.Hour)}))
	}
	lists := 0
	counting := &brokenDLQ{DLQ: q, before: func(call string) error {
		if call == "list" {
			lists++
		}
		return nil
	}}
	s := &sink[int]{fail: failing(4)}
	result, err := courier.Redrive(t.Context(), counting, s, &courier.RedriveConfig[int]{Limit: 3})
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 3, Succeeded: 2, Failed: 1, Left: 3}, result)
	require.Equal(t, []int{1, 3}, s.got())
	require.Equal(t, 2, lists)
	s.fail = nil
	result, err = courier.Redrive(t.Context(), counting, s, nil)
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 4, Succeeded: 4}, result)
	require.Equal(t, []int{1, 3, 4, 0, 5, 2}, s.got())
	require.LessOrEqual(t, lists, 2+2*4, "for counts of 0, 1, 2 and 5, and to see the end of each walk")
}

// Letters of a key keep their order over the walks of a redrive.
func TestRedrive_AKeyKeepsItsOrder(t *testing.T) {
	q := &courier.MemoryDLQ[int]{}
	for r, letter := range []courier.DeadLetter[int]{
		{Key: "a", FailedRedrives: 1}, {Key: "a"}, {Key: "b"}, {Key: "b", FailedRedrives: 2}, {Key: "b", FailedRedrives: 1}, {Key: "c", FailedRedrives: 3}, {Key: "c"}, {},
	} {
		letter.Record = r
		require.NoError(t, q.Send(t.Context(), letter))
	}
	s := &sink[int]{fail: failing(5)}
	result, err := courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[int]{BatchSize: 3})
	require.NoError(t, err)
	require.Equal(t, []int{2, 7, 0, 1, 3, 4}, s.got())
	require.Equal(t, courier.RedriveResult{Attempted: 7, Succeeded: 6, Failed: 1, Left: 1}, result)
	require.Equal(t, []int{5, 6}, recordsIn(t, q))
}

// A letter that the pipeline parks anew during the redrive is not attempted by a
// later walk, whatever its time says.
func TestRedrive_ANewerFailureWaitsForTheNextOne(t *testing.T) {
	q := &courier.MemoryDLQ[int]{Identity: func(r int) string { return fmt.Sprint(r) }}
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 1}))
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 2, FailedRedrives: 1}))
	s := &sink[int]{}
	s.fail = func(ctx context.Context, r, _ int) error {
		if r == 1 {
			require.NoError(t, q.Send(ctx, courier.DeadLetter[int]{Record: 1}))
		}
		return nil
	}
	result, err := courier.Redrive(t.Context(), q, s, nil)
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 2, Succeeded: 2}, result)
	require.Equal(t, []int{1, 2}, s.got())
	require.Equal(t, []int{1}, recordsIn(t, q))
}

func TestRedrive_StopsAtOnceWhereWaitingIsPointless(t *testing.T) {
	full := &courier.MemoryDLQ[int]{Capacity: 1}
	require.NoError(t, full.Send(t.Context(), courier.DeadLetter[int]{}))
	forced, b := breaking(always(nil))
	b.ForceOpen()
	other, _ := breaking(always(nil))
	for name, c := range map[string]struct {
		applier courier.Applier[int]
		is      error
		noted   bool
	}{
		"forced open":           {forced, courier.ErrForcedOpen, false},
		"a branch forced open":  {courier.NewFanOutApplier(other, forced), courier.ErrForcedOpen, false},
		"open for long":         {always(&courier.OpenError{Until: time.Now().AddDate(100, 0, 0), Cause: errTest}), errTest, false},
		"misconfigured inside":  {courier.ProcessFunc(courier.WithRetry[int](nil).Apply), courier.ErrConfig, false},
		"another queue is full": {courier.NewDLQApplier(always(errTest), courier.DLQ[int](full), courier.DLQPolicy[int]{}), courier.ErrDLQFull, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := queueOf(1, 2)
				began := time.Now()
				result, err := courier.Redrive(t.Context(), q, c.applier, nil)
				require.ErrorIs(t, err, courier.ErrRedrive)
				require.ErrorIs(t, err, c.is)
				require.Zero(t, time.Since(began))
				if c.noted { // the next one begins with another letter
					require.Equal(t, courier.RedriveResult{Attempted: 1, Failed: 1, Left: 1}, result)
					require.Equal(t, 1, lettersIn(t, q)[1].FailedRedrives)
					return
				}
				require.Equal(t, courier.RedriveResult{Left: 2}, result)
				require.Zero(t, lettersIn(t, q)[1].FailedRedrives)
			})
		})
	}
}

func TestRedrive_ItsContextEndsAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reason := errors.New("the operator had enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		q := queueOf(1, 2)
		a, b := breaking(always(errTest))
		began := time.Now()
		time.AfterFunc(15500*time.Millisecond, func() { cancel(reason) })
		result, err := courier.Redrive(ctx, q, a, nil)
		require.ErrorIs(t, err, reason)
		var stopped *courier.RedriveError
		require.ErrorAs(t, err, &stopped)
		require.Equal(t, b.RetryAt(), stopped.Until)
		require.Equal(t, 15500*time.Millisecond, time.Since(began))
		require.Equal(t, courier.RedriveResult{Attempted: 1, Failed: 1, Left: 1}, result)
	})
}

// Somebody else's probe is under way: the redrive waits for its verdict.
func TestRedrive_WaitsForTheProbeOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queueOf(numbers(5)...)
		a, b := breaking(always(nil))
		for range 5 {
			permit, err := b.Acquire(t.Context())
			require.NoError(t, err)
			_ = b.Report(t.Context(), permit, errTest)
		}
		time.Sleep(time.Second)
		probe, err := b.Acquire(t.Context())
		require.NoError(t, err)
		time.AfterFunc(3*time.Second, func() { _ = b.Report(t.Context(), probe, nil) })
		began := time.Now()
		result, err := courier.Redrive(t.Context(), q, a, nil)
		require.NoError(t, err)
		require.Equal(t, 5, result.Succeeded)
		require.InDelta(t, 3, time.Since(began).Seconds(), 1)
		require.Less(t, b.Metrics().Rejected, uint64(20), "it asks now and then")
	})
}

// The waits of a retry are its own, and no sign of an outage.
func TestRedrive_ARetryMayWaitAsLongAsItLikes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queueOf(numbers(3)...)
		s := &sink[int]{fail: failing(0, 1)}
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 4})
		a := courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(s, b), courier.RetryPolicy{MaxAttempts: 3, InitialDelay: time.Hour, Jitter: courier.NoJitter})
		result, err := courier.Redrive(t.Context(), q, a, nil)
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 3, Succeeded: 1, Failed: 2}, result)
	})
}

// By cron, once a minute for a day, in one process or a new one each time.
func TestRedrive_OnePoisonLetterAndACronJob(t *testing.T) {
	for _, sameProcess := range []bool{true, false} {
		t.Run(choose(sameProcess, "same process", "new process"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := queueOf(numbers(10)...)
				s := &sink[int]{fail: failing(0)}
				a := courier.WithRetry(courier.WithCircuitBreaker(s))
				for range 24 * 60 {
					if !sameProcess {
						a = courier.WithRetry(courier.WithCircuitBreaker(s))
					}
					_, _ = courier.Redrive(t.Context(), q, a, nil)
					time.Sleep(time.Minute)
				}
				letters := lettersIn(t, q)
				require.Len(t, letters, 1)
				require.Equal(t, 24*60, letters[0].FailedRedrives)
			})
		})
	}
}

// lettersWorld is a queue of letters, of which some still fail, and how it is
// redriven.
type lettersWorld struct {
	letters     []courier.DeadLetter[int]
	poison      map[int]string // by record, how it fails
	form        string
	breaker     *courier.BreakerPolicy // nil for none
	retry       *courier.RetryPolicy   // likewise
	sameProcess bool
	identity    bool
	size        int
	limit       int
}

// Random queues, breakers and retries: each redrive gives one letter its turn at
// least, of those that failed the fewest. So after as many redrives as it takes
// for all to have failed as often as the one that failed most, every healthy
// letter is gone that no poison one of its key holds up, and every poison one is
// known as such.
func TestRedrive_PropertyPoisonHoldsUpNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := lettersWorld{
			poison:      map[int]string{},
			form:        rapid.SampledFrom([]string{"single", "batch", "transaction"}).Draw(rt, "form"),
			sameProcess: rapid.Bool().Draw(rt, "same process"),
			identity:    rapid.Bool().Draw(rt, "by identity"),
			size:        rapid.SampledFrom([]int{0, 1, 2, 5}).Draw(rt, "batch size"),
			limit:       rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(rt, "limit"),
		}
		for r := range rapid.IntRange(1, 25).Draw(rt, "letters") {
			branch := rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "branch")
			letter := courier.DeadLetter[int]{Record: r, Branch: branch, Attempts: 5, FailedRedrives: rapid.SampledFrom([]int{0, 0, 0, 1, 3}).Draw(rt, "redriven")}
			if key := rapid.SampledFrom([]string{"", "", "x", "y"}).Draw(rt, "key"); key != "" {
				letter.Key = branch + key
			}
			if rapid.IntRange(0, 2).Draw(rt, "poison") == 0 {
				w.poison[r] = rapid.SampledFrom([]string{"error", "error", "permanent", "panic"}).Draw(rt, "how")
			}
			w.letters = append(w.letters, letter)
		}
		if rapid.IntRange(0, 3).Draw(rt, "breaker") > 0 {
			w.breaker = &courier.BreakerPolicy{
				FailureThreshold: rapid.IntRange(1, 6).Draw(rt, "threshold"),
				OpenFor:          rapid.SampledFrom([]time.Duration{0, 100 * time.Millisecond, 9 * time.Second, 30 * time.Second}).Draw(rt, "open for"),
				Probes:           rapid.IntRange(1, 2).Draw(rt, "probes"),
				Successes:        rapid.IntRange(1, 2).Draw(rt, "successes"),
				Random:           func() float64 { return 0.5 },
			}
			if rapid.Bool().Draw(rt, "by rate") {
				w.breaker.FailureRate, w.breaker.MinCalls = 0.3, 2
			}
		}
		if rapid.IntRange(0, 3).Draw(rt, "retry") > 0 {
			w.retry = &courier.RetryPolicy{
				MaxAttempts:  rapid.IntRange(1, 6).Draw(rt, "attempts"),
				InitialDelay: rapid.SampledFrom([]time.Duration{0, time.Second, time.Minute}).Draw(rt, "delay"),
				Random:       func() float64 { return 0.5 },
			}
		}
		var problem error
		synctest.Test(t, func(t *testing.T) { problem = w.run(t) })
		if problem != nil {
			rt.Fatal(problem)
		}
	})
}

func (w *lettersWorld) stack(a courier.Applier[int]) courier.Applier[int] {
	if w.breaker != nil {
		a = courier.NewCircuitBreakerApplier(a, courier.NewBreaker(*w.breaker))
	}
	if w.retry != nil {
		a = courier.NewRetryableApplier(a, *w.retry)
	}
	return a
}

func (w *lettersWorld) run(t *testing.T) error {
	q := &courier.MemoryDLQ[int]{}
	if w.identity {
		q = &courier.MemoryDLQ[int]{Identity: func(r int) string { return fmt.Sprint(r) }}
	}
	for _, letter := range w.letters {
		_ = q.Send(t.Context(), letter)
	}
	s := &sink[int]{}
	tried := map[int]int{} // in this redrive
	s.fail = func(_ context.Context, r, call int) error {
		if call > 0 {
			tried[r]++
		}
		switch w.poison[r] {
		case "error":
			return errTest
		case "permanent":
			return courier.Permanent(errTest)
		case "panic":
			panic(errTest)
		}
		return nil
	}
	var applier courier.Applier[int] = s
	switch w.form {
	case "batch":
		applier = eachOfBatch[int]{s}
	case "transaction":
		applier = transaction{s}
	}
	stack := w.stack(applier)
	attempts := 1
	if w.retry != nil {
		attempts = w.retry.MaxAttempts
	}
	letters := lettersIn(t, q)
	for n := range 4*len(w.letters) + 1 {
		if len(letters) == 0 {
			break
		}
		if !w.sameProcess {
			stack = w.stack(applier)
		}
		clear(tried)
		total := countOf(q)
		result, err := courier.Redrive(t.Context(), q, stack, &courier.RedriveConfig[int]{BatchSize: w.size, Limit: w.limit})
		now := lettersIn(t, q)
		if result.Succeeded != total-len(now) || result.Attempted != result.Succeeded+result.Failed || result.Left != total-result.Attempted {
			return fmt.Errorf("redrive %d of %d letters, of which %d are left: %+v", n, total, len(now), result)
		}
		if err != nil && !errors.Is(err, courier.ErrOpen) || w.limit > 0 && result.Attempted > w.limit {
			return fmt.Errorf("redrive %d, with a limit of %d: %+v, %w", n, w.limit, result, err)
		}
		// A batch that fails as one is one call more for its records.
		most := attempts
		if w.form != "single" {
			most++
		}
		failed := 0
		for r, before := range letters {
			letter, there := now[r]
			switch {
			case tried[r] > most:
				return fmt.Errorf("redrive %d: record %d was applied %d times", n, r, tried[r])
			case !there && (w.poison[r] != "" || tried[r] == 0):
				return fmt.Errorf("redrive %d: the letter of record %d is gone, which was applied %d times, poison: %q", n, r, tried[r], w.poison[r])
			case !there:
			case w.poison[r] == "" && letter != before && tried[r] > 0:
				return fmt.Errorf("redrive %d: record %d was applied, and its letter is %+v", n, r, letter)
			case letter.FailedRedrives > before.FailedRedrives+1 || letter.FailedRedrives == before.FailedRedrives && letter != before:
				return fmt.Errorf("redrive %d: the letter %+v was %+v", n, letter, before)
			case letter.FailedRedrives > before.FailedRedrives:
				failed++
				// Of a record that was refused before its retries were over, only
				// that is known.
				refused := w.form != "single" && errors.Is(letter.Error, courier.ErrOpen)
				if !errors.Is(letter.Error, errTest) && !refused || letter.Attempts < 1 {
					return fmt.Errorf("redrive %d: the letter %+v, which was %+v, has not its own error", n, letter, before)
				}
			}
		}
		if failed != result.Failed {
			return fmt.Errorf("redrive %d: %d letters failed: %+v", n, failed, result)
		}
		letters = now
		time.Sleep(2 * time.Minute)
	}
	held := map[string]bool{}
	for _, was := range w.letters {
		letter, there := letters[was.Record]
		switch {
		case held[was.Key]:
			if !there || letter.FailedRedrives != was.FailedRedrives {
				return fmt.Errorf("the letter of record %d was attempted, and an earlier one of its key %q is poison", was.Record, was.Key)
			}
		case w.poison[was.Record] == "" && there:
			return fmt.Errorf("the healthy record %d is still in the queue: %+v", was.Record, letter)
		case w.poison[was.Record] != "" && letter.FailedRedrives == was.FailedRedrives:
			return fmt.Errorf("the poison record %d was never noted as such: %+v", was.Record, letter)
		case w.poison[was.Record] != "":
			held[was.Key] = was.Key != ""
		}
	}
	return w.inOrder(s.got())
}

// inOrder checks the order within each key.
func (w *lettersWorld) inOrder(applied []int) error {
	for i, r := range applied {
		key := w.letters[r].Key
		if key != "" && slices.ContainsFunc(applied[:i], func(before int) bool { return before > r && w.letters[before].Key == key }) {
			return fmt.Errorf("record %d of the key %q was applied after a later one: %v", r, key, applied)
		}
	}
	return nil
}
