package courier_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// abruptEnds are the ways for a call to fail without returning an error.
var abruptEnds = map[string]func(){
	"panic":            func() { panic("boom") },
	"panic(nil)":       func() { panic(nil) },
	"panic(error)":     func() { panic(errTest) },
	"runtime error":    func() { var s []int; s[len(s)] = 1 },
	"panic(Skip)":      func() { panic(courier.Skip(errTest)) },
	"panic(Permanent)": func() { panic(courier.Permanent(errTest)) },
	"Goexit":           runtime.Goexit,
}

// screenplay is a destination with a script: what the n-th call on a record does.
type screenplay struct {
	script map[string][]string // by branch and record; "" succeeds, and so does the end of the script
	plain  bool                // every failure is an error that is returned
	began  time.Time

	mu    sync.Mutex
	made  map[string]int
	calls []string
}

func (e *screenplay) call(branch string, records ...int) error {
	e.mu.Lock()
	kind := ""
	for _, r := range records {
		id := fmt.Sprint(branch, r)
		n := e.made[id]
		e.made[id]++
		if n < len(e.script[id]) {
			kind = cmp.Or(kind, e.script[id][n])
		}
	}
	e.calls = append(e.calls, fmt.Sprintf("%9v %s%v %v", time.Since(e.began), branch, records, kind == ""))
	e.mu.Unlock()
	switch {
	case kind == "":
		return nil
	case !e.plain && abruptEnds[kind] != nil:
		abruptEnds[kind]()
	}
	return errTest
}

func (e *screenplay) applier(branch string, batches bool) courier.Applier[int] {
	one := courier.ProcessFunc(func(_ context.Context, r int) error { return e.call(branch, r) })
	if !batches {
		return one
	}
	return inBatches{one, func(records []int) error { return e.call(branch, records...) }}
}

type inBatches struct {
	courier.Applier[int]
	apply func([]int) error
}

func (b inBatches) ApplyBatch(_ context.Context, records []int) error { return b.apply(records) }

// However a call fails, it is one failed attempt in every stack and every shape:
// the calls, their times, and what becomes of the records are those of a script in
// which each failure is an error that is returned (D9).
func TestD9_APanicIsTriedAgainAsAnErrorIs(t *testing.T) {
	retry := courier.RetryPolicy{Jitter: courier.NoJitter, MaxAttempts: 3}
	breaker := courier.BreakerPolicy{FailureThreshold: 3, DisableJitter: true}
	type stack func(a courier.Applier[int], q courier.DLQ[int]) courier.Applier[int]
	retried := func(a courier.Applier[int], _ courier.DLQ[int]) courier.Applier[int] {
		return courier.NewRetryableApplier(a, retry)
	}
	resilient := func(a courier.Applier[int], q courier.DLQ[int]) courier.Applier[int] {
		a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[int]{Retry: retry, Breaker: breaker, DLQ: q})
		return a
	}
	stacks := map[string]stack{
		"none":  func(a courier.Applier[int], _ courier.DLQ[int]) courier.Applier[int] { return a },
		"retry": retried,
		"retry, timeout": func(a courier.Applier[int], _ courier.DLQ[int]) courier.Applier[int] {
			return courier.NewRetryableApplier(courier.NewAttemptTimeoutApplier(a, time.Hour, nil), courier.RetryPolicy{Jitter: courier.NoJitter})
		},
		"breaker": func(a courier.Applier[int], _ courier.DLQ[int]) courier.Applier[int] {
			return courier.NewCircuitBreakerApplier(a, courier.NewBreaker(breaker))
		},
		"dlq": func(a courier.Applier[int], q courier.DLQ[int]) courier.Applier[int] {
			return courier.NewDLQApplier(a, q, courier.DLQPolicy[int]{})
		},
		"dlq, retry": func(a courier.Applier[int], q courier.DLQ[int]) courier.Applier[int] {
			return courier.NewDLQApplier(retried(a, nil), q, courier.DLQPolicy[int]{})
		},
		"dlq by key, retry": func(a courier.Applier[int], q courier.DLQ[int]) courier.Applier[int] {
			return courier.NewDLQApplier(retried(a, nil), q, courier.DLQPolicy[int]{Key: func(r int) string { return fmt.Sprint(r % 2) }})
		},
		"retry, decode, breaker": func(a courier.Applier[int], _ courier.DLQ[int]) courier.Applier[int] {
			inner := courier.NewCircuitBreakerApplier(a, courier.NewBreaker(breaker))
			return courier.NewRetryableApplier(courier.NewDecodingApplier(inner, func(r int) (int, error) { return r, nil }), retry)
		},
		"resilient": resilient,
		"fan-out of one": func(a courier.Applier[int], q courier.DLQ[int]) courier.Applier[int] {
			return courier.NewFanOutApplier(resilient(a, q))
		},
	}
	shapes := []string{"polling", "polling by key", "streaming", "streaming by key", "run once", "redrive"}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(slices.Sorted(keysOf(stacks))).Draw(t, "stack")
		shape := rapid.SampledFrom(shapes).Draw(t, "shape")
		batches := rapid.Bool().Draw(t, "batches")
		second := rapid.Bool().Draw(t, "second branch")
		if shape == "redrive" && name == "dlq by key, retry" {
			name = "dlq, retry"
		}
		records := rapid.IntRange(1, 4).Draw(t, "records")
		kinds := append(slices.Sorted(keysOf(abruptEnds)), "", "error")
		script := map[string][]string{}
		for r := range records {
			for _, branch := range []string{"", "other "} {
				script[fmt.Sprint(branch, r)] = rapid.SliceOfN(rapid.SampledFrom(kinds), 0, 7).Draw(t, fmt.Sprint("script of ", branch, r))
			}
		}
		run := func(plain bool) (told []string) {
			rapid.SyncTest(t, func(t *rapid.T) {
				e := &screenplay{script: script, plain: plain, began: time.Now(), made: map[string]int{}}
				q := &courier.MemoryDLQ[int]{}
				a := stacks[name](e.applier("", batches), courier.DLQ[int](q))
				if second {
					a = courier.NewFanOutFromConfig(courier.FanOutConfig[int]{
						Identity: func(r int) string { return fmt.Sprint(r) },
						Branches: []courier.Branch[int]{
							{Name: "first", Applier: a}, {Name: "other", Applier: retried(e.applier("other ", batches), nil)},
						},
					})
				}
				var pending []int
				opts := []courier.Option{quiet, courier.WithRandom(func() float64 { return 0.5 })}
				if shape == "polling by key" || shape == "streaming by key" {
					opts = append(opts, courier.WithOrderKey(func(r int) string { return fmt.Sprint(r % 2) }))
				}
				var r courierttest.Recorder[int]
				switch shape {
				case "polling", "polling by key":
					src := r.Source(numbers(records)...)
					courierttest.RunFor(t, courier.NewPollingCoordinator(src, a, opts...), time.Hour)
					pending = src.Pending()
				case "streaming", "streaming by key":
					src := r.StreamSource(numbers(records)...)
					courierttest.RunFor(t, courier.NewStreamingCoordinator(src, a, opts...), time.Hour)
					pending = src.Pending()
				case "run once":
					src := r.Source(numbers(records)...)
					c := courier.NewPollingCoordinator(src, a, opts...)
					for range 4 {
						told = append(told, fmt.Sprint("run: ", c.RunOnce(context.Background()) == nil))
						time.Sleep(time.Minute)
					}
					pending = src.Pending()
				case "redrive":
					letters := &courier.MemoryDLQ[int]{}
					for n := range records {
						_ = letters.Send(context.Background(), courier.DeadLetter[int]{Record: n, Error: errTest})
					}
					for range 4 {
						result, err := courier.Redrive(context.Background(), courier.DLQ[int](letters), a, nil)
						told = append(told, fmt.Sprint("redrive: ", result, err == nil))
						time.Sleep(time.Minute)
					}
					left, _ := letters.Receive(context.Background(), 10)
					for _, l := range left {
						pending = append(pending, l.Record)
					}
				}
				slices.Sort(e.calls) // those of one instant in any order
				told = append(told, e.calls...)
				parked, _ := q.Receive(context.Background(), 10)
				for _, l := range parked {
					told = append(told, fmt.Sprint("parked ", l.Record, " after ", l.Attempts, ": ", l.Reason))
				}
				told = append(told, fmt.Sprint("pending ", pending))
			})
			return told
		}
		// What comes first of two things at one instant is chance, and so there may be
		// several outcomes.
		var want, got [][]string
		for range 10 {
			want, got = append(want, run(true)), append(got, run(false))
			if slices.ContainsFunc(got, func(one []string) bool {
				return slices.ContainsFunc(want, func(other []string) bool { return slices.Equal(one, other) })
			}) {
				return
			}
		}
		require.Equal(t, want[0], got[0], "%s, %s", name, shape)
	})
}

func keysOf[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// The panic that a record was parked over keeps its value and its stack.
func TestB5_APanicIsAFailureWithItsValueAndStack(t *testing.T) {
	b := newBreaker(1)
	value := errors.New("the panic's own value")
	applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { panic(value) }), b)
	err := applier.Apply(t.Context(), 1)
	var p *courier.PanicError
	require.ErrorAs(t, err, &p)
	require.Equal(t, value, p.Value)
	require.ErrorIs(t, err, courier.ErrOpen)
	require.EqualValues(t, "open", b.State())
}

// D11: attempts that end their goroutines, one after the other, take no more memory than
// others: each goroutine is gone before the next begins.
func TestD11_GoexitsDoNotNest(t *testing.T) {
	const attempts = 200
	for _, shape := range []string{"polling", "streaming", "batch", "fan-out", "resilient"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var r courierttest.Recorder[int]
				calls, least, most := 0, math.MaxInt, 0
				p := courier.ProcessFunc(func(context.Context, int) error {
					n := runtime.NumGoroutine()
					least, most = min(least, n), max(most, n)
					if calls++; calls > attempts {
						return nil
					}
					runtime.Goexit()
					return nil
				})
				policy := courier.RetryPolicy{MaxAttempts: courier.UnlimitedAttempts, MaxDelay: time.Second}
				if shape == "batch" {
					p = eachOfBatch[int]{p}
				}
				a := courier.NewRetryableApplier(p, policy)
				switch shape {
				case "fan-out":
					a = courier.NewFanOutApplier(a, always(nil))
				case "resilient":
					a, _ = courier.ResilientApplier(p, &courier.ResilientConfig[int]{Retry: policy})
				}
				if shape == "streaming" {
					courierttest.RunFor(t, courier.NewStreamingCoordinator[int](r.StreamSource(0), a, quiet), 24*time.Hour)
				} else {
					courierttest.RunFor(t, courier.NewPollingCoordinator[int](r.Source(0), a, quiet), 24*time.Hour)
				}
				require.Greater(t, calls, attempts)
				require.Less(t, most, least+attempts/2) // goroutines of other tests come and go
			})
		})
	}
}

// badClock is a clock of which one method panics.
type badClock struct{ now, after bool }

func (c badClock) Now() time.Time {
	if c.now {
		panic(errTest)
	}
	return time.Now().Round(0)
}

func (c badClock) After(d time.Duration) <-chan time.Time {
	if c.after {
		panic(errTest)
	}
	return time.After(d)
}

// renewing is a source whose RenewEvery does not return.
type renewing struct {
	*leasing[int]
	end func() time.Duration
}

func (r renewing) RenewEvery() time.Duration          { return r.end() }
func (r renewing) Renew(context.Context, []int) error { return nil }

// handler is a log that does not return.
type handler struct {
	slog.Handler
	end func()
}

func (h handler) Handle(context.Context, slog.Record) error { h.end(); return nil }

// D9: no function of the user's that is asked or told something on the way ends the
// process, or keeps a record from its end: each of them panics or ends its goroutine,
// and one that is to return a number returns any.
func TestD9_AFunctionOnTheWayDoesNoHarm(t *testing.T) {
	type setup struct {
		config  courier.ResilientConfig[int]
		options []courier.Option
		every   func() time.Duration
	}
	anyChange := func(f func()) func(context.Context, courier.BreakerChange) {
		return func(context.Context, courier.BreakerChange) { f() }
	}
	functions := map[string]func(s *setup, end func()){
		"OnStateChange": func(s *setup, end func()) { s.config.Breaker.OnStateChange = anyChange(end) },
		"OnRetry": func(s *setup, end func()) {
			s.config.Retry.OnRetry = func(context.Context, courier.RetryEvent) { end() }
		},
		"OnGiveUp": func(s *setup, end func()) {
			s.config.Retry.OnGiveUp = func(context.Context, *courier.RetryError) { end() }
		},
		"OnPark": func(s *setup, end func()) {
			s.config.Parking.OnPark = func(context.Context, courier.DeadLetter[int]) { end() }
		},
		"RenewEvery": func(s *setup, end func()) { s.every = func() time.Duration { end(); return 0 } },
		"WithIdentity": func(s *setup, end func()) {
			s.options = append(s.options, courier.WithIdentity(func(int) string { end(); return "" }))
		},
		"WithLogger": func(s *setup, end func()) {
			s.options = append(s.options, courier.WithLogger(slog.New(handler{slog.DiscardHandler, end})))
		},
		"WithObserver": func(s *setup, end func()) {
			s.options = append(s.options, courier.WithObserver(courier.Observer{
				Fetched:       func(context.Context, courier.FetchEvent) { end() },
				Applied:       func(context.Context, courier.ApplyEvent) { end() },
				Failed:        func(context.Context, courier.FailEvent) { end() },
				Retried:       func(context.Context, courier.RetryEvent) { end() },
				Parked:        func(context.Context, courier.ParkEvent) { end() },
				Marked:        func(context.Context, courier.MarkEvent) { end() },
				Paused:        func(context.Context, courier.PauseEvent) { end() },
				Resumed:       func(context.Context, courier.ResumeEvent) { end() },
				Released:      func(context.Context, courier.ReleaseEvent) { end() },
				RecordStarted: func(context.Context, courier.RecordEvent) { end() },
				RecordEnded:   func(context.Context, courier.RecordEvent) { end() },
				Stopped:       func(context.Context, courier.StopEvent) { end() },
			}))
		},
	}
	cases := map[string]func(s *setup){}
	for name, with := range functions {
		for how, end := range abruptEnds {
			cases[name+", "+how] = func(s *setup) { with(s, end) }
		}
	}
	random := func(name string, f func() float64) {
		cases[name] = func(s *setup) {
			s.config.Retry.Random, s.config.Breaker.Random = f, f
			s.options = append(s.options, courier.WithRandom(f))
		}
	}
	for _, n := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 1, 1e300} {
		random(fmt.Sprint("Random, ", n), func() float64 { return n })
	}
	for how, end := range abruptEnds {
		random("Random, "+how, func() float64 { end(); return 0 })
	}
	for which, clock := range map[string]badClock{"Now": {now: true}, "After": {after: true}, "both": {true, true}} {
		cases["Clock, "+which] = func(s *setup) {
			s.config.Clock = clock
			s.config.AttemptTimeout = time.Minute
			s.config.Retry.MaxElapsed = time.Hour
			s.options = append(s.options, courier.WithClock(clock))
		}
	}
	for name, with := range cases {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", name, coordinatorOf(stream)), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					began := time.Now()
					s := setup{options: []courier.Option{quiet}, every: func() time.Duration { return 0 }}
					s.config.Parking.MaxParkRate = courier.AnyParkRate
					with(&s)
					stack, dlq := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, n int) error {
						switch {
						case n == 7:
							return courier.Permanent(errTest)
						case time.Since(began) < 10*time.Second:
							return errTest
						}
						return nil
					}), &s.config)
					source := renewing{newLeasing(numbers(20)...), func() time.Duration { return s.every() }}
					source.wait = stream
					var c running = courier.NewPollingCoordinator[int](source, stack, s.options...)
					if stream {
						c = courier.NewStreamingCoordinator[int](source, stack, s.options...)
					}
					stop := start(t, c)
					time.Sleep(5 * time.Minute)
					require.NoError(t, stop())
					require.Empty(t, source.left())
					require.Equal(t, []int{7}, recordsIn(t, dlq))
					require.Less(t, source.fetches, 200, "no busy loop")
				})
			})
		}
	}
}

// misnamed is a shelf that names its records, badly.
type misnamed struct {
	*shelf[int]
	end func()
}

func (m *misnamed) Identity(int) string {
	m.end()
	return "never"
}

func TestD9_AnIdentityThatPanicsOrExits(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &destination{began: time.Now(), outage: time.Minute, poison: 3, applied: map[int]int{}}
				stack, dlq := courier.ResilientApplier(courier.Applier[int](d), nil)
				source := &misnamed{newShelf(numbers(10)...), end}
				stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
				for i := range 10 {
					time.Sleep(time.Minute)
					source.add(10 + i)
				}
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				parked, _ := dlq.Receive(t.Context(), 10)
				require.Len(t, parked, 1)
			})
		})
	}
}
