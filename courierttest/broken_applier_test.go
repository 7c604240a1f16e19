package courierttest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/erfanmomeniii/courier"
)

// applierWith is an applier of which some methods are others.
type applierWith struct {
	*BatchApplier[int]
	apply func(ctx context.Context, record int) error
	batch func(ctx context.Context, records []int) error
}

func (a *applierWith) Apply(ctx context.Context, record int) error {
	if a.apply != nil {
		return a.apply(ctx, record)
	}
	return a.BatchApplier.Apply(ctx, record)
}

func (a *applierWith) ApplyBatch(ctx context.Context, records []int) error {
	if a.batch != nil {
		return a.batch(ctx, records)
	}
	return a.BatchApplier.ApplyBatch(ctx, records)
}

type applierDefect struct {
	defect, check string
	break_        func(t *testing.T, a *applierWith, x *ApplierFixture[int])
}

func TestBrokenAppliers(t *testing.T) {
	var table []broken[applierRun[int]]
	features := batchFeatures
	features.OrderedBatches = true
	for _, d := range slices.Concat(ofAppliers, ofBatches) {
		table = append(table, broken[applierRun[int]]{d.defect, d.check, func(t *testing.T, tb TB) *applierRun[int] {
			x := openShop(t)
			a := &applierWith{BatchApplier: x.Applier.(*BatchApplier[int])}
			a.InOrder = d.check == endsBehind
			x.Applier = a
			d.break_(t, a, &x)
			return newApplierRun(tb, x, features)
		}})
	}
	testBroken(t, slices.Concat(applierChecks[int](features), batchChecks[int](features)), table)
}

const endsBehind = "applies nothing behind what failed of a batch"

// down makes a destination fail, and not hang.
func down(a *applierWith, x *ApplierFixture[int]) {
	x.Down = func() func() {
		a.Faults.Set(Fault{Effect: Error})
		return func() { a.Faults.Set() }
	}
}

var ofAppliers = []applierDefect{
	{"misconfigured", "is complete", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.Faults.Set(Fault{Effect: "nonsense"})
	}},
	{"nil, and nothing is done", "applies a record", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.apply = func(context.Context, int) error { return nil }
	}},
	{"refuses a repetition", "applies a record again", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		a.apply = func(ctx context.Context, record int) error {
			if slices.Contains(x.Applied(), numberOf(record)) {
				return errors.New("it is there")
			}
			return a.BatchApplier.Apply(ctx, record)
		}
	}},
	{"has it twice", "applies a record again", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		x.Applied = func() []string { return a.recorder.Names(Applied) }
	}},
	{"says nil and does nothing", "tells the truth when its context has ended", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		once := false
		a.apply = func(ctx context.Context, record int) error {
			if ctx.Err() != nil && !once {
				once = true
				return nil
			}
			return a.BatchApplier.Apply(ctx, record)
		}
	}},
	{"every error is permanent", "tells the truth when its context has ended", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.apply = func(ctx context.Context, record int) error {
			return courier.Permanent(a.BatchApplier.Apply(ctx, record))
		}
	}},
	{"swallows the error", "fails in an outage", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		down(a, x)
		a.apply = func(ctx context.Context, record int) error {
			_ = a.BatchApplier.Apply(ctx, record)
			return nil
		}
	}},
	{"every error is permanent", "fails in an outage", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		down(a, x)
		a.apply = func(ctx context.Context, record int) error {
			return courier.Permanent(a.BatchApplier.Apply(ctx, record))
		}
	}},
	{"every error is a skip", "fails in an outage", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		down(a, x)
		a.apply = func(ctx context.Context, record int) error {
			return courier.Skip(a.BatchApplier.Apply(ctx, record))
		}
	}},
	{"does not heed its context", "ends with its context in an outage", func(t *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		until, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		a.apply = func(_ context.Context, record int) error { return a.BatchApplier.Apply(until, record) }
	}},
	{"broken for ever", "recovers from an outage", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		var broken error
		a.apply = func(ctx context.Context, record int) error {
			if broken == nil {
				broken = a.BatchApplier.Apply(ctx, record)
			}
			return broken
		}
	}},
	{"swallows the error", "refuses poison", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.apply = func(ctx context.Context, record int) error {
			_ = a.BatchApplier.Apply(ctx, record)
			return nil
		}
	}},
	{"does not say it is permanent", "refuses poison", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.apply = func(ctx context.Context, record int) error { return flat1(a.BatchApplier.Apply(ctx, record)) }
	}},
	{"skips it", "refuses poison", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.apply = func(ctx context.Context, record int) error {
			return courier.Skip(flat1(a.BatchApplier.Apply(ctx, record)))
		}
	}},
	{"says it was not attempted", "refuses poison", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.apply = func(ctx context.Context, record int) error {
			if err := a.BatchApplier.Apply(ctx, record); err != nil {
				return &courier.OpenError{Cause: err}
			}
			return nil
		}
	}},
	{"broken for ever", "goes on behind poison", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		var broken error
		a.apply = func(ctx context.Context, record int) error {
			if broken == nil {
				broken = a.BatchApplier.Apply(ctx, record)
			}
			return broken
		}
	}},
	{"reverses pairs", "keeps the order", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		applied := x.Applied
		x.Applied = func() []string {
			names := applied()
			slices.Reverse(names)
			return names
		}
	}},
	{"one at a time", "takes calls at once", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		var busy atomic.Int32
		var first sync.Once
		second := make(chan struct{})
		a.apply = func(ctx context.Context, record int) error {
			if busy.Add(1) > 1 {
				first.Do(func() { close(second) })
				return errors.New("busy")
			}
			defer busy.Add(-1)
			<-second
			return a.BatchApplier.Apply(ctx, record)
		}
	}},
}

// flat1 loses what an error was marked with.
func flat1(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(err.Error())
}

func numberOf(record int) string { return (&Recorder[int]{}).name(record) }

var ofBatches = []applierDefect{
	{"is none", "is a batch applier", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		x.Applier = &a.Applier
	}},
	{"nil, and nothing is done", "applies a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(context.Context, []int) error { return nil }
	}},
	{"drops the last", "applies a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			return a.BatchApplier.ApplyBatch(ctx, records[:len(records)-1])
		}
	}},
	{"pairs only", "applies a batch of one", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			return a.BatchApplier.ApplyBatch(ctx, records[:len(records)/2*2])
		}
	}},
	{"a thousand at most", "applies a large batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			return a.BatchApplier.ApplyBatch(ctx, records[:min(1000, len(records))])
		}
	}},
	{"refuses a repetition", "applies a batch again", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			for _, r := range records {
				if slices.Contains(x.Applied(), numberOf(r)) {
					return errors.New("it is there")
				}
			}
			return a.BatchApplier.ApplyBatch(ctx, records)
		}
	}},
	{"sorts it", "leaves the batch's slice alone", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			slices.Sort(records)
			return a.BatchApplier.ApplyBatch(ctx, records)
		}
	}},
	{"applies it later", "keeps no batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		var later []int
		a.batch = func(ctx context.Context, records []int) error {
			err := a.BatchApplier.ApplyBatch(ctx, later)
			later = records
			return err
		}
	}},
	{"says nil and does nothing", "tells the truth of a batch whose context has ended", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			if ctx.Err() != nil {
				return nil
			}
			return a.BatchApplier.ApplyBatch(ctx, records)
		}
	}},
	{"every error is permanent", "tells the truth of a batch whose context has ended", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = relisting(a, func(f courier.BatchFailure) courier.BatchFailure { f.Err = courier.Permanent(f.Err); return f })
	}},
	{"swallows the error", "fails a batch in an outage", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		down(a, x)
		a.batch = func(ctx context.Context, records []int) error {
			_ = a.BatchApplier.ApplyBatch(ctx, records)
			return nil
		}
	}},
	{"lists one and means all", "fails a batch in an outage", func(_ *testing.T, a *applierWith, x *ApplierFixture[int]) {
		down(a, x)
		a.batch = func(ctx context.Context, records []int) error {
			err := a.BatchApplier.ApplyBatch(ctx, records)
			if list, ok := err.(*courier.BatchError); ok {
				list.Failures = list.Failures[:1]
			}
			return err
		}
	}},
	{"does not heed its context", "ends a batch with its context in an outage", func(t *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		until, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		a.batch = func(_ context.Context, records []int) error { return a.BatchApplier.ApplyBatch(until, records) }
	}},
	{"takes its context for success", "ends a batch with its context in an outage", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			err := a.BatchApplier.ApplyBatch(ctx, records)
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}},
	{"an index in its part", "tells what failed of a large batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = relisting(a, func(f courier.BatchFailure) courier.BatchFailure { f.Index %= 500; return f })
	}},
	{"the last part only", "tells what failed of a large batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) (err error) {
			for part := range slices.Chunk(records, 1000) {
				err = a.BatchApplier.ApplyBatch(ctx, part)
			}
			return err
		}
	}},
	{"broken for ever", "recovers with a batch from an outage", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		var broken error
		a.batch = func(ctx context.Context, records []int) error {
			if broken == nil {
				broken = a.BatchApplier.ApplyBatch(ctx, records)
			}
			return broken
		}
	}},
	{"says all is well", "tells what failed of a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			_ = a.BatchApplier.ApplyBatch(ctx, records)
			return nil
		}
	}},
	{"one index too far", "tells what failed of a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = relisting(a, func(f courier.BatchFailure) courier.BatchFailure { f.Index++; return f })
	}},
	{"an index of no record", "tells what failed of a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = relisting(a, func(f courier.BatchFailure) courier.BatchFailure { f.Index = 99; return f })
	}},
	{"without an error", "tells what failed of a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = relisting(a, func(f courier.BatchFailure) courier.BatchFailure { f.Err = nil; return f })
	}},
	{"fails as one and has applied the rest", "tells what failed of a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			return flat1(a.BatchApplier.ApplyBatch(ctx, records))
		}
	}},
	{"backwards", "keeps the order of a batch", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			records = slices.Clone(records)
			slices.Reverse(records)
			return a.BatchApplier.ApplyBatch(ctx, records)
		}
	}},
	{"does not say that it is", endsBehind, func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.InOrder = false
	}},
	{"goes on", endsBehind, func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			var list courier.BatchError
			for i, r := range records {
				if err := a.BatchApplier.Apply(ctx, r); err != nil {
					list.Add(i, err)
				}
			}
			return list.ErrorOrNil()
		}
	}},
	{"goes on, and says it did not", endsBehind, func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			err := a.BatchApplier.ApplyBatch(ctx, records)
			_ = a.Apply(ctx, records[4])
			return err
		}
	}},
	{"counts what is behind as attempts", endsBehind, func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = relisting(a, func(f courier.BatchFailure) courier.BatchFailure {
			if errors.Is(f.Err, courier.ErrBehindFailed) {
				f.Err = errors.New("not sent")
			}
			return f
		})
	}},
	{"fails what is before it", endsBehind, func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			err := a.BatchApplier.ApplyBatch(ctx, records)
			if list, ok := err.(*courier.BatchError); ok {
				list.Add(0, courier.ErrBehindFailed)
			}
			return err
		}
	}},
	{"stops at the first", "lists poison alone", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = func(ctx context.Context, records []int) error {
			var list courier.BatchError
			for i, r := range records {
				err := errors.New("not sent, because one before it failed")
				if len(list.Failures) == 0 {
					err = a.BatchApplier.Apply(ctx, r)
				}
				if err != nil {
					list.Add(i, err)
				}
			}
			return list.ErrorOrNil()
		}
	}},
	{"does not say it is permanent", "says of a batch what is permanent", func(_ *testing.T, a *applierWith, _ *ApplierFixture[int]) {
		a.batch = relisting(a, func(f courier.BatchFailure) courier.BatchFailure { f.Err = flat1(f.Err); return f })
	}},
}

// relisting changes what a batch error lists.
func relisting(a *applierWith, change func(courier.BatchFailure) courier.BatchFailure) func(context.Context, []int) error {
	return func(ctx context.Context, records []int) error {
		err := a.BatchApplier.ApplyBatch(ctx, records)
		if list, ok := err.(*courier.BatchError); ok {
			for i, f := range list.Failures {
				list.Failures[i] = change(f)
			}
		}
		return err
	}
}
