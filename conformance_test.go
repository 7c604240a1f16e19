package courier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// What this package hands out as a source, an applier or a dead letter queue
// keeps the contract that it asks of others.

func TestConformance_BatchSourceFunc(t *testing.T) {
	courierttest.TestSource(t, func(*testing.T) courierttest.SourceFixture[int] {
		var records courierttest.Recorder[int]
		memory := records.Source()
		next := 0
		return courierttest.SourceFixture[int]{
			Source: courier.BatchSourceFunc[int]{
				FetchFunc: func(ctx context.Context) ([]int, error) { return memory.Fetch(ctx, 1000) },
				MarkFunc:  memory.Mark,
			},
			Add: func(n int) (names []string) {
				for range n {
					memory.Add(next)
					names = append(names, strconv.Itoa(next))
					next++
				}
				return names
			},
			FailMarks: func(int) func() {
				memory.MarkFaults.Set(courierttest.Fault{Effect: courierttest.Error})
				return func() { memory.MarkFaults.Set() }
			},
		}
	}, courierttest.SourceFeatures{Bubble: true, Ordered: true, Unlimited: true})
}

func TestConformance_ChannelSource(t *testing.T) {
	courierttest.TestStreamSource(t, func(*testing.T) courierttest.SourceFixture[int] {
		var mu sync.Mutex
		var marked []string
		var refused bool
		ch := make(chan int, 100)
		next := 0
		return courierttest.SourceFixture[int]{
			Source: courier.NewChannelSource(ch, func(ctx context.Context, records []int) error {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case ctx.Err() != nil:
					return context.Cause(ctx)
				case refused:
					return errTest
				}
				for _, r := range records {
					marked = append(marked, strconv.Itoa(r))
				}
				return nil
			}),
			Add: func(n int) (names []string) {
				for range n {
					ch <- next
					names = append(names, strconv.Itoa(next))
					next++
				}
				return names
			},
			End: func() { close(ch) },
			Marked: func() []string {
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(marked)
			},
			FailMarks: func(int) func() {
				set := func(to bool) {
					mu.Lock()
					defer mu.Unlock()
					refused = to
				}
				set(true)
				return func() { set(false) }
			},
		}
	}, courierttest.SourceFeatures{Bubble: true, Ordered: true})
}

func TestConformance_MemoryDLQ(t *testing.T) {
	open := func(newQueue func() *courier.MemoryDLQ[int]) func(*testing.T) courierttest.DLQFixture[int] {
		return func(*testing.T) courierttest.DLQFixture[int] {
			q := newQueue()
			return courierttest.DLQFixture[int]{DLQ: q, Record: func(n int) int { return n }}
		}
	}
	features := courierttest.DLQFeatures{Bubble: true, Keyed: true, Capacity: 7, Precision: time.Nanosecond}
	t.Run("without an identity", func(t *testing.T) {
		courierttest.TestDLQ(t, open(func() *courier.MemoryDLQ[int] { return &courier.MemoryDLQ[int]{Capacity: 7} }), features)
	})
	t.Run("by identity", func(t *testing.T) {
		features := features
		features.Identity = true
		courierttest.TestDLQ(t, open(func() *courier.MemoryDLQ[int] { return &courier.MemoryDLQ[int]{Capacity: 7, Identity: strconv.Itoa} }), features)
	})
	t.Run("the zero value", func(t *testing.T) {
		features := features
		features.Capacity = 0
		courierttest.TestDLQ(t, open(func() *courier.MemoryDLQ[int] { return &courier.MemoryDLQ[int]{} }), features)
	})
}

// shop is a destination with what can be seen of it from outside.
func shop(batches bool, wrap func(courier.Applier[int]) courier.Applier[int]) func(*testing.T) courierttest.ApplierFixture[int] {
	return func(*testing.T) courierttest.ApplierFixture[int] {
		var records courierttest.Recorder[int]
		single, batch := records.Applier(nil), records.BatchApplier(nil)
		take := func(_ context.Context, record int) error {
			if record < 0 {
				return courier.Permanent(errTest)
			}
			return nil
		}
		single.ApplyFunc, batch.ApplyFunc = take, take
		inner, faults := courier.Applier[int](single), &single.Faults
		if batches {
			inner, faults = batch, &batch.Faults
		}
		return courierttest.ApplierFixture[int]{
			Applier: wrap(inner), Record: func(n int) int { return n },
			Applied: func() []string {
				var once []string
				had := make(map[string]bool)
				for _, name := range records.Names(courierttest.Applied) {
					if !had[name] {
						had[name] = true
						once = append(once, name)
					}
				}
				return once
			},
			Poison: func(n int) int { return -1 - n },
			Down: func() func() {
				faults.Set(courierttest.Fault{Effect: courierttest.Error})
				return func() { faults.Set() }
			},
		}
	}
}

func TestConformance_Decorators(t *testing.T) {
	all := courierttest.ApplierFeatures{Bubble: true, Idempotent: true, Ordered: true, Concurrent: true, Permanent: true, Isolated: true, Recovers: 5 * time.Minute}
	for name, wrap := range map[string]func(courier.Applier[int]) courier.Applier[int]{
		"ProcessFunc": func(a courier.Applier[int]) courier.Applier[int] { return courier.ProcessFunc(a.Apply) },
		"retry":       courier.WithRetry[int],
		"breaker":     courier.WithCircuitBreaker[int],
		"timeout": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewAttemptTimeoutApplier(a, time.Minute, nil)
		},
		"decoding": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewDecodingApplier(a, func(n int) (int, error) { return n, nil })
		},
		"fan-out": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewFanOutApplier(a, courier.ProcessFunc(nop[int]))
		},
	} {
		for _, batches := range []bool{false, true} {
			t.Run(name+", "+batched(batches), func(t *testing.T) {
				if name == "ProcessFunc" {
					courierttest.TestApplier(t, shop(batches, wrap), all)
					return
				}
				courierttest.TestBatchApplier(t, shop(batches, wrap), all)
			})
		}
	}
}

// A stack with a dead letter queue has no poison: that is parked, and so is
// nothing else, in an outage least of all.
func TestConformance_ResilientApplier(t *testing.T) {
	features := courierttest.ApplierFeatures{Bubble: true, Idempotent: true, Ordered: true, Concurrent: true, Recovers: 5 * time.Minute}
	for _, batches := range []bool{false, true} {
		t.Run(batched(batches), func(t *testing.T) {
			courierttest.TestBatchApplier(t, func(t *testing.T) courierttest.ApplierFixture[int] {
				x := shop(batches, func(a courier.Applier[int]) courier.Applier[int] {
					applier, queue := courier.ResilientApplier(a, nil)
					t.Cleanup(func() {
						if n, err := queue.Count(context.Background()); n > 0 || err != nil {
							t.Error(errors.Join(fmt.Errorf("%d healthy records were parked", n), err))
						}
					})
					return applier
				})(t)
				x.Poison = nil
				return x
			}, features)
		})
	}
}
