package courier_test

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// decorators are all that may be around an applier, each with what it has to be given.
var decorators = []struct {
	name string
	wrap func(courier.Applier[string]) courier.Applier[string]
}{
	{"retry", courier.WithRetry[string]},
	{"breaker", courier.WithCircuitBreaker[string]},
	{"timeout", func(a courier.Applier[string]) courier.Applier[string] {
		return courier.NewAttemptTimeoutApplier(a, time.Second, nil)
	}},
	{"DLQ", func(a courier.Applier[string]) courier.Applier[string] {
		return courier.NewDLQApplier(a, courier.DLQ[string](lot), anyRate)
	}},
	{"fan-out", func(a courier.Applier[string]) courier.Applier[string] {
		return courier.NewFanOutApplier(courier.ProcessFunc(nop[string]), a)
	}},
	{"cloning fan-out", func(a courier.Applier[string]) courier.Applier[string] {
		return courier.NewFanOutFromConfig(courier.FanOutConfig[string]{
			Branches: []courier.Branch[string]{{Name: "a", Applier: a}, {Name: "b", Applier: courier.ProcessFunc(nop[string]), Optional: true}},
			Clone:    strings.Clone, OnBranchFailure: func(context.Context, string, string, error) {},
		})
	}},
	{"decoder", func(a courier.Applier[string]) courier.Applier[string] {
		return courier.NewDecodingApplier(a, func(row string) (string, error) {
			if strings.HasPrefix(row, "undecodable") {
				return "", errTest
			}
			return row, nil
		})
	}},
	{"resilient", func(a courier.Applier[string]) courier.Applier[string] {
		a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[string]{DLQ: lot, Parking: anyRate})
		return a
	}},
	{"resilient with a timeout", func(a courier.Applier[string]) courier.Applier[string] {
		a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[string]{DLQ: lot, Parking: anyRate, AttemptTimeout: time.Second})
		return a
	}},
}

// lot is where the decorators park, and anyRate has no guard against parking much.
var (
	lot     = &courier.MemoryDLQ[string]{}
	anyRate = courier.DLQPolicy[string]{MaxParkRate: courier.AnyParkRate}
)

// orders is every pair of decorators, the row around the column: "" is allowed, else
// what the error says besides the two.
var orders = map[string]map[string]string{
	"retry": {
		"retry": twice, "breaker": "", "timeout": "", "DLQ": unseen, "fan-out": "", "cloning fan-out": "", "decoder": "",
		"resilient": unseen, "resilient with a timeout": unseen,
	},
	"breaker": {
		"retry": oneCall, "breaker": "", "timeout": "", "DLQ": unseen, "fan-out": "", "cloning fan-out": "", "decoder": "",
		"resilient": unseen, "resilient with a timeout": unseen,
	},
	"timeout": {
		"retry": together, "breaker": blind, "timeout": "", "DLQ": hung, "fan-out": "", "cloning fan-out": "", "decoder": "",
		"resilient": hung, "resilient with a timeout": hung,
	},
	"DLQ": {
		"retry": "", "breaker": "", "timeout": "", "DLQ": empty, "fan-out": "", "cloning fan-out": "", "decoder": "",
		"resilient": empty, "resilient with a timeout": empty,
	},
	"fan-out":         allowedAll,
	"cloning fan-out": allowedAll,
	"decoder": {
		"retry": "", "breaker": "", "timeout": "", "DLQ": undecoded, "fan-out": "", "cloning fan-out": "", "decoder": "",
		"resilient": undecoded, "resilient with a timeout": undecoded,
	},
	"resilient": {
		"retry": brought, "breaker": "", "timeout": "", "DLQ": brought, "fan-out": "", "cloning fan-out": "", "decoder": "",
		"resilient": brought, "resilient with a timeout": brought,
	},
	"resilient with a timeout": {
		"retry": brought, "breaker": blind, "timeout": "", "DLQ": brought, "fan-out": "", "cloning fan-out": "", "decoder": "",
		"resilient": brought, "resilient with a timeout": brought,
	},
}

var allowedAll = map[string]string{
	"retry": "", "breaker": "", "timeout": "", "DLQ": "", "fan-out": "", "cloning fan-out": "", "decoder": "",
	"resilient": "", "resilient with a timeout": "",
}

// What the errors say.
const (
	twice     = "leave one of the two out"
	unseen    = "sees no failure: put the"
	oneCall   = "put the retry around the breaker"
	together  = "put the timeout inside the retry"
	blind     = "put the timeout inside the breaker"
	hung      = "put the timeout inside the queue"
	empty     = "leave one of the two out"
	undecoded = "put the queue around the decoder"
	brought   = "leave the other one out"
)

// Every order of two decorators is allowed, and then loses nothing, or is refused
// before anything is fetched with an error that says how to mend it.
func TestComposition_EveryPair(t *testing.T) {
	for _, outer := range decorators {
		for _, inner := range decorators {
			t.Run(outer.name+" around "+inner.name, func(t *testing.T) {
				want, known := orders[outer.name][inner.name]
				require.True(t, known)
				if want == "" {
					for _, batches := range []bool{false, true} {
						for _, stream := range []bool{false, true} {
							deliversOrParks(t, outer.name+" "+inner.name, func(a courier.Applier[string]) courier.Applier[string] { return outer.wrap(inner.wrap(a)) }, batches, stream)
						}
					}
					return
				}
				refuses(t, outer.wrap(inner.wrap(courier.ProcessFunc(nop[string]))), want)
			})
		}
	}
}

// refuses checks that a stack is refused, by everybody who is asked.
func refuses(t *testing.T, stack courier.Applier[string], want string) {
	t.Helper()
	err := stack.(courier.Validator).Validate()
	require.ErrorIs(t, err, courier.ErrConfig)
	require.ErrorContains(t, err, want)
	require.Equal(t, err, stack.Apply(t.Context(), "1"))
	source := newShelf("1")
	require.Equal(t, err, courier.NewPollingCoordinator(source, stack).Start(t.Context()))
	require.Zero(t, source.fetchCount())
}

// What two decorators may not do together they may not do with a third between
// them, nor in the branch of a fan-out: but for a queue around a fan-out, which gets
// what the branches do not park.
func TestComposition_EveryPairWithAnotherBetween(t *testing.T) {
	for _, outer := range decorators {
		for _, between := range decorators {
			for _, inner := range decorators {
				wrong := orders[outer.name][between.name] != "" || orders[between.name][inner.name] != "" || orders[outer.name][inner.name] != ""
				if outer.name == "DLQ" && strings.HasSuffix(between.name, "fan-out") {
					wrong = false
				}
				stack := outer.wrap(between.wrap(inner.wrap(courier.ProcessFunc(nop[string]))))
				err := stack.(courier.Validator).Validate()
				require.Equal(t, wrong, err != nil, "%s around %s around %s: %v", outer.name, between.name, inner.name, err)
			}
		}
	}
}

// deliversOrParks runs a stack over records of all kinds, and the dead letter queue
// around it where it has none.
func deliversOrParks(t *testing.T, names string, wrap func(courier.Applier[string]) courier.Applier[string], batches, stream bool) {
	courierttest.Bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		calls, applied := map[string]int{}, map[string]int{}
		apply := func(ctx context.Context, record string) error {
			kind, _, _ := strings.Cut(record, " ")
			mu.Lock()
			calls[record]++
			n := calls[record]
			mu.Unlock()
			switch {
			case kind == "permanent":
				return courier.Permanent(errTest)
			case kind == "poison", kind == "flaky" && n == 1:
				return errTest
			case kind == "hanging":
				<-ctx.Done()
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			applied[record]++
			return nil
		}
		a := courier.ProcessFunc(apply)
		if batches {
			a = eachOfBatch[string]{a}
		}
		stack := wrap(a)
		parks := strings.Contains(names, "DLQ") || strings.Contains(names, "resilient")
		if !parks {
			stack = courier.NewDLQApplier(stack, courier.DLQ[string](lot), anyRate)
		}
		require.NoError(t, stack.(courier.Validator).Validate())
		for _, letter := range letters(t, lot) {
			require.NoError(t, lot.Delete(t.Context(), letter.ID))
		}

		records := []string{"ok 1", "permanent 1", "ok 2", "poison 1", "flaky 1", "ok 3", "permanent 2"}
		if strings.Contains(names, "decoder") {
			records = append(records, "undecodable 1", "ok 4", "undecodable 2")
		}
		if strings.Contains(names, "timeout") {
			records = append(records, "hanging 1")
		}
		var r courierttest.Recorder[string]
		var source interface {
			Add(...string)
			Pending() []string
		}
		var run *courierttest.Running
		if stream {
			s := r.StreamSource(records...)
			source, run = s, courierttest.Start(t, courier.NewStreamingCoordinator(s, stack, quiet))
		} else {
			s := r.Source(records...)
			source, run = s, courierttest.Start(t, courier.NewPollingCoordinator(s, stack, quiet))
		}
		for n := range 20 { // others, without which a breaker could not tell poison from an outage
			time.Sleep(time.Minute)
			more := fmt.Sprint("ok 1", n)
			source.Add(more)
			records = append(records, more)
		}
		time.Sleep(10 * time.Minute)
		require.NoError(t, run.Stop())
		require.Empty(t, source.Pending())

		parked := map[string]bool{}
		for _, letter := range letters(t, lot) {
			parked[letter.Record] = true
		}
		for _, record := range records {
			kind, _, _ := strings.Cut(record, " ")
			switch kind {
			case "ok":
				require.Positive(t, applied[record], record)
				require.False(t, parked[record], record)
			case "flaky": // without a retry the queue has the last word
				require.True(t, parked[record] != (applied[record] > 0), record)
				if strings.Contains(names, "retry") || strings.Contains(names, "resilient") {
					require.Positive(t, applied[record], record)
				}
			default:
				require.True(t, parked[record], record)
				require.Zero(t, applied[record], record)
			}
		}
	})
}

func letters(t *testing.T, q courier.DLQ[string]) []courier.DeadLetter[string] {
	letters, err := q.Receive(t.Context(), 1000)
	require.NoError(t, err)
	return letters
}

// A queue around a fan-out gets what fails on the way to the branches' own queues.
func TestComposition_AQueueAroundAFanOutOfQueues(t *testing.T) {
	branch, q := courier.WithDLQ(courier.ProcessFunc(nop[string]))
	fan := courier.NewFanOutFromConfig(courier.FanOutConfig[string]{Branches: []courier.Branch[string]{{Name: "a", Applier: branch}}, Clone: func(r string) string {
		if r == "bad" {
			panic("cannot be copied")
		}
		return r
	}})
	stack, around := courier.WithDLQ(fan)
	source := newShelf("good", "bad")
	require.NoError(t, courier.NewPollingCoordinator(source, stack, quiet).RunOnce(t.Context()))
	require.Empty(t, source.left())
	require.Empty(t, letters(t, q))
	require.Equal(t, "bad", letters(t, around)[0].Record)
}

// B-10: the same breaker twice would find itself half-open; two are two.
func TestComposition_TheSameBreakerTwice(t *testing.T) {
	process := courier.ProcessFunc(nop[string])
	b := newBreaker(3)
	once := courier.NewCircuitBreakerApplier(process, b)
	optional := courier.NewFanOutFromConfig(courier.FanOutConfig[string]{
		Branches:        []courier.Branch[string]{{Name: "a", Applier: process}, {Name: "b", Applier: once, Optional: true}},
		OnBranchFailure: func(context.Context, string, string, error) {},
	})
	for name, inner := range map[string]courier.Applier[string]{"directly": once, "in a branch": courier.NewFanOutApplier(process, once), "in a branch that may do without": optional} {
		t.Run(name, func(t *testing.T) {
			refuses(t, courier.NewCircuitBreakerApplier(inner, b), "is in the stack twice")
			require.NoError(t, courier.NewCircuitBreakerApplier(inner, newBreaker(1)).(courier.Validator).Validate())
		})
	}
}

// The decorators of an applier of the user's own are its own affair.
func TestComposition_WhatIsHiddenIsAllowed(t *testing.T) {
	inside := courier.WithRetry(courier.ProcessFunc(nop[string]))
	stack := courier.WithRetry(courier.ProcessFunc(func(ctx context.Context, r string) error { return inside.Apply(ctx, r) }))
	require.NoError(t, stack.(courier.Validator).Validate())
}

// marksToo is a queue whose Send marks the record at its source, if it says so.
type marksToo struct {
	courier.DLQ[int]
	marks bool
}

func (q marksToo) MarksRecords() bool { return q.marks }

// Letters of two branches in one queue are told apart by the branches' names.
func TestFanOut_BranchesThatParkInOneQueueUnderOneNameAreRefused(t *testing.T) {
	q, other := &courier.MemoryDLQ[int]{}, &courier.MemoryDLQ[int]{}
	into := func(q courier.DLQ[int], branch string) courier.Applier[int] {
		return courier.NewDLQApplier(courier.ProcessFunc(nop[int]), q, courier.DLQPolicy[int]{Branch: branch})
	}
	resilient := func(branch string) courier.Applier[int] {
		a, _ := courier.ResilientApplier(courier.ProcessFunc(nop[int]), &courier.ResilientConfig[int]{DLQ: q, Parking: courier.DLQPolicy[int]{Branch: branch}})
		return a
	}
	once := into(q, "a")
	for name, branches := range map[string][]courier.Applier[int]{
		"no name":                  {into(q, ""), into(q, "")},
		"one name":                 {into(other, "a"), into(q, "a"), into(q, "a")},
		"in a fan-out of a branch": {into(q, "a"), courier.NewFanOutApplier(into(other, "a"), into(q, "a"))},
		"resilient":                {resilient(""), resilient("")},
		"another of the store":     {into(twin{q, 1}, "a"), into(twin{q, 2}, "a")},
		"one applier":              {once, once},
	} {
		t.Run(name, func(t *testing.T) {
			err := courier.NewFanOutApplier(branches...).Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrConfig)
			require.ErrorContains(t, err, "parks in the same dead letter queue as the branch")
			require.ErrorContains(t, err, "DLQPolicy.Branch")
		})
	}
	for name, branches := range map[string][]courier.Applier[int]{
		"names":      {into(q, "a"), into(q, "b"), resilient("")},
		"queues":     {into(q, ""), into(other, "")},
		"one of two": {into(q, ""), courier.ProcessFunc(nop[int])},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, courier.NewFanOutApplier(branches...).Apply(t.Context(), 1))
		})
	}
}

// twin is a queue over the store of others.
type twin struct {
	courier.DLQ[int]
	number int
}

func (q twin) SameQueue(other courier.DeadLetterSink[int]) bool {
	o, ok := other.(twin)
	return ok && o.DLQ == q.DLQ
}

// A branch may not mark what the other branches have not got.
func TestFanOut_ABranchThatWouldMarkTheRecordIsRefused(t *testing.T) {
	process := courier.ProcessFunc(nop[int])
	into := func(marks bool) courier.Applier[int] {
		return courier.NewDLQApplier(process, courier.DLQ[int](marksToo{&courier.MemoryDLQ[int]{}, marks}), courier.DLQPolicy[int]{})
	}
	for name, branch := range map[string]courier.Applier[int]{
		"in a branch":              into(true),
		"inside a decorator":       courier.NewAttemptTimeoutApplier(into(true), time.Second, nil),
		"in a fan-out of a branch": courier.NewFanOutApplier(process, into(true)),
	} {
		t.Run(name, func(t *testing.T) {
			fan := courier.NewFanOutApplier(process, branch)
			require.ErrorIs(t, fan.(courier.Validator).Validate(), courier.ErrConfig)
			require.ErrorContains(t, fan.Apply(t.Context(), 1), "marks the record at its source")
		})
	}
	require.NoError(t, courier.NewFanOutApplier(process, into(false)).(courier.Validator).Validate())
	around := courier.NewDLQApplier(courier.NewFanOutApplier(process, process), courier.DLQ[int](marksToo{&courier.MemoryDLQ[int]{}, true}), courier.DLQPolicy[int]{})
	require.NoError(t, around.(courier.Validator).Validate())
}

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
