package courier_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// keyed is a record of a key.
type keyed struct {
	key string
	n   int
}

func TestQ8_LaterRecordsOfAParkedKeyArePassedToTheQueue(t *testing.T) {
	for _, form := range []string{"one by one", "batch"} {
		t.Run(form, func(t *testing.T) {
			bad := map[int]bool{1: true}
			var s courier.Applier[keyed]
			var applied func() []keyed
			fail := func(_ context.Context, r keyed, _ int) error {
				if bad[r.n] {
					return errTest
				}
				return nil
			}
			one := &sink[keyed]{fail: fail}
			s, applied = one, one.got
			if form == "batch" {
				many := &batchSink[keyed]{sink: sink[keyed]{fail: fail}}
				many.failBatch = func(_ context.Context, records []keyed, _ int) error {
					var list courier.BatchError
					for i, r := range records {
						if bad[r.n] {
							list.Add(i, errTest)
						}
					}
					return list.ErrorOrNil()
				}
				s, applied = many, many.got
			}
			q := &courier.MemoryDLQ[keyed]{}
			stack := courier.NewDLQApplier(s, courier.DLQ[keyed](q), courier.DLQPolicy[keyed]{Key: func(r keyed) string { return r.key }})
			apply := func(records ...keyed) {
				t.Helper()
				if form == "batch" {
					require.NoError(t, stack.(courier.BatchApplier[keyed]).ApplyBatch(t.Context(), records))
					return
				}
				for _, r := range records {
					require.NoError(t, stack.Apply(t.Context(), r))
				}
			}
			apply(keyed{"a", 1}, keyed{"b", 2}, keyed{"a", 3}, keyed{"", 4}, keyed{"b", 5})
			apply(keyed{"a", 6}, keyed{"", 7})
			require.ElementsMatch(t, []keyed{{"b", 2}, {"", 4}, {"b", 5}, {"", 7}}, applied())
			letters, _ := q.Receive(t.Context(), 10)
			require.Len(t, letters, 3)
			require.Equal(t, []keyed{{"a", 1}, {"a", 3}, {"a", 6}}, []keyed{letters[0].Record, letters[1].Record, letters[2].Record})
			require.Equal(t, courier.ReasonKeyParked, letters[2].Reason)
			require.ErrorIs(t, letters[2].Error, courier.ErrKeyParked)
			require.Zero(t, letters[2].Attempts)
			require.Equal(t, "a", letters[2].Key)

			// As long as the first fails the others stay behind it.
			result, err := courier.Redrive(t.Context(), q, s, nil)
			require.NoError(t, err)
			require.Equal(t, courier.RedriveResult{Attempted: 1, Failed: 1, Left: 2}, result)
			only6 := func(l courier.DeadLetter[keyed]) bool { return l.Record.n == 6 }
			result, err = courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[keyed]{Match: only6})
			require.NoError(t, err)
			require.Zero(t, result.Attempted, "an earlier one of the key stays")

			clear(bad)
			result, err = courier.Redrive(t.Context(), q, s, nil)
			require.NoError(t, err)
			require.Equal(t, 3, result.Succeeded)
			require.Equal(t, []keyed{{"a", 1}, {"a", 3}, {"a", 6}}, applied()[4:], "in order")
			apply(keyed{"a", 8})
			require.Equal(t, keyed{"a", 8}, applied()[7], "the key is free")
		})
	}
}

// each branch of a fan-out owes a record, and keeps the order of a key, by
// itself, also when they share a queue: once the cause is mended, the letters of
// each branch take to it what it lacks.
func TestQ6_TwoBranchesParkOneRecordInOneQueue(t *testing.T) {
	byName := func() courier.DLQ[keyed] {
		return &courier.MemoryDLQ[keyed]{Identity: func(r keyed) string { return fmt.Sprint(r.n) }}
	}
	records := []keyed{{"k", 10}, {"k", 11}, {"k", 12}, {"l", 20}, {"m", 30}}
	for queue, open := range map[string]func() (a, b courier.DLQ[keyed]){
		"by identity": func() (a, b courier.DLQ[keyed]) { q := byName(); return q, q },
		"of letters":  func() (a, b courier.DLQ[keyed]) { q := &courier.MemoryDLQ[keyed]{}; return q, q },
		"one each":    func() (a, b courier.DLQ[keyed]) { return byName(), byName() },
	} {
		for _, form := range []string{"one by one", "batches"} {
			for _, key := range []func(keyed) string{nil, func(r keyed) string { return r.key }} {
				t.Run(fmt.Sprintf("%s, %s, %s", queue, form, choose(key != nil, "by key", "no key")), func(t *testing.T) {
					qa, qb := open()
					// The record 10 is bad for a, 11 for b, and 20 for both.
					bad := map[string]func(context.Context, keyed, int) error{}
					for branch, records := range map[string][]int{"a": {10, 20}, "b": {11, 20}} {
						bad[branch] = func(_ context.Context, r keyed, _ int) error {
							if slices.Contains(records, r.n) {
								return courier.Permanent(errTest)
							}
							return nil
						}
					}
					sinks := map[string]*sink[keyed]{"a": {fail: bad["a"]}, "b": {fail: bad["b"]}}
					branch := func(name string, q courier.DLQ[keyed]) courier.Branch[keyed] {
						var to courier.Applier[keyed] = sinks[name]
						if form == "batches" {
							to = eachOfBatch[keyed]{to}
						}
						return courier.Branch[keyed]{Name: name, Applier: courier.NewDLQApplier(to, q,
							courier.DLQPolicy[keyed]{Branch: name, Key: key, MaxParkRate: courier.AnyParkRate})}
					}
					fan := courier.NewFanOutFromConfig(courier.FanOutConfig[keyed]{Branches: []courier.Branch[keyed]{branch("a", qa), branch("b", qb)}})
					for range 2 { // the mark was lost
						require.NoError(t, fan.(courier.BatchApplier[keyed]).ApplyBatch(t.Context(), records))
					}
					if key == nil {
						require.Contains(t, sinks["b"].got(), keyed{"k", 12}, "of which nothing failed")
						require.Contains(t, sinks["b"].got(), keyed{"k", 10})
					} else {
						require.Contains(t, sinks["b"].got(), keyed{"k", 10}, "only a has the key parked from here on")
						require.NotContains(t, sinks["b"].got(), keyed{"k", 12}, "b has it parked from 11 on")
					}
					require.NotContains(t, sinks["a"].got(), keyed{"k", 10})

					mended := map[string]*sink[keyed]{"a": {}, "b": {}}
					for name, q := range map[string]courier.DLQ[keyed]{"a": qa, "b": qb} {
						mine := func(l courier.DeadLetter[keyed]) bool { return l.Branch == name }
						_, err := courier.Redrive(t.Context(), q, mended[name], &courier.RedriveConfig[keyed]{Match: mine})
						require.NoError(t, err)
						got := append(sinks[name].got(), mended[name].got()...)
						require.Subset(t, got, records)
						if first := unique(got); key != nil {
							slices.SortStableFunc(first, func(a, b keyed) int { return strings.Compare(a.key, b.key) })
							require.True(t, slices.IsSortedFunc(first, func(a, b keyed) int { return a.n - b.n }), "in the order of each key: %v", got)
						}
					}
					require.Empty(t, recordsLeft(t, qa))
					require.Empty(t, recordsLeft(t, qb))
				})
			}
		}
	}
}

// what one branch has parked of a key holds back no record of the other.
func TestQ8_AKeyIsParkedInItsBranchAlone(t *testing.T) {
	q := &courier.MemoryDLQ[keyed]{Identity: func(r keyed) string { return fmt.Sprint(r.n) }}
	into := func(branch string, to courier.Applier[keyed]) courier.BatchApplier[keyed] {
		policy := courier.DLQPolicy[keyed]{Branch: branch, Key: func(r keyed) string { return r.key }}
		return courier.NewDLQApplier(to, courier.DLQ[keyed](q), policy).(courier.BatchApplier[keyed])
	}
	bad := &sink[keyed]{fail: func(context.Context, keyed, int) error { return courier.Permanent(errTest) }}
	well := &batchSink[keyed]{}
	a, ab := into("a", bad), into("ab", well)
	require.NoError(t, a.Apply(t.Context(), keyed{"bk", 1}))
	require.NoError(t, ab.Apply(t.Context(), keyed{"k", 2}))
	require.NoError(t, ab.Apply(t.Context(), keyed{"bk", 3}))
	require.NoError(t, ab.ApplyBatch(t.Context(), []keyed{{"bk", 4}, {"bk", 5}}))
	require.Equal(t, []keyed{{"k", 2}, {"bk", 3}, {"bk", 4}, {"bk", 5}}, well.got())
	require.NoError(t, a.Apply(t.Context(), keyed{"bk", 3}))
	require.Equal(t, []keyed{{"bk", 1}, {"bk", 3}}, recordsLeft(t, q))
	// And the letter that says no more than that stands beside the other branch's.
	require.NoError(t, into("ab", bad).Apply(t.Context(), keyed{"bk", 3}))
	require.Len(t, recordsLeft(t, q), 3)
}

func recordsLeft(t *testing.T, q courier.DLQ[keyed]) (records []keyed) {
	t.Helper()
	for l, err := range courier.Letters(t.Context(), q) {
		require.NoError(t, err)
		records = append(records, l.Record)
	}
	return records
}

// unique are the records without what comes again.
func unique(records []keyed) (first []keyed) {
	for _, r := range records {
		if !slices.Contains(first, r) {
			first = append(first, r)
		}
	}
	return first
}

func TestQ8_WithoutAnAnswerRecordsStayPending(t *testing.T) {
	s := &batchSink[keyed]{}
	q := &mute{&courier.MemoryDLQ[keyed]{}}
	stack := courier.NewDLQApplier[keyed](s, q, courier.DLQPolicy[keyed]{Key: func(r keyed) string { return r.key }})
	err := stack.Apply(t.Context(), keyed{"a", 1})
	require.ErrorIs(t, err, errTest)
	require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
	err = stack.(courier.BatchApplier[keyed]).ApplyBatch(t.Context(), []keyed{{"a", 1}, {"", 2}})
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 1)
	require.Equal(t, []keyed{{"", 2}}, s.got())
}

type mute struct{ *courier.MemoryDLQ[keyed] }

func (*mute) ParkedKeys(context.Context, string, []string) ([]string, error) { return nil, errTest }

func TestQ8_ARefusedRecordHoldsBackThoseOfItsKeyInTheBatch(t *testing.T) {
	s := &batchSink[keyed]{failBatch: func(_ context.Context, records []keyed, _ int) error {
		if records[0].n == 1 {
			return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: errTest}}}
		}
		return nil
	}}
	q := &courier.MemoryDLQ[keyed]{Capacity: 1}
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[keyed]{})) // full
	stack := courier.NewDLQApplier[keyed](s, q, courier.DLQPolicy[keyed]{Key: func(r keyed) string { return r.key }})
	err := stack.(courier.BatchApplier[keyed]).ApplyBatch(t.Context(), []keyed{{"a", 1}, {"b", 2}, {"a", 3}})
	require.ErrorIs(t, err, courier.ErrDLQFull)
	require.Equal(t, []keyed{{"b", 2}}, s.got())
}

func TestQ8_AKeyThatPanicsIsTheRecordsFailure(t *testing.T) {
	s := &batchSink[keyed]{}
	q := &courier.MemoryDLQ[keyed]{}
	stack := courier.NewDLQApplier[keyed](s, q, courier.DLQPolicy[keyed]{Key: func(r keyed) string {
		if r.n == 1 {
			panic("boom")
		}
		return r.key + "\xff"
	}})
	require.NoError(t, stack.(courier.BatchApplier[keyed]).ApplyBatch(t.Context(), []keyed{{"a", 1}, {"b", 2}, {"a", 3}}))
	require.NoError(t, stack.Apply(t.Context(), keyed{"a", 1}))
	require.Equal(t, []keyed{{"b", 2}, {"a", 3}}, s.got())
	letters, _ := q.Receive(t.Context(), 10)
	require.Len(t, letters, 2)
	require.ErrorIs(t, letters[0].Error, courier.ErrPanic)
}

func TestQ9_APipelineThatParksTooMuchPauses(t *testing.T) {
	for _, batch := range []bool{false, true} {
		t.Run(batched(batch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(1000)...)
				s := &batchSink[int]{sink: sink[int]{fail: func(context.Context, int, int) error { return courier.Permanent(errTest) }}}
				s.failBatch = func(context.Context, []int, int) error { return courier.Permanent(errTest) }
				var applier courier.Applier[int] = &s.sink
				if batch {
					applier = s
				}
				q := &courier.MemoryDLQ[int]{}
				var logged strings.Builder
				stack := courier.NewDLQApplier(applier, courier.DLQ[int](q), courier.DLQPolicy[int]{})
				stop := start(t, courier.NewPollingCoordinator(source, stack, courier.WithLogger(textLogger(&logged)), courier.WithFastPolling()))
				time.Sleep(30 * time.Second)
				synctest.Wait()
				require.Equal(t, 20, countOf(q), "a few poison records at the start are parked; a whole source is not")
				fetches := source.fetchCount()
				time.Sleep(25 * time.Second)
				synctest.Wait()
				require.Equal(t, fetches, source.fetchCount(), "the intake stands still")
				time.Sleep(30 * time.Second)
				synctest.Wait()
				require.Equal(t, 40, countOf(q), "and goes on a minute later")
				require.NoError(t, stop())
				require.Contains(t, logged.String(), "20 of the last 20 records went to the dead letter queue")
				require.Equal(t, 1000, countOf(q)+len(source.left()))
			})
		})
	}
}

func TestQ9_TheErrorSaysWhenToGoOn(t *testing.T) {
	clock := courierttest.NewClock()
	stack := courier.NewDLQApplier(always(errTest), courier.DLQ[int](&courier.MemoryDLQ[int]{}),
		courier.DLQPolicy[int]{MinParked: 2, ParkWindow: 10, Clock: clock})
	require.NoError(t, stack.Apply(t.Context(), 1))
	require.NoError(t, stack.Apply(t.Context(), 2))
	for range 2 {
		err := stack.Apply(t.Context(), 3)
		require.ErrorIs(t, err, courier.ErrParkRate)
		require.ErrorIs(t, err, courier.ErrPark)
		require.ErrorIs(t, err, errTest)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
		var rate *courier.ParkRateError
		require.ErrorAs(t, err, &rate)
		require.Equal(t, clock.Now().Add(time.Minute), rate.RetryAt())
		require.ErrorContains(t, err, "2 of the last 2 records went to the dead letter queue, so no record is parked until 2000-01-01T00:01:00Z")
	}
}

func TestQ9_OffIsExplicitAndRefusalsOfTheQueueDoNotCount(t *testing.T) {
	q := &courier.MemoryDLQ[int]{}
	stack := courier.NewDLQApplier(always(errTest), courier.DLQ[int](q), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
	for i := range 500 {
		require.NoError(t, stack.Apply(t.Context(), i))
	}
	require.Equal(t, 500, countOf(q))

	full := courier.NewDLQApplier(always(errTest), courier.DLQ[int](&dlqFunc{func(context.Context, courier.DeadLetter[int]) error { return courier.ErrDLQFull }}), courier.DLQPolicy[int]{})
	for i := range 500 {
		require.NotErrorIs(t, full.Apply(t.Context(), i), courier.ErrParkRate)
	}

	well := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r%2 == 0 {
			return errTest
		}
		return nil
	}}
	half, _ := courier.WithDLQ[int](well)
	for i := range 1000 {
		require.NoError(t, half.Apply(t.Context(), i))
	}
}

func TestQ10_OnParkSeesTheLetterAndMayPanic(t *testing.T) {
	for name, end := range map[string]func(){"returns": func() {}, "panics": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			type ctxKey struct{}
			var seen []courier.DeadLetter[int]
			policy := courier.DLQPolicy[int]{Branch: "search", OnPark: func(ctx context.Context, letter courier.DeadLetter[int]) {
				require.Equal(t, 1, ctx.Value(ctxKey{}))
				seen = append(seen, letter)
				end()
			}}
			stack, dlq := courier.ResilientApplier(always(courier.Permanent(errTest)), &courier.ResilientConfig[int]{Parking: policy})
			require.NoError(t, stack.Apply(context.WithValue(t.Context(), ctxKey{}, 1), 7))
			require.Len(t, seen, 1)
			require.Equal(t, 7, seen[0].Record)
			require.Equal(t, "search", seen[0].Branch)
			n, err := dlq.Count(t.Context())
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	}
}

func TestQ5_TheFirstFailureIsWhenTheRetriesSawIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.MaxAttempts = 3
		began := time.Now()
		applier, dlq := courier.WithDLQ(courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			time.Sleep(time.Second)
			return errTest
		}), policy))
		require.NoError(t, applier.Apply(t.Context(), 1))
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Equal(t, began.Add(time.Second), parked[0].FirstFailedAt)
		require.Equal(t, time.Now(), parked[0].FailedAt)
	})
}

func TestDLQPolicy_BadValuesAreNamed(t *testing.T) {
	q := &courier.MemoryDLQ[int]{}
	for field, policy := range map[string]courier.DLQPolicy[int]{
		"DLQPolicy.MaxParkRate": {MaxParkRate: 1.5},
		"DLQPolicy.ParkWindow":  {ParkWindow: -1},
		"DLQPolicy.MinParked":   {MinParked: 101},
		"DLQPolicy.ParkPause":   {ParkPause: -1},
		"DLQPolicy.Branch":      {Branch: "a\x00"},
	} {
		err := courier.NewDLQApplier(always(errTest), courier.DLQ[int](q), policy).Apply(t.Context(), 1)
		require.ErrorIs(t, err, courier.ErrConfig)
		require.ErrorContains(t, err, field)
	}
	err := courier.NewDLQApplier(always(errTest), courier.DLQ[int](&dlqFunc{}), courier.DLQPolicy[int]{Key: func(int) string { return "" }}).Apply(t.Context(), 1)
	require.ErrorContains(t, err, "DLQPolicy.Key cannot be used with a *courier_test.dlqFunc")
	require.Zero(t, countOf(q))
}

func TestDeadLetter_ManyGoroutinesParkAndRedrive(t *testing.T) {
	q := &courier.MemoryDLQ[int]{Identity: func(r int) string { return fmt.Sprint(r) }}
	stack := courier.NewDLQApplier(always(errTest), courier.DLQ[int](q), courier.DLQPolicy[int]{
		MaxParkRate: courier.AnyParkRate, Key: func(r int) string { return fmt.Sprint(r % 7) },
	})
	var mu sync.Mutex
	applied := map[int]bool{}
	take := courier.ProcessFunc(func(_ context.Context, r int) error {
		mu.Lock()
		defer mu.Unlock()
		applied[r] = true
		return nil
	})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				_ = stack.Apply(t.Context(), w*100+i)
			}
		})
	}
	for range 3 {
		wg.Go(func() { _, _ = courier.Redrive(t.Context(), q, take, nil) })
	}
	wg.Wait()
	_, err := courier.Redrive(t.Context(), q, take, nil)
	require.NoError(t, err)
	require.Len(t, applied, 800, "none is lost")
	require.Zero(t, countOf(q))
}

// A record that a breaker interrupted keeps the attempts it has used when the
// rest of its batch is parked behind others.
func TestQ8_AnOutageParksNoHealthyRecordOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), outage: time.Minute, poison: 3, applied: map[int]int{}}
		q := &courier.MemoryDLQ[int]{Identity: func(r int) string { return fmt.Sprint(r) }}
		stack, _ := courier.ResilientApplier[int](batches{d}, &courier.ResilientConfig[int]{
			DLQ: q, Parking: courier.DLQPolicy[int]{Key: func(r int) string { return fmt.Sprint(r % 10) }},
		})
		source := newShelf(numbers(40)...)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet, courier.WithBatchSize(20)))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		letters, _ := q.Receive(t.Context(), 100)
		var parked []int
		for _, l := range letters {
			parked = append(parked, l.Record)
			require.Equal(t, l.Record != 3, l.Reason == courier.ReasonKeyParked, "%+v", l)
		}
		require.Contains(t, parked, 3)
		require.Equal(t, 40, len(parked)+len(d.applied))
	})
}

// the guard is about records that were decided.
func TestQ9_WhatTheGuardCounts(t *testing.T) {
	keyed := courier.DLQPolicy[int]{Key: func(r int) string { return fmt.Sprint(r) }}
	t.Run("skipped records are decided", func(t *testing.T) {
		for _, policy := range []courier.DLQPolicy[int]{{}, keyed} {
			applier := courier.NewDLQApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
				if r%40 == 0 {
					return courier.Permanent(errTest)
				}
				return courier.Skip(errTest)
			}), courier.DLQ[int](&courier.MemoryDLQ[int]{}), policy)
			for i := range 4000 {
				require.NotErrorIs(t, applier.Apply(t.Context(), i), courier.ErrPark)
			}
		}
	})
	t.Run("the records of a batch count before its failures", func(t *testing.T) {
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
			var e courier.BatchError
			for i := range 25 {
				e.Add(i, courier.Permanent(errTest))
			}
			return &e
		}}
		for _, policy := range []courier.DLQPolicy[int]{{}, keyed} {
			queue := &courier.MemoryDLQ[int]{}
			applier := courier.NewDLQApplier[int](s, courier.DLQ[int](queue), policy)
			require.NoError(t, asBatch(applier).ApplyBatch(t.Context(), numbers(100)))
			require.Equal(t, 25, countOf(queue))
		}
	})
}
