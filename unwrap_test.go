package courier_test

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// shown is a decorator of the user's own that shows what is inside it.
type shown[T any] struct{ inner courier.Applier[T] }

func (s shown[T]) Apply(ctx context.Context, record T) error { return s.inner.Apply(ctx, record) }
func (s shown[T]) Unwrap() courier.Applier[T]                { return s.inner }

func show[T any](a courier.Applier[T]) courier.Applier[T] { return shown[T]{a} }

// What two decorators may not do together they may not do with some of the user's
// around, between and inside them.
func TestUnwrap_MisplacedDecoratorsAreFound(t *testing.T) {
	for _, outer := range decorators {
		for _, inner := range decorators {
			stack := show(outer.wrap(show(show(inner.wrap(show(courier.ProcessFunc(nop[string])))))))
			err := courier.NewPollingCoordinator(newShelf[string](), stack, quiet).RunOnce(t.Context())
			if want := orders[outer.name][inner.name]; want != "" {
				require.ErrorIs(t, err, courier.ErrConfig, "%s around %s", outer.name, inner.name)
				require.ErrorContains(t, err, want)
			} else {
				require.NoError(t, err, "%s around %s", outer.name, inner.name)
			}
		}
	}
}

// Everybody who takes an applier is told of what is wrong inside the user's decorators.
func TestUnwrap_AFaultInsideIsReported(t *testing.T) {
	bad := show(show(courier.NewRetryableApplier(courier.ProcessFunc(nop[int]), courier.RetryPolicy{MaxAttempts: -1})))
	source := newShelf(1)
	queue := &courier.MemoryDLQ[int]{}
	resilient, _ := courier.ResilientApplier(bad, nil)
	_, redrive := courier.Redrive(t.Context(), courier.DLQ[int](queue), bad, nil)
	for name, err := range map[string]error{
		"polling":   courier.NewPollingCoordinator(source, bad).Start(t.Context()),
		"RunOnce":   courier.NewPollingCoordinator(source, bad).RunOnce(t.Context()),
		"streaming": courier.NewStreamingCoordinator(source, bad).Start(t.Context()),
		"decorator": courier.NewDLQApplier(bad, courier.DLQ[int](queue), courier.DLQPolicy[int]{}).Apply(t.Context(), 1),
		"resilient": resilient.Apply(t.Context(), 1),
		"fan-out":   courier.NewFanOutApplier(courier.ProcessFunc(nop[int]), bad).Apply(t.Context(), 1),
		"redrive":   redrive,
	} {
		require.ErrorIs(t, err, courier.ErrConfig, name)
		require.ErrorContains(t, err, "RetryPolicy.MaxAttempts is -1", name)
	}
	require.Zero(t, source.fetchCount())
}

// A user's decorator around a stack, inside it, or in a branch, takes nothing from
// what a coordinator tells: the breakers, their pause, and the queue in memory.
func TestUnwrap_ACoordinatorSeesThroughUsersDecorators(t *testing.T) {
	resilient := func(a courier.Applier[int]) courier.Applier[int] {
		a, _ = courier.ResilientApplier(a, nil)
		return a
	}
	stacks := map[string]func(courier.Applier[int]) courier.Applier[int]{
		"around":   func(a courier.Applier[int]) courier.Applier[int] { return show(resilient(a)) },
		"twice":    func(a courier.Applier[int]) courier.Applier[int] { return show(show(resilient(show(a)))) },
		"a branch": func(a courier.Applier[int]) courier.Applier[int] { return courier.NewFanOutApplier(show(resilient(a))) },
		"a fan-out": func(a courier.Applier[int]) courier.Applier[int] {
			return show(courier.NewFanOutApplier(courier.ProcessFunc(nop[int]), show(resilient(a))))
		},
		"between": func(a courier.Applier[int]) courier.Applier[int] {
			a, _ = courier.WithDLQ(show(courier.NewRetryableApplier(show(courier.WithCircuitBreaker(a)), courier.RetryPolicy{})))
			return a
		},
		"a decoder": func(a courier.Applier[int]) courier.Applier[int] {
			return show(courier.NewDecodingApplier(show(resilient(a)), func(n int) (int, error) { return n, nil }))
		},
	}
	for name, stack := range stacks {
		t.Run(name, func(t *testing.T) {
			inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
				if name == "a decoder" {
					return // in which a queue is refused, see below
				}
				var log bytes.Buffer
				c, run := with(stack(always(errTest)), numbers(20), courier.WithLogger(timeless(&log)))
				require.Len(t, c.Stats().Breakers, 1)
				run(time.Second)
				if shape == "RunOnce" {
					require.Contains(t, log.String(), "the dead letter queue is in memory")
					return
				}
				red := 0
				for range 60 {
					if err := c.Ready(); err != nil {
						require.ErrorIs(t, err, courier.ErrOpen)
						red++
					}
					run(time.Second)
				}
				require.Greater(t, red, 50)
			})
			err := courier.NewPollingCoordinator(newShelf[int](), stack(courier.ProcessFunc(nop[int])), quiet).RunOnce(t.Context())
			if name == "a decoder" {
				require.ErrorContains(t, err, undecoded)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// What asks for all breakers of a stack, or all its queues, asks those too.
func TestUnwrap_OfBreakersAndQueues(t *testing.T) {
	b := newBreaker(1)
	process := courier.ProcessFunc(nop[string])
	refuses(t, courier.NewCircuitBreakerApplier(show(courier.NewCircuitBreakerApplier(process, b)), b), "is in the stack twice")

	q := &courier.MemoryDLQ[string]{}
	parks := show(courier.NewDLQApplier(process, courier.DLQ[string](q), courier.DLQPolicy[string]{}))
	refuses(t, courier.NewFanOutApplier(parks, parks), "parks in the same dead letter queue")
	_, err := courier.Redrive(t.Context(), courier.DLQ[string](q), parks, nil)
	require.ErrorContains(t, err, "which would go round in a loop")

	var log bytes.Buffer
	require.NoError(t, courier.NewPollingCoordinator(newShelf[string](), parks, courier.WithLogger(timeless(&log))).RunOnce(t.Context()))
	require.Contains(t, log.String(), "has neither a retry nor a breaker inside")
	log.Reset()
	parks = courier.NewDLQApplier(show(courier.WithRetry(process)), courier.DLQ[string](q), courier.DLQPolicy[string]{})
	require.NoError(t, courier.NewPollingCoordinator(newShelf[string](), parks, courier.WithLogger(timeless(&log))).RunOnce(t.Context()))
	require.Empty(t, log.String())
}

// The decorators of this package show what they are around in the same way.
func TestUnwrap_OfEveryDecorator(t *testing.T) {
	inner := courier.Applier[string](&sink[string]{})
	for _, d := range decorators {
		if strings.HasSuffix(d.name, "fan-out") { // of which each branch is one
			continue
		}
		a := d.wrap(inner)
		for a != inner {
			u, ok := a.(interface {
				Unwrap() courier.Applier[string]
			})
			require.True(t, ok, "%s: %T", d.name, a)
			a = u.Unwrap()
		}
	}
}

// A decorator whose Unwrap is of no use is an applier as any other.
func TestUnwrap_ThatIsOfNoUse(t *testing.T) {
	for name, unwrap := range map[string]func(u *useless) courier.Applier[int]{
		"nil":    func(*useless) courier.Applier[int] { return nil },
		"itself": func(u *useless) courier.Applier[int] { return u },
		"panics": func(*useless) courier.Applier[int] { panic("no") },
	} {
		t.Run(name, func(t *testing.T) {
			source := newShelf(1)
			require.NoError(t, courier.NewPollingCoordinator(source, courier.WithRetry[int](&useless{unwrap}), quiet).RunOnce(t.Context()))
			require.Empty(t, source.left())
		})
	}
}

type useless struct {
	unwrap func(u *useless) courier.Applier[int]
}

func (*useless) Apply(context.Context, int) error { return nil }
func (u *useless) Unwrap() courier.Applier[int]   { return u.unwrap(u) }

// audited is a type of the user's that embeds a decorator.
type audited struct {
	*courier.KeyedBreaker[int]
	seen int
}

func (a *audited) Apply(ctx context.Context, record int) error {
	if a.seen++; a.seen == 1 {
		panic("the audit log is not open")
	}
	return a.KeyedBreaker.Apply(ctx, record)
}

func (a *audited) ApplyBatch(ctx context.Context, records []int) error {
	a.seen += len(records)
	return a.KeyedBreaker.ApplyBatch(ctx, records)
}

// D9: what a user's type adds to a decorator that it embeds is code of the user's.
func TestUnwrap_ATypeThatEmbedsADecorator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &audited{KeyedBreaker: courier.NewKeyedCircuitBreakerApplier(&batchSink[int]{}, strconv.Itoa, courier.BreakerPolicy{})}
		stack := courier.NewRetryableApplier[int](a, plain)
		require.NoError(t, stack.Apply(t.Context(), 1))
		require.Equal(t, 2, a.seen, "the panic was a failed attempt")
		require.NoError(t, asBatch(stack).ApplyBatch(t.Context(), numbers(4)))
		require.Equal(t, 6, a.seen)
		require.NoError(t, courier.NewPollingCoordinator(newShelf(numbers(4)...), a, quiet).RunOnce(t.Context()))
		require.Equal(t, 10, a.seen)
	})
}
