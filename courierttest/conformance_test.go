package courierttest

import (
	"context"
	"strconv"
	"testing"

	"github.com/erfanmomeniii/courier"
)

// The fakes keep the contract, and their features and fixtures are what the
// tables of broken implementations start from.

var (
	pollingFeatures = SourceFeatures{Bubble: true, Ordered: true, Identifier: true}
	leasingFeatures = SourceFeatures{
		Bubble: true, Ordered: true, Lease: lease, Fenced: true,
		Releaser: true, Renewer: true, Waker: true, Lagger: true, Identifier: true,
	}
	streamFeatures = SourceFeatures{
		Bubble: true, Ordered: true, Releaser: true, Renewer: true, Waker: true, Lagger: true, Identifier: true,
	}
	batchFeatures = ApplierFeatures{Bubble: true, Idempotent: true, Ordered: true, Concurrent: true, Permanent: true, Isolated: true}
	dlqFeatures   = DLQFeatures{Bubble: true, Identity: true, Keyed: true, Shared: true, Capacity: 20}
)

func schedulingFeatures() SourceFeatures {
	f := leasingFeatures
	f.Failer = true
	return f
}

// adder returns an Add for records that are numbers.
func adder(add func(records ...int)) func(n int) []string {
	next := 0
	return func(n int) (names []string) {
		for range n {
			add(next)
			names = append(names, strconv.Itoa(next))
			next++
		}
		return names
	}
}

// failMarks makes every mark fail.
func failMarks(faults *Injector) func(int) func() {
	return func(int) func() {
		faults.Set(Fault{Effect: Error})
		return func() { faults.Set() }
	}
}

func openPolling(*testing.T) SourceFixture[int] {
	var r Recorder[int]
	s := r.Source()
	return SourceFixture[int]{
		Source: s, Add: adder(s.Add), FailMarks: failMarks(&s.MarkFaults),
		Reopen: func() courier.Source[int] { return s },
	}
}

func openLeasing(*testing.T) SourceFixture[int] {
	var r Recorder[int]
	return leasingFixture(r.LeasingSource(lease))
}

func leasingFixture(s *LeasingSource[int]) SourceFixture[int] {
	return SourceFixture[int]{
		Source: s, Add: adder(s.Add), FailMarks: failMarks(&s.MarkFaults), End: s.End,
		Reopen: func() courier.Source[int] { return s.Join() },
	}
}

func openScheduling(*testing.T) SourceFixture[int] {
	var r Recorder[int]
	s := r.SchedulingSource(lease)
	x := leasingFixture(s.LeasingSource)
	x.Source = s
	return x
}

func openStream(*testing.T) SourceFixture[int] {
	var r Recorder[int]
	s := r.StreamSource()
	x := leasingFixture(s)
	x.Reopen = func() courier.Source[int] { // a broker sees the connection go
		_ = s.Release(context.Background(), s.InHand(), 0)
		return s.Join()
	}
	return x
}

func TestTheFakesAreSources(t *testing.T) {
	t.Run("polling", func(t *testing.T) { TestSource(t, openPolling, pollingFeatures) })
	t.Run("leasing", func(t *testing.T) { TestSource(t, openLeasing, leasingFeatures) })
	t.Run("scheduling", func(t *testing.T) { TestSource(t, openScheduling, schedulingFeatures()) })
	t.Run("stream", func(t *testing.T) { TestStreamSource(t, openStream, streamFeatures) })
	t.Run("retaining", func(t *testing.T) {
		TestSource(t, func(t *testing.T) SourceFixture[int] {
			x := openPolling(t)
			x.Source.(*Source[int]).Retain = true
			return x
		}, pollingFeatures)
	})
	t.Run("on a clock", func(t *testing.T) {
		TestSource(t, func(t *testing.T) SourceFixture[int] {
			clock := NewClock()
			r := Recorder[int]{Clock: clock}
			x := leasingFixture(r.LeasingSource(lease))
			x.Advance = clock.Advance
			return x
		}, leasingFeatures)
	})
}

// openOrderly is a shop that keeps the order of a batch.
func openOrderly(t *testing.T) ApplierFixture[int] {
	x := openShop(t)
	x.Applier.(*BatchApplier[int]).InOrder = true
	return x
}

// shop is a destination that has each record once.
func openShop(*testing.T) ApplierFixture[int] {
	var r Recorder[int]
	a := r.BatchApplier(poisonFaults())
	return ApplierFixture[int]{
		Applier: a, Record: func(n int) int { return n }, Poison: func(n int) int { return -1 - n },
		Applied: func() []string {
			var once []string
			had := make(map[string]bool)
			for _, name := range r.Names(Applied) {
				if !had[name] {
					had[name] = true
					once = append(once, name)
				}
			}
			return once
		},
		Down: func() func() {
			a.Faults.Set(Fault{Effect: Hang})
			return func() { a.Faults.Set(poisonFaults()...) }
		},
	}
}

// poisonFaults refuse the records that stand in the place of these.
func poisonFaults() (faults Faults) {
	for _, n := range []int{0, 2, large / 2, large - 1} {
		faults = append(faults, Fault{Permanent, OnRecord(strconv.Itoa(-1 - n))})
	}
	return faults
}

func TestTheFakesAreAppliers(t *testing.T) {
	TestBatchApplier(t, openShop, batchFeatures)
}

// orderly is the features of an applier that keeps the order of a batch.
func orderly() ApplierFeatures {
	f := batchFeatures
	f.Isolated, f.OrderedBatches = false, true
	return f
}

func TestTheFakesKeepTheOrderOfABatch(t *testing.T) {
	TestBatchApplier(t, openOrderly, orderly())
	t.Run("with a function", func(t *testing.T) {
		TestBatchApplier(t, func(t *testing.T) ApplierFixture[int] {
			x := openOrderly(t)
			x.Applier.(*BatchApplier[int]).ApplyBatchFunc = func(context.Context, []int) error { return nil }
			return x
		}, orderly())
	})
	t.Run("watched", func(t *testing.T) {
		TestBatchApplier(t, func(t *testing.T) ApplierFixture[int] {
			var r Recorder[int]
			x := openOrderly(t)
			x.Applier = r.WatchApplier(x.Applier)
			return x
		}, orderly())
	})
}

func openDLQ(*testing.T) DLQFixture[int] {
	var r Recorder[int]
	q := r.DLQ(dlqFeatures.Capacity)
	return DLQFixture[int]{
		DLQ: q, Record: func(n int) int { return n },
		Reopen: func() courier.DLQ[int] { return q },
		Other:  func() courier.DLQ[int] { return r.DLQ(0) },
		FailSends: func() func() {
			q.SendFaults.Set(Fault{Effect: Error})
			return func() { q.SendFaults.Set() }
		},
	}
}

func TestTheFakesAreDLQs(t *testing.T) {
	TestDLQ(t, openDLQ, dlqFeatures)
}
