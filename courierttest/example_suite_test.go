package courierttest_test

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// table is a source of one's own.
type table struct {
	mu   sync.Mutex
	rows []int
}

func (s *table) Fetch(_ context.Context, limit int) ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rows[:min(limit, len(s.rows))]), nil
}

func (s *table) Mark(ctx context.Context, rows []int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = slices.DeleteFunc(s.rows, func(row int) bool { return slices.Contains(rows, row) })
	return nil
}

// openTable makes a fresh one for each check, and says how to get at it.
func openTable(*testing.T) courierttest.SourceFixture[int] {
	source, next := new(table), 0
	return courierttest.SourceFixture[int]{
		Source: source,
		Add: func(n int) (names []string) {
			for range n {
				source.rows = append(source.rows, next)
				names = append(names, strconv.Itoa(next))
				next++
			}
			return names
		},
		Reopen: func() courier.Source[int] { return source },
	}
}

// openShop has an applier of one's own, and what the suite needs beside it.
func openShop(*testing.T) courierttest.ApplierFixture[string] {
	return courierttest.ApplierFixture[string]{
		Applier: courier.ProcessFunc(func(ctx context.Context, _ string) error { return context.Cause(ctx) }),
		Record:  strconv.Itoa,
	}
}

// openStore has a batch applier that keeps what it is given.
func openStore(*testing.T) courierttest.ApplierFixture[int] {
	var records courierttest.Recorder[int]
	return courierttest.ApplierFixture[int]{
		Applier: records.BatchApplier(nil),
		Record:  func(n int) int { return n },
		Applied: func() []string { return records.Names(courierttest.Applied) },
	}
}

func openQueue(*testing.T) courierttest.DLQFixture[int] {
	return courierttest.DLQFixture[int]{
		DLQ:    &courier.MemoryDLQ[int]{Capacity: 100},
		Record: func(n int) int { return n },
	}
}

func openChannel(*testing.T) courierttest.SourceFixture[int] {
	var records courierttest.Recorder[int]
	source, next := records.StreamSource(), 0
	return courierttest.SourceFixture[int]{
		Source: source, End: source.End,
		Add: func(n int) (names []string) {
			for range n {
				source.Add(next)
				names = append(names, strconv.Itoa(next))
				next++
			}
			return names
		},
	}
}

// The test of a source of one's own has one line.
func ExampleTestSource() {
	_ = func(t *testing.T) { // func TestTable
		courierttest.TestSource(t, openTable, courierttest.SourceFeatures{Ordered: true})
	}
}

func ExampleTestStreamSource() {
	_ = func(t *testing.T) { // func TestChannel
		courierttest.TestStreamSource(t, openChannel, courierttest.SourceFeatures{Bubble: true, Ordered: true, Releaser: true, Renewer: true, Waker: true, Lagger: true, Identifier: true})
	}
}

func ExampleTestApplier() {
	_ = func(t *testing.T) { // func TestShop
		courierttest.TestApplier(t, openShop, courierttest.ApplierFeatures{Concurrent: true})
	}
}

func ExampleTestBatchApplier() {
	_ = func(t *testing.T) { // func TestStore
		courierttest.TestBatchApplier(t, openStore, courierttest.ApplierFeatures{Bubble: true, Ordered: true, Concurrent: true})
	}
}

func ExampleTestDLQ() {
	_ = func(t *testing.T) { // func TestQueue
		courierttest.TestDLQ(t, openQueue, courierttest.DLQFeatures{Bubble: true, Keyed: true, Capacity: 100, Precision: time.Nanosecond})
	}
}
