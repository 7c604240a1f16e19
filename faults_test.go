package courier_test

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// inner builds a pipeline for each record, as for tenants of their own, one of which
// cannot be built.
func inner(ctx context.Context, r int) error {
	policy := courier.RetryPolicy{}
	if r == bad {
		policy.MaxAttempts = -1
	}
	return courier.NewRetryableApplier(courier.ProcessFunc(nop[int]), policy).Apply(ctx, r)
}

// D12, D3, D5: a configuration fault that comes while a coordinator runs is of
// somebody else's pipeline, since those of its own are known before. Its record stays
// pending, nothing is held against it, and the others are delivered.
func TestD12_AFaultOfAnotherPipelineIsItsRecords(t *testing.T) {
	for name, apply := range map[string]func(context.Context, int) error{
		"an inner pipeline": inner,
		"wrapped": func(_ context.Context, r int) error {
			if r == bad {
				return errors.Join(errTest, &courier.ConfigError{Field: "tenant", Problem: "has no address"})
			}
			return nil
		},
	} {
		one := courier.ProcessFunc(apply)
		together := &batchSink[int]{sink: sink[int]{fail: func(ctx context.Context, r, _ int) error { return apply(ctx, r) }}, failBatch: func(ctx context.Context, records []int, _ int) error {
			var failed courier.BatchError
			for i, r := range records {
				if err := apply(ctx, r); err != nil {
					failed.Add(i, err)
				}
			}
			return failed.ErrorOrNil()
		}}
		for _, a := range []courier.Applier[int]{one, together} {
			for _, p := range pipelines {
				for _, run := range runs {
					t.Run(name+" "+p.name+" "+run.name, func(t *testing.T) {
						courierttest.Bubble(t, func(t *testing.T) {
							var h heard
							var r courierttest.Recorder[int]
							source, err := run.run(t, &r, p.wrap(a), h.options(), 0, 1, bad, 3, 4)
							require.NoError(t, err)
							left := source.Pending()
							if len(left) == 2 && left[1] == 9+later { // RunOnce has not seen the last one
								left = left[:1]
							}
							require.Equal(t, []int{bad}, left)
							told := false
							for _, err := range h.errs {
								told = told || errors.Is(err, courier.ErrConfig)
							}
							require.True(t, told)
						})
					})
				}
			}
		}
	}
}

// RunOnce returns it as the record's error, and a redrive stops at it as at
// everything that was not attempted: the letter stays as it is.
func TestD12_AFaultOfAnotherPipelineIsTold(t *testing.T) {
	source := newShelf(0, 1, bad, 3)
	err := courier.NewPollingCoordinator(source, courier.ProcessFunc(inner), quiet).RunOnce(t.Context())
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 1)
	require.Equal(t, 2, list.Failures[0].Index)
	require.ErrorIs(t, list.Failures[0].Err, courier.ErrConfig)
	require.Equal(t, []int{bad}, source.left())

	q := queueOf(0, bad, 3)
	before, _ := q.Receive(t.Context(), 9)
	result, err := courier.Redrive(t.Context(), q, courier.ProcessFunc(inner), nil)
	require.ErrorIs(t, err, courier.ErrRedrive)
	require.ErrorIs(t, err, courier.ErrConfig)
	require.Equal(t, 1, result.Succeeded)
	require.Zero(t, result.Failed)
	after, _ := q.Receive(t.Context(), 9)
	require.Equal(t, before[1:], after)
}

// A fault of the stack itself that a decorator of the user's own hides from the
// coordinator is found out at the first record. Nothing is lost, parked or counted,
// nobody is kept busy, and the log and the observer say it.
func TestD12_AFaultThatIsHiddenRefusesEveryRecord(t *testing.T) {
	hidden := courier.NewRetryableApplier(courier.ProcessFunc(nop[int]), courier.RetryPolicy{MaxAttempts: -1})
	own := courier.ProcessFunc(func(ctx context.Context, r int) error { return hidden.Apply(ctx, r) })
	for _, stream := range []bool{false, true} {
		courierttest.Bubble(t, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			var r courierttest.Recorder[int]
			stack, q := courier.ResilientApplier(own, nil)
			var c interface {
				courierttest.Starter
				Stats() courier.Stats
			}
			var pending func() []int
			opts := []courier.Option{quiet, courier.WithObserver(told.Observer())}
			if stream {
				source := r.StreamSource(numbers(10)...)
				pending = source.Pending
				c = courier.NewStreamingCoordinator(source, stack, opts...)
			} else {
				source := r.Source(numbers(10)...)
				pending = source.Pending
				c = courier.NewPollingCoordinator(source, stack, opts...)
			}
			courierttest.RunFor(t, c, time.Hour)
			require.Equal(t, numbers(10), pending())
			n, _ := q.Count(t.Context())
			require.Zero(t, n)
			require.Zero(t, c.Stats().Failed)
			require.Zero(t, c.Stats().Marked)
			require.Less(t, len(courierttest.EventsOf[courier.FetchEvent](&told)), 1000, "it keeps a processor busy")
			refusals := courierttest.EventsOf[courier.FailEvent](&told)
			require.NotEmpty(t, refusals)
			require.Equal(t, courier.ClassNotAttempted, refusals[0].Class)
			require.ErrorIs(t, refusals[0].Err, courier.ErrConfig)
		})
	}
}

// callback is an applier and a source that is a function.
type callback func()

func (f callback) Apply(context.Context, int) error          { f(); return nil }
func (f callback) Fetch(context.Context, int) ([]int, error) { f(); return nil, nil }
func (f callback) Mark(context.Context, []int) error         { f(); return nil }

// pipe is an applier that is a channel.
type pipe chan int

func (p pipe) Apply(_ context.Context, r int) error { p <- r; return nil }

// lookup is an applier that is a map, which may be nil.
type lookup map[int]error

func (l lookup) Apply(_ context.Context, r int) error { return l[r] }

// broken is an applier, a source and a queue that cannot even say whether it is well.
type broken struct {
	*shelf[int]
	courier.DLQ[int]
	end func()
}

func (b broken) Apply(context.Context, int) error { return nil }
func (b broken) Validate() error                  { b.end(); return nil }

// unmarked is a queue that does not say whether it marks records.
type unmarked struct{ *courier.MemoryDLQ[int] }

func (u *unmarked) MarksRecords() bool { return countOf(u.MemoryDLQ) > 0 }

// D12: nothing behind an interface, which is not nil for that, is one clear error that
// names the field, wherever it is given; and so is a Validate that does not return.
func TestD12_NothingBehindAnInterface(t *testing.T) {
	type starter = interface{ Start(context.Context) error }
	var (
		clock  *courierttest.Clock
		timer  clockFunc
		noSink *sink[int]
		source = newShelf[int]()
		ok     = courier.ProcessFunc(nop[int])
		over   = func(a courier.Applier[int]) starter { return courier.NewPollingCoordinator(source, a, quiet) }
		parks  = func(q courier.DLQ[int]) courier.Applier[int] {
			return courier.NewDLQApplier(ok, q, courier.DLQPolicy[int]{})
		}
		bundle = func(c courier.ResilientConfig[int]) starter {
			a, _ := courier.ResilientApplier(ok, &c)
			return over(a)
		}
	)
	for _, test := range []struct {
		field string
		make  func() starter
	}{
		{"WithClock", func() starter { return courier.NewPollingCoordinator(source, ok, courier.WithClock(clock)) }},
		{"WithClock", func() starter { return courier.NewPollingCoordinator(source, ok, courier.WithClock(timer)) }},
		{"WithClock", func() starter { return courier.NewStreamingCoordinator(source, ok, courier.WithClock(clock)) }},
		{"WithClock", func() starter {
			return courier.SyncWithRetry(func(context.Context) ([]int, error) { return nil, nil }, nop[int], nop[[]int], 3, courier.WithClock(clock))
		}},
		{"RetryPolicy.Clock", func() starter { return over(courier.NewRetryableApplier(ok, courier.RetryPolicy{Clock: clock})) }},
		{"RetryPolicy.Clock", func() starter {
			return over(courier.NewRetryableApplier(ok, courier.RetryPolicy{Clock: clock, MaxElapsed: time.Second}))
		}},
		{"BreakerPolicy.Clock", func() starter {
			b := courier.NewBreaker(courier.BreakerPolicy{Clock: clock})
			b.ForceOpen()
			b.Reset()
			b.Metrics()
			b.Ready()
			return over(courier.NewCircuitBreakerApplier(ok, b))
		}},
		{"BudgetPolicy.Clock", func() starter {
			return over(courier.NewRetryableApplier(ok, courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Clock: clock})}))
		}},
		{"DLQPolicy.Clock", func() starter {
			return over(courier.NewDLQApplier(ok, courier.DLQ[int](queueOf()), courier.DLQPolicy[int]{Clock: clock}))
		}},
		{"clock", func() starter { return over(courier.NewAttemptTimeoutApplier(ok, time.Second, clock)) }},
		{"ResilientConfig.Clock", func() starter { return bundle(courier.ResilientConfig[int]{Clock: clock, AttemptTimeout: time.Second}) }},
		{"RetryPolicy.Clock", func() starter {
			return bundle(courier.ResilientConfig[int]{Retry: courier.RetryPolicy{Clock: clock}})
		}},
		{"BreakerPolicy.Clock", func() starter {
			return bundle(courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Clock: clock}})
		}},
		{"DLQPolicy.Clock", func() starter {
			return bundle(courier.ResilientConfig[int]{Parking: courier.DLQPolicy[int]{Clock: clock}})
		}},
		{"ResilientConfig.DLQ", func() starter { return bundle(courier.ResilientConfig[int]{DLQ: (*courier.MemoryDLQ[int])(nil)}) }},

		{"source", func() starter { return courier.NewPollingCoordinator[int]((*shelf[int])(nil), ok) }},
		{"source", func() starter { return courier.NewPollingCoordinator[int](callback(nil), ok) }},
		{"source", func() starter { return courier.NewStreamingCoordinator[int](callback(nil), ok) }},
		{"source", func() starter { return courier.NewStreamingCoordinator((*courier.ChannelSource[int])(nil), ok) }},
		{"source", func() starter { return courier.NewPollingCoordinator[int]((*courier.BatchSourceFunc[int])(nil), ok) }},
		{"applier", func() starter { return over(noSink) }},
		{"applier", func() starter { return over(callback(nil)) }},
		{"applier", func() starter { return over(pipe(nil)) }},
		{"process", func() starter { return over(courier.ProcessFunc[int](nil)) }},
		{"process", func() starter { return over(courier.WithRetry(courier.ProcessFunc[int](nil))) }},
		{"branches[1]", func() starter { return over(courier.NewFanOutApplier[int](ok, noSink)) }},
		{"branches[1]", func() starter { return over(courier.NewFanOutApplier[int](ok, pipe(nil))) }},
		{"dlq", func() starter { return over(parks((*courier.MemoryDLQ[int])(nil))) }},
		{"dlq", func() starter { return over(parks((*unmarked)(nil))) }},
		{"dlq", func() starter { return over(courier.NewFanOutApplier(ok, parks((*unmarked)(nil)))) }},
		{"breaker", func() starter { return over(courier.NewCircuitBreakerApplier(ok, nil)) }},
		{"coordinator", func() starter { return (*courier.PollingCoordinator[int])(nil) }},
		{"coordinator", func() starter { return (*courier.StreamingCoordinator[int])(nil) }},

		{"source", func() starter {
			return courier.NewPollingCoordinator[int](broken{shelf: source, end: func() { panic("boom") }}, ok)
		}},
		{"source", func() starter {
			return courier.NewStreamingCoordinator[int](broken{shelf: source, end: runtime.Goexit}, ok)
		}},
		{"applier", func() starter { return over(courier.WithRetry[int](broken{end: func() { panic(fs.ErrClosed) }})) }},
		{"dlq", func() starter { return over(parks(broken{end: func() { panic("boom") }})) }},
		{"branches[0]", func() starter { return over(courier.NewFanOutApplier[int](broken{end: runtime.Goexit}, ok)) }},
	} {
		t.Run(test.field, func(t *testing.T) {
			var c starter
			require.NotPanics(t, func() { c = test.make() })
			err := c.Start(t.Context())
			var bad *courier.ConfigError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, test.field, bad.Field, "%v", err)
			require.Zero(t, source.fetchCount())
		})
	}
	require.NoError(t, courier.WithRetry[int](lookup(nil)).Apply(t.Context(), 1), "a nil map can be read")
	require.NoError(t, courier.WithRetry[int](lookup(nil)).(courier.Validator).Validate())
	fan := courier.NewFanOutApplier(ok, parks(&unmarked{}))
	require.ErrorIs(t, fan.(courier.Validator).Validate(), courier.ErrConfig, "what does not say whether it marks may")

	var bad *courier.ConfigError
	for field, call := range map[string]func() error{
		"RedriveConfig.Clock": func() error {
			_, err := courier.Redrive(t.Context(), courier.DLQ[int](queueOf(1)), ok, &courier.RedriveConfig[int]{Clock: clock})
			return err
		},
		"queue": func() error {
			_, err := courier.Redrive(t.Context(), courier.DLQ[int]((*courier.MemoryDLQ[int])(nil)), ok, nil)
			return err
		},
		"applier": func() error {
			_, err := courier.Redrive(t.Context(), courier.DLQ[int](queueOf(1)), courier.Applier[int](callback(nil)), nil)
			return err
		},
		"breaker": func() error {
			var b *courier.Breaker
			permit, err := b.Acquire(t.Context())
			require.ErrorIs(t, b.Report(t.Context(), permit, errTest), errTest)
			require.ErrorIs(t, new(courier.Breaker).Report(t.Context(), permit, errTest), errTest)
			return err
		},
	} {
		require.ErrorAs(t, call(), &bad)
		require.Equal(t, field, bad.Field)
	}
}

type clockFunc func() time.Time

func (f clockFunc) Now() time.Time                         { return f() }
func (f clockFunc) After(d time.Duration) <-chan time.Time { return time.After(d) }

// D12: so is a context that is nil, and nothing is fetched, applied or kept.
func TestD12_ANilContext(t *testing.T) {
	type wrapped struct{ context.Context }
	ok := courier.ProcessFunc(nop[int])
	source := newShelf(1)
	one, s := oddSink(endings[0], nil, false)
	together, _ := oddSink(endings[0], nil, true)
	for name, ctx := range map[string]context.Context{"nil": nil, "a nil pointer": (*wrapped)(nil)} {
		for at, err := range map[string]error{
			"Start":           courier.NewPollingCoordinator(source, ok, quiet).Start(ctx),
			"Start of stream": courier.NewStreamingCoordinator(source, ok, quiet).Start(ctx),
			"RunOnce":         courier.RunOnce(ctx, func(context.Context) ([]int, error) { panic("fetched") }, nop[int], nop[[]int], quiet),
			"Stop":            courier.NewPollingCoordinator(source, ok, quiet).Stop(ctx),
			"Redrive":         second(courier.Redrive(ctx, courier.DLQ[int](queueOf(1)), one, nil)),
		} {
			var bad *courier.ConfigError
			require.ErrorAs(t, err, &bad, "%s %s", at, name)
			require.Equal(t, "ctx", bad.Field)
		}
		for _, err := range courier.Letters(ctx, courier.DLQ[int](queueOf(1))) {
			require.ErrorIs(t, err, courier.ErrConfig)
		}
	}
	var none context.Context
	for _, p := range pipelines[1:] {
		for _, a := range []courier.Applier[int]{one, together} {
			stack := p.wrap(a)
			for _, err := range []error{stack.Apply(none, 1), asBatch(stack).ApplyBatch(none, []int{1, 2})} {
				require.ErrorIs(t, err, courier.ErrConfig, p.name)
				require.ErrorContains(t, err, "ctx", p.name)
			}
		}
	}
	require.Zero(t, s.called())
	require.Zero(t, source.fetchCount())

	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1})
	_, err := b.Acquire(none)
	require.ErrorIs(t, err, courier.ErrConfig)
	permit, err := b.Acquire(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, b.Report(none, permit, errTest), courier.ErrOpen)
	require.Equal(t, courier.ClassRetryable, courier.Classify(none, errTest))
}

func second[T any](_ T, err error) error { return err }
