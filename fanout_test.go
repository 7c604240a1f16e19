package courier_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// missed notes what OnBranchFailure hears of.
type missed struct {
	mu   sync.Mutex
	list []string
}

func (m *missed) note(_ context.Context, r int, branch string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, fmt.Sprintf("%s/%d: %v", branch, r, err))
}

func (m *missed) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.list
	m.list = nil
	return list
}

// failsOn is a sink that fails some records, for as long as the map says so.
func failsOn(records map[int]error) *sink[int] {
	return &sink[int]{fail: func(_ context.Context, r, _ int) error { return records[r] }}
}

// lists is a batch sink that does.
func lists(records map[int]error) *batchSink[int] {
	s := &batchSink[int]{failBatch: func(_ context.Context, batch []int, _ int) error {
		var e courier.BatchError
		for i, r := range batch {
			if records[r] != nil {
				e.Add(i, records[r])
			}
		}
		return e.ErrorOrNil()
	}}
	s.fail = func(_ context.Context, r, _ int) error { return records[r] }
	return s
}

func fanOutError(t require.TestingT, err error) *courier.FanOutError {
	var fan *courier.FanOutError
	require.ErrorAs(t, err, &fan)
	return fan
}

func TestF1_EveryBranchRunsAndTheErrorNamesTheBranch(t *testing.T) {
	a, b, c := &sink[int]{}, failsOn(map[int]error{1: errTest}), &sink[int]{}
	for name, applier := range map[string]courier.Applier[int]{
		"1": courier.NewFanOutApplier(a, b, c),
		"b": courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b, c)}),
	} {
		t.Run(name, func(t *testing.T) {
			a.applied, c.applied = nil, nil
			err := applier.Apply(t.Context(), 1)
			require.ErrorIs(t, err, errTest)
			require.Equal(t, []courier.BranchFailure{{Branch: name, Err: errTest}}, fanOutError(t, err).Failures)
			require.ErrorContains(t, err, "branch "+name+": ")
			require.Equal(t, []int{1}, a.got())
			require.Equal(t, []int{1}, c.got())
			require.NoError(t, applier.Apply(t.Context(), 2))
		})
	}
}

func TestF2_ARedeliveryGoesToTheBranchesNotYetDone(t *testing.T) {
	down := map[int]error{1: errTest, 3: errTest}
	a, b, c := &batchSink[int]{}, lists(down), failsOn(map[int]error{2: courier.Skip(errTest)})
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b, c), Identity: strconv.Itoa})

	var list *courier.BatchError
	require.ErrorAs(t, asBatch(applier).ApplyBatch(t.Context(), []int{0, 1, 2, 3}), &list)
	require.Len(t, list.Failures, 3)
	require.Equal(t, courier.ClassSkipped, courier.Classify(t.Context(), list.Failures[1].Err))
	require.Equal(t, [][]int{{0, 1, 2, 3}}, a.batches)
	require.Equal(t, []int{0, 1, 3}, c.got())

	// Of a batch each branch gets what it lacks, and the errors keep their index.
	require.ErrorAs(t, asBatch(applier).ApplyBatch(t.Context(), []int{4, 3, 5, 1}), &list)
	require.Equal(t, []int{1, 3}, []int{list.Failures[0].Index, list.Failures[1].Index})
	require.Equal(t, []courier.BranchFailure{{Branch: "b", Err: errTest}}, fanOutError(t, list.Failures[0].Err).Failures)
	require.Equal(t, []int{4, 5}, a.batches[1])
	require.Equal(t, []int{4, 3, 5, 1}, b.batches[1])
	require.Equal(t, []int{0, 1, 3, 4, 5}, c.got())

	// One by one, and the other form remembers too.
	require.Error(t, applier.Apply(t.Context(), 3))
	delete(down, 3)
	require.NoError(t, applier.Apply(t.Context(), 3))
	delete(down, 1)
	require.NoError(t, asBatch(applier).ApplyBatch(t.Context(), []int{1}))
	require.Equal(t, [][]int{{0, 1, 2, 3}, {4, 5}}, a.batches)
	require.Equal(t, []int{0, 1, 3, 4, 5}, c.got())
	require.Equal(t, []int{0, 2, 4, 5, 3, 1}, b.got())

	// A record that is done is not remembered: the next delivery is a new one.
	require.NoError(t, asBatch(applier).ApplyBatch(t.Context(), []int{1, 3}))
	require.Equal(t, []int{1, 3}, a.batches[2])
}

func TestF2_ASkipIsDone(t *testing.T) {
	down := map[int]error{1: errTest}
	a, b := failsOn(map[int]error{1: courier.Skip(errTest)}), failsOn(down)
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b), Identity: strconv.Itoa})
	require.Equal(t, []courier.BranchFailure{{Branch: "b", Err: errTest}}, fanOutError(t, applier.Apply(t.Context(), 1)).Failures)
	delete(down, 1)
	require.NoError(t, applier.Apply(t.Context(), 1))
	require.Equal(t, 1, a.called())
}

// Once a record is applied it is forgotten, though an optional branch lacks it.
func TestF2_WhatIsAppliedIsForgotten(t *testing.T) {
	for _, inBatches := range []bool{false, true} {
		down := map[int]error{1: errTest}
		a, b := &sink[int]{}, failsOn(down)
		branches := append(named(a, b), courier.Branch[int]{Name: "c", Applier: always(errTest), Optional: true})
		applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: branches, Identity: strconv.Itoa, OnBranchFailure: new(missed).note})
		deliver := func() error {
			if inBatches {
				return asBatch(applier).ApplyBatch(t.Context(), []int{1})
			}
			return applier.Apply(t.Context(), 1)
		}
		require.Error(t, deliver())
		delete(down, 1)
		require.NoError(t, deliver())
		require.Equal(t, []int{1}, a.got())
		require.NoError(t, deliver())
		require.Equal(t, []int{1, 1}, a.got(), "a new delivery")
	}
}

// What has no name could be another record that is equal: it goes to all.
func TestF2_ARecordWithoutANameGoesToEveryBranch(t *testing.T) {
	for name, identity := range map[string]func(int) string{
		"no identity": nil,
		"no name":     func(int) string { return "" },
		"panic":       func(int) string { panic("boom") },
		"goexit":      func(int) string { runtime.Goexit(); return "never" },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := &batchSink[int]{}, &batchSink[int]{}
			b.fail = func(context.Context, int, int) error { return errTest }
			b.failBatch = func(context.Context, []int, int) error { return errTest }
			applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b), Identity: identity})
			for range 2 {
				require.Error(t, applier.Apply(t.Context(), 1))
				require.Error(t, asBatch(applier).ApplyBatch(t.Context(), []int{1, 2}))
			}
			require.Equal(t, []int{1, 1, 2, 1, 1, 2}, a.got())
		})
	}
}

func TestF2_TheMemoryIsBounded(t *testing.T) {
	down := map[int]error{1: errTest, 2: errTest, 3: errTest}
	a, b := &sink[int]{}, failsOn(down)
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b), Identity: strconv.Itoa, Remember: 2})
	for _, r := range []int{1, 2, 3} {
		require.Error(t, applier.Apply(t.Context(), r))
	}
	clear(down)
	for _, r := range []int{3, 2, 1} {
		require.NoError(t, applier.Apply(t.Context(), r))
	}
	require.Equal(t, []int{1, 2, 3, 1}, a.got(), "1 made room")
	require.Equal(t, []int{3, 2, 1}, b.got())
}

// Retries around a fan-out are redeliveries too.
func TestF2_ARetryAroundItGoesToTheBranchesNotYetDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &sink[int]{}
		b := &sink[int]{fail: func(_ context.Context, r, call int) error {
			if r == 1 && call < 4 {
				return errTest
			}
			return nil
		}}
		applier := courier.WithRetry(courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b), Identity: strconv.Itoa}))
		require.NoError(t, applier.Apply(t.Context(), 1))
		require.Equal(t, []int{1}, a.got())
		require.Equal(t, 4, b.called())
	})
}

// The table of what is applied, returned and reported.
func TestF3_QuorumAndOptionalBranches(t *testing.T) {
	no, skip := errTest, courier.Skip(errTest)
	for _, test := range []struct {
		name     string
		errs     []error // of branches a, b, c and, optional, d
		quorum   int
		failed   string // in the error
		reported []string
	}{
		{"all have it", []error{nil, nil, nil, nil}, 0, "", nil},
		{"the optional one fails", []error{nil, nil, nil, no}, 0, "", []string{"d"}},
		{"the optional one skips", []error{nil, nil, nil, skip}, 0, "", nil},
		{"a required one fails", []error{nil, no, nil, nil}, 0, "b", nil},
		{"a required and the optional one fail", []error{nil, no, nil, no}, 0, "b", []string{"d"}},
		{"all that is explicit", []error{nil, no, nil, nil}, 3, "b", nil},
		{"a quorum without b", []error{nil, no, nil, nil}, 2, "", []string{"b"}},
		{"a quorum without b and d", []error{nil, no, nil, no}, 2, "", []string{"b", "d"}},
		{"the optional one does not count", []error{nil, no, no, nil}, 2, "b, c", nil},
		{"one is enough", []error{no, nil, no, no}, 1, "", []string{"a", "c", "d"}},
		{"none has it", []error{no, no, no, nil}, 1, "a, b, c", nil},
		{"a skip counts", []error{skip, no, nil, nil}, 2, "a", []string{"b"}},
	} {
		for _, inBatches := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", test.name, batched(inBatches)), func(t *testing.T) {
				branches := make([]courier.Branch[int], len(test.errs))
				for i, err := range test.errs {
					branches[i] = courier.Branch[int]{Name: string(rune('a' + i)), Applier: always(err), Optional: i == 3}
				}
				var heard missed
				applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: branches, Quorum: test.quorum, OnBranchFailure: heard.note})
				var err error
				if inBatches {
					err = asBatch(applier).ApplyBatch(t.Context(), []int{1})
				} else {
					err = applier.Apply(t.Context(), 1)
				}
				var failed []string
				if err != nil {
					for _, f := range fanOutError(t, err).Failures {
						failed = append(failed, f.Branch)
					}
				}
				require.Equal(t, test.failed, strings.Join(failed, ", "))
				var want []string
				for _, branch := range test.reported {
					want = append(want, fmt.Sprintf("%s/1: %v", branch, no))
				}
				require.Equal(t, want, heard.take())
			})
		}
	}
}

func TestF4_TheClassOfSeveralBranches(t *testing.T) {
	open, permanent := error(&courier.OpenError{Cause: errTest}), courier.Permanent(errTest)
	skip := courier.Skip(errTest)
	for _, test := range []struct {
		errs []error
		want courier.ErrorClass
	}{
		{[]error{open, permanent, errTest}, courier.ClassNotAttempted},
		{[]error{permanent, errTest}, courier.ClassRetryable},
		{[]error{permanent, permanent, nil}, courier.ClassPermanent},
		{[]error{permanent, skip}, courier.ClassPermanent},
		{[]error{skip, nil}, courier.ClassSkipped},
		{[]error{nil, nil, errTest, permanent}, courier.ClassRetryable},
	} {
		branches := make([]courier.Applier[int], len(test.errs))
		for i, err := range test.errs {
			branches[i] = always(err)
		}
		err := courier.NewFanOutApplier(branches...).Apply(t.Context(), 1)
		require.Equal(t, test.want, courier.Classify(t.Context(), err), "%v", test.errs)
		require.Equal(t, test.want, courier.Classify(t.Context(), fmt.Errorf("publish: %w", err)), "wrapped: %v", test.errs)
		joined := test.want
		if joined == courier.ClassSkipped {
			joined = courier.ClassRetryable // a failure is beside it
		}
		require.Equal(t, joined, courier.Classify(t.Context(), errors.Join(errTest, err)), "joined: %v", test.errs)

		// The optional branches have no say.
		optional := named(branches...)
		for i, err := range []error{open, permanent, errTest} {
			optional = append(optional, courier.Branch[int]{Name: strconv.Itoa(i), Applier: always(err), Optional: true})
		}
		err = courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: optional, OnBranchFailure: new(missed).note}).Apply(t.Context(), 1)
		require.Equal(t, test.want, courier.Classify(t.Context(), err), "with optional ones: %v", test.errs)
	}
}

// A pause lasts until enough branches may be probed to apply a record. A time
// that comes with an attempt that was made is no pause.
func TestF4_ThePauseOfSeveralBranches(t *testing.T) {
	began := time.Now()
	at := func(minutes int) time.Time { return began.Add(time.Duration(minutes) * time.Minute) }
	open := func(minutes int) error { return &courier.OpenError{Until: at(minutes), Cause: errTest} }
	full := &courier.ParkError{Err: errTest, Store: courier.ErrDLQFull}
	for _, test := range []struct {
		name   string
		errs   []error
		quorum int
		want   time.Time
	}{
		{"one", []error{nil, open(3), nil}, 0, at(3)},
		{"the last of those needed", []error{open(2), open(3), open(1)}, 0, at(3)},
		{"two more are needed", []error{open(2), open(3), open(1)}, 2, at(2)},
		{"one more is needed", []error{nil, open(3), open(1)}, 2, at(1)},
		{"another may do it", []error{open(2), errTest, open(1)}, 1, time.Time{}},
		{"a retryable one's time", []error{&tooMany{at(9)}, open(1), nil}, 0, at(1)},
		{"a retryable one's time and a full queue", []error{&tooMany{at(9)}, full, nil}, 0, time.Time{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var appliers []courier.Applier[int]
			for _, err := range test.errs {
				appliers = append(appliers, always(err))
			}
			applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(appliers...), Quorum: test.quorum, OnBranchFailure: new(missed).note})
			require.Equal(t, test.want, courier.RetryAt(fanOutError(t, applier.Apply(t.Context(), 1))))
		})
	}
}

// A full queue behind one branch does not make another branch's Retry-After a
// pause: the rest of the batch is applied.
func TestF4_ATimeWithoutAPausePausesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(time.Hour)
		a := failsOn(map[int]error{0: &tooMany{at}})
		b := courier.NewDLQApplier(failsOn(map[int]error{0: courier.Permanent(errTest)}), courier.DLQ[int](&dlqFunc{send: func(context.Context, courier.DeadLetter[int]) error { return courier.ErrDLQFull }}), courier.DLQPolicy[int]{})
		source := newShelf(numbers(10)...)
		_ = courier.NewPollingCoordinator(source, courier.NewFanOutApplier(a, b), quiet).RunOnce(t.Context())
		require.Equal(t, []int{0}, source.left())
	})
}

func TestF5_APanicInABranchIsItsFailure(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errTest) }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			a := &sink[int]{}
			b := courier.ProcessFunc(func(context.Context, int) error { end(); return nil })
			err := courier.NewFanOutApplier(b, courier.Applier[int](a)).Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrPanic)
			require.Equal(t, "0", fanOutError(t, err).Failures[0].Branch)
			require.Equal(t, []int{1}, a.got())
		})
	}
}

func TestF5_APanicInAHookOrACloneTakesNothingAlong(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			a, heard := &batchSink[int]{}, 0
			branches := append(named(a), courier.Branch[int]{Name: "b", Applier: always(errTest), Optional: true})
			applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: branches, OnBranchFailure: func(context.Context, int, string, error) {
				heard++
				end()
			}})
			require.NoError(t, applier.Apply(t.Context(), 1))
			require.NoError(t, asBatch(applier).ApplyBatch(t.Context(), []int{2, 3}))
			require.Equal(t, 3, heard)

			s := &batchSink[int]{}
			applier = courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(s, &sink[int]{}), Clone: func(r int) int {
				if r == 2 {
					end()
				}
				return r
			}})
			var list *courier.BatchError
			require.ErrorAs(t, asBatch(applier).ApplyBatch(t.Context(), []int{1, 2, 3}), &list)
			require.Len(t, list.Failures, 1)
			require.Equal(t, 1, list.Failures[0].Index)
			require.ErrorIs(t, list.Failures[0].Err, courier.ErrPanic)
			require.Equal(t, []int{1, 3}, s.got())
		})
	}
}

func TestF6_ACancelReachesAllBranchesAndApplyWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := 0
		var mu sync.Mutex
		slow := courier.ProcessFunc(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			ended++
			return ctx.Err()
		})
		time.AfterFunc(time.Minute, cancel)
		began := time.Now()
		err := courier.NewFanOutApplier(slow, slow, always(nil)).Apply(ctx, 1)
		require.Equal(t, time.Minute+time.Second, time.Since(began))
		require.Equal(t, 2, ended)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(ctx, err))
	})
}

func TestF6_ASingleBranchRunsInline(t *testing.T) {
	goroutine := func() string {
		stack := make([]byte, 64)
		return strings.Fields(string(stack[:runtime.Stack(stack, false)]))[1]
	}
	var branch string
	a := courier.ProcessFunc(func(context.Context, int) error { branch = goroutine(); return nil })
	require.NoError(t, courier.NewFanOutApplier(a).Apply(t.Context(), 1))
	require.Equal(t, goroutine(), branch)
}

func TestF7_EachBranchMayHaveACopyOfItsOwn(t *testing.T) {
	type order struct{ lines []string }
	for _, inBatches := range []bool{false, true} {
		var mu sync.Mutex
		var seen []*order
		batch := &batchSink[*order]{failBatch: func(_ context.Context, batch []*order, _ int) error {
			mu.Lock()
			defer mu.Unlock()
			for _, o := range batch {
				o.lines[0] += ", spoiled"
				seen = append(seen, o)
			}
			return nil
		}}
		batch.fail = func(ctx context.Context, o *order, _ int) error { return batch.failBatch(ctx, []*order{o}, 1) }
		spoil := courier.ProcessFunc(batch.Apply)
		applier := courier.NewFanOutFromConfig(courier.FanOutConfig[*order]{
			Branches: []courier.Branch[*order]{{Name: "a", Applier: spoil}, {Name: "b", Applier: batch}},
			Clone:    func(o *order) *order { return &order{slices.Clone(o.lines)} },
		})
		record := &order{[]string{"bread"}}
		if inBatches {
			require.NoError(t, applier.(courier.BatchApplier[*order]).ApplyBatch(t.Context(), []*order{record}))
		} else {
			require.NoError(t, applier.Apply(t.Context(), record))
		}
		require.Equal(t, "bread", record.lines[0])
		require.Len(t, seen, 2)
		for _, o := range seen {
			require.Equal(t, "bread, spoiled", o.lines[0])
		}
	}
}

func TestD12_AFanOutThatCannotWork(t *testing.T) {
	ok := courier.ProcessFunc(nop[int])
	var noSink *sink[int]
	hear := new(missed).note
	bad := courier.NewRetryableApplier(ok, courier.RetryPolicy{MaxAttempts: -1})
	type branches = []courier.Branch[int]
	for _, test := range []struct {
		field  string
		config courier.FanOutConfig[int]
	}{
		{"FanOutConfig.Branches", courier.FanOutConfig[int]{}},
		{"FanOutConfig.Branches", courier.FanOutConfig[int]{Branches: branches{{"a", ok, true}}, OnBranchFailure: hear}},
		{"FanOutConfig.Branches[0].Name", courier.FanOutConfig[int]{Branches: branches{{"", ok, false}}}},
		{"FanOutConfig.Branches[1].Name", courier.FanOutConfig[int]{Branches: branches{{"a", ok, false}, {"a", ok, false}}}},
		{"FanOutConfig.Branches[1]", courier.FanOutConfig[int]{Branches: branches{{"a", ok, false}, {"b", nil, false}}}},
		{"FanOutConfig.Branches[0]", courier.FanOutConfig[int]{Branches: branches{{"a", noSink, false}}, Clone: func(r int) int { return r }}},
		{"RetryPolicy.MaxAttempts", courier.FanOutConfig[int]{Branches: branches{{"a", ok, false}, {"b", bad, true}}, OnBranchFailure: hear}},
		{"FanOutConfig.Quorum", courier.FanOutConfig[int]{Branches: named(ok, ok), Quorum: -1, OnBranchFailure: hear}},
		{"FanOutConfig.Quorum", courier.FanOutConfig[int]{Branches: named(ok, ok), Quorum: 3, OnBranchFailure: hear}},
		{"FanOutConfig.Quorum", courier.FanOutConfig[int]{Branches: branches{{"a", ok, false}, {"b", ok, true}}, Quorum: 2, OnBranchFailure: hear}},
		{"FanOutConfig.OnBranchFailure", courier.FanOutConfig[int]{Branches: named(ok, ok), Quorum: 1}},
		{"FanOutConfig.OnBranchFailure", courier.FanOutConfig[int]{Branches: branches{{"a", ok, false}, {"b", ok, true}}}},
		{"FanOutConfig.Remember", courier.FanOutConfig[int]{Branches: named(ok), Remember: -1, Identity: strconv.Itoa}},
		{"FanOutConfig.Remember", courier.FanOutConfig[int]{Branches: named(ok), Remember: 1}},
	} {
		t.Run(test.field, func(t *testing.T) {
			applier := courier.NewFanOutFromConfig(test.config)
			source := newShelf(1)
			for _, err := range []error{
				courier.NewPollingCoordinator(source, applier, quiet).Start(t.Context()),
				applier.Apply(t.Context(), 1),
				asBatch(applier).ApplyBatch(t.Context(), []int{1}),
			} {
				var bad *courier.ConfigError
				require.ErrorAs(t, err, &bad)
				require.Equal(t, test.field, bad.Field)
				require.Contains(t, err.Error(), test.field)
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
			}
			require.Zero(t, source.fetchCount())
		})
	}
	require.NoError(t, courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(ok, ok), Quorum: 2}).Apply(t.Context(), 1))
	err := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(ok, bad)}).Apply(t.Context(), 1)
	require.ErrorContains(t, err, "in branch b: ")
}

func TestFanOut_TheBranchesAreCopied(t *testing.T) {
	a, branches := &sink[int]{}, named(always(errTest))
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: branches})
	branches[0].Applier = a
	require.Error(t, applier.Apply(t.Context(), 1))
	require.Empty(t, a.got())
}

func TestFanOut_AStackForEachBranch(t *testing.T) {
	// Branch a's poison is parked in a's queue, b is not bothered.
	a, qa := withDLQ(always(courier.Permanent(errTest)))
	s := &sink[int]{}
	b, qb := withDLQ[int](s)
	source := newShelf(1, 2)
	require.NoError(t, courier.NewPollingCoordinator(source, courier.NewFanOutApplier(a, b), quiet).RunOnce(t.Context()))
	require.Equal(t, 2, countOf(qa))
	require.Zero(t, countOf(qb))
	require.Equal(t, []int{1, 2}, s.got())
	require.Empty(t, source.left())
}

// scripted is a branch whose every call on a record ends as drawn, and that
// keeps account of it.
type scripted struct {
	mu       sync.Mutex
	draw     func(record int) error // panicking is an end, too
	last     map[int]error          // in this delivery
	has      map[int]bool           // since the record was last applied
	problems []string
}

func (s *scripted) Apply(_ context.Context, r int) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[r] {
		s.problems = append(s.problems, fmt.Sprintf("got %d, which it has", r))
	}
	s.last[r] = courier.ErrPanic
	err = s.draw(r)
	s.last[r] = err
	return err
}

// scriptedBatches takes batches, some of which panic as a whole.
type scriptedBatches struct {
	*scripted
	panics func() bool
}

func (s scriptedBatches) ApplyBatch(ctx context.Context, records []int) error {
	if s.panics() {
		panic("the batch")
	}
	returned := false
	defer func() {
		if !returned { // an exit: nobody learns what it had applied
			for _, r := range records {
				delete(s.last, r)
			}
		}
	}()
	var e courier.BatchError
	for i, r := range records {
		err := courier.ErrPanic
		func() {
			defer func() { _ = recover() }()
			err = s.Apply(ctx, r)
		}()
		if err != nil {
			e.Add(i, err)
		}
	}
	returned = true
	return e.ErrorOrNil()
}

// F-1 to F-5 at once: branches that fail in every way, required and optional,
// with and without a quorum, single records and batches of them, until all are
// applied. Whatever happens, a branch that has a record does not get it again;
// a record is applied when enough have it; each failure is returned or
// reported, and not both; and the class of what is returned is by F-4.
func TestFanOut_Property(t *testing.T) {
	open := error(&courier.OpenError{Cause: errTest})
	ends := []error{nil, nil, nil, errTest, courier.Permanent(errTest), open, courier.Skip(errTest), courier.ErrPanic, courier.ErrStopped}
	rapid.Check(t, func(rt *rapid.T) {
		required := rapid.IntRange(1, 4).Draw(rt, "required")
		optional := rapid.IntRange(0, 2).Draw(rt, "optional")
		quorum := rapid.IntRange(0, required).Draw(rt, "quorum")
		// The branches run at the same time, so what they draw may not depend
		// on the order: each call has its place in a table.
		table := rapid.SliceOfN(rapid.IntRange(0, len(ends)-1), 200, 200).Draw(rt, "ends")
		exits := rapid.Bool().Draw(rt, "panics are exits")
		healed := false

		var heard missed
		config := courier.FanOutConfig[int]{Quorum: quorum, Identity: strconv.Itoa, OnBranchFailure: heard.note}
		branches := make([]*scripted, required+optional)
		for b := range branches {
			calls := 0
			s := &scripted{last: map[int]error{}, has: map[int]bool{}}
			s.draw = func(r int) error {
				calls++
				err := ends[table[(b*67+r*31+calls*7)%len(table)]]
				switch {
				case healed:
					return nil
				case err == courier.ErrPanic && exits:
					runtime.Goexit()
				case err == courier.ErrPanic:
					panic("the record")
				}
				return err
			}
			branches[b] = s
			var a courier.Applier[int] = s
			if rapid.Bool().Draw(rt, "takes batches") {
				a = scriptedBatches{s, func() bool { calls++; return !healed && table[(b+calls)%len(table)] == 0 }}
			}
			config.Branches = append(config.Branches, courier.Branch[int]{Name: strconv.Itoa(b), Applier: a, Optional: b >= required})
		}
		if required+optional == 1 && exits {
			rt.Skip("a single branch runs inline, and ends its caller")
		}
		applier := courier.NewFanOutFromConfig(config)
		needed := quorum
		if needed == 0 {
			needed = required
		}

		waiting := numbers(rapid.IntRange(1, 6).Draw(rt, "records"))
		for round := 0; len(waiting) > 0; round++ {
			healed = round > 12
			if round > 14 {
				rt.Fatalf("still waiting when all is well: %v", waiting)
			}
			// A delivery of some of what waits.
			delivery := waiting
			if !healed {
				delivery = rapid.Permutation(waiting).Draw(rt, "order")
				delivery = delivery[:rapid.IntRange(1, len(delivery)).Draw(rt, "batch")]
			}
			for _, s := range branches {
				clear(s.last)
			}
			errs := make([]error, len(delivery))
			if single := len(delivery) == 1 && rapid.Bool().Draw(rt, "single"); single {
				errs[0] = applier.Apply(rt.Context(), delivery[0])
			} else if err := asBatch(applier).ApplyBatch(rt.Context(), delivery); err != nil {
				var list *courier.BatchError
				if !errors.As(err, &list) {
					rt.Fatalf("not a list: %v", err)
				}
				for _, f := range list.Failures {
					errs[f.Index] = f.Err
				}
			}
			reports := heard.take()
			for i, r := range delivery {
				have := 0
				var lacking []int
				var classes []courier.ErrorClass
				for b, s := range branches {
					err, called := s.last[r]
					if !called && !s.has[r] {
						err = open // a batch was broken off before it
					}
					if err == nil || courier.Classify(rt.Context(), err) == courier.ClassSkipped {
						s.has[r] = true
						if b < required {
							have++
						}
						continue
					}
					lacking = append(lacking, b)
					if b < required {
						classes = append(classes, courier.Classify(rt.Context(), err))
					}
				}
				applied := errs[i] == nil || courier.Classify(rt.Context(), errs[i]) == courier.ClassSkipped
				if applied != (have >= needed) {
					rt.Fatalf("record %d: %d of %d have it, and the verdict is %v", r, have, needed, errs[i])
				}
				var returned, reported []int
				for _, b := range lacking {
					if b < required && !applied {
						returned = append(returned, b)
					} else {
						reported = append(reported, b)
					}
				}
				if !applied {
					var got []int
					for _, f := range fanOutError(rt, errs[i]).Failures {
						b, _ := strconv.Atoi(f.Branch)
						got = append(got, b)
					}
					if !slices.Equal(got, returned) {
						rt.Fatalf("record %d: %v returned, want %v", r, got, returned)
					}
					want := courier.ClassPermanent
					switch {
					case slices.Contains(classes, courier.ClassNotAttempted):
						want = courier.ClassNotAttempted
					case slices.Contains(classes, courier.ClassRetryable):
						want = courier.ClassRetryable
					}
					if got := courier.Classify(rt.Context(), errs[i]); got != want {
						rt.Fatalf("record %d: class %v, want %v", r, got, want)
					}
				} else {
					waiting = slices.DeleteFunc(slices.Clone(waiting), func(w int) bool { return w == r })
				}
				for _, b := range reported {
					if len(reports) == 0 || !strings.HasPrefix(reports[0], fmt.Sprintf("%d/%d: ", b, r)) {
						rt.Fatalf("record %d: branch %d is not reported, the next report is %v", r, b, reports)
					}
					reports = reports[1:]
				}
			}
			if len(reports) > 0 {
				rt.Fatalf("reported besides: %v", reports)
			}
			for b, s := range branches {
				if s.problems != nil {
					rt.Fatalf("branch %d: %v", b, s.problems)
				}
			}
		}
	})
}

// Several workers deliver the same and other records at once.
func TestFanOut_ManyDeliveriesAtOnce(t *testing.T) {
	flaky := func(s *sink[int]) {
		s.fail = func(_ context.Context, r, call int) error {
			if call%3 == 0 {
				return errTest
			}
			return nil
		}
	}
	a, b, c := &sink[int]{}, &batchSink[int]{}, &sink[int]{}
	flaky(a)
	flaky(&b.sink)
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a, b, c), Identity: strconv.Itoa, Remember: 50})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				r := (w*37 + i) % 300
				for applier.Apply(t.Context(), r) != nil {
				}
				_ = asBatch(applier).ApplyBatch(t.Context(), []int{r, r + 1000, r})
			}
		})
	}
	wg.Wait()
	for _, s := range []*sink[int]{a, &b.sink, c} {
		seen := map[int]bool{}
		for _, r := range s.got() {
			seen[r] = true
		}
		for r := range 300 {
			require.True(t, seen[r], "record %d", r)
		}
	}
}

// A time to retry at does not make an error one of the destination's: only
// what was not attempted pauses (D3).
type tooMany struct{ at time.Time }

func (e *tooMany) Error() string      { return "429" }
func (e *tooMany) RetryAt() time.Time { return e.at }

func TestF5_APanicInABranchsBatchTakesNoOtherRecordAlong(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			b := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
				if slices.Contains(records, 3) {
					end()
				}
				return nil
			}}
			b.fail = func(_ context.Context, r, _ int) error {
				if r == 3 {
					end()
				}
				return nil
			}
			source := newShelf(numbers(10)...)
			err := courier.NewPollingCoordinator(source, courier.NewFanOutApplier[int](b, &sink[int]{}), quiet).RunOnce(t.Context())
			require.ErrorIs(t, err, courier.ErrPanic)
			require.Equal(t, []int{3}, source.left())
		})
	}
}

// A branch whose retries have ended without a verdict has answered for as long as another
// one waits. If it began anew each time, the two would wait for each other by turns, and the
// record would never be given back for a while.
func TestF1_BranchesThatGiveUpTakeNoTurns(t *testing.T) {
	full := courier.DLQ[int](&dlqFunc{send: func(context.Context, courier.DeadLetter[int]) error { return courier.ErrDLQFull }})
	for name, branch := range map[string]func(a courier.Applier[int], delay time.Duration) courier.Applier[int]{
		"cannot park": func(a courier.Applier[int], delay time.Duration) courier.Applier[int] {
			retry := courier.RetryPolicy{MaxAttempts: 3, InitialDelay: delay, Multiplier: 1, Jitter: courier.NoJitter}
			return courier.NewDLQApplier(courier.NewRetryableApplier(a, retry), full, courier.DLQPolicy[int]{Branch: delay.String()})
		},
		"have no time left": func(a courier.Applier[int], delay time.Duration) courier.Applier[int] {
			return courier.NewRetryableApplier(a, courier.RetryPolicy{
				MaxAttempts: courier.UnlimitedAttempts, MaxElapsed: 5 * delay / 2, InitialDelay: delay, Multiplier: 1, Jitter: courier.NoJitter,
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				a := &sink[int]{fail: func(context.Context, int, int) error { return errTest }}
				b := &sink[int]{fail: a.fail}
				source.add(1)
				option := courier.WithWorkers(2)
				if source.wait {
					option = courier.WithStreamWorkers(2)
				}
				stop := start(t, make(courier.NewFanOutApplier(branch(a, 20*time.Millisecond), branch(b, 30*time.Millisecond)), option))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.LessOrEqual(t, a.called(), 3*30, "the pace of a refused record slows down")
				require.InDelta(t, a.called(), b.called(), 1, "the stop may come between the attempts of the two")
			})
		})
	}
}
