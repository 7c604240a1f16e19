package sim_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/sim"
)

// shop has orders to be shipped.
type shop struct {
	pending []int
	shipped map[int]int
}

func newShop() *shop {
	s := &shop{shipped: map[int]int{}}
	for n := range 20 {
		s.pending = append(s.pending, n)
	}
	return s
}

func (s *shop) fetch(context.Context) ([]int, error) { return slices.Clone(s.pending), nil }

func (s *shop) ship(_ context.Context, order int) error {
	s.shipped[order]++
	return nil
}

func (s *shop) mark(_ context.Context, orders []int) error {
	s.pending = slices.DeleteFunc(s.pending, func(n int) bool { return slices.Contains(orders, n) })
	return nil
}

// TestShop simulates a pipeline of one's own.
func TestShop(t *testing.T) {
	sim.Check(t, sim.Options{Episodes: 100}, func(w *sim.World) {
		s := newShop() // lives through crashes of the process
		w.Run(func(ctx context.Context) error {
			return courier.SyncWithRetry(sim.WrapFetch(w, s.fetch), sim.WrapProcess(w, s.ship), sim.WrapMark(w, s.mark), 3, w.Options(ctx)...).Start(ctx)
		})
		w.Always(func() error {
			for n := range 20 {
				if s.shipped[n] == 0 && !slices.Contains(s.pending, n) {
					return fmt.Errorf("order %d is marked and was not shipped", n)
				}
			}
			return nil
		})
		w.Eventually("every order is shipped", func() bool { return len(s.pending) == 0 })
	})
}

// TestShop_Resilient simulates a pipeline with a breaker and a dead letter queue.
func TestShop_Resilient(t *testing.T) {
	sim.Check(t, sim.Options{Episodes: 100}, func(w *sim.World) {
		s, letters := newShop(), &courier.MemoryDLQ[int]{} // live through crashes of the process
		w.Run(func(ctx context.Context) error {
			source := courier.BatchSourceFunc[int]{FetchFunc: sim.WrapFetch(w, s.fetch), MarkFunc: sim.WrapMark(w, s.mark)}
			applier, _ := courier.ResilientApplier(courier.ProcessFunc(sim.WrapProcess(w, s.ship)), &courier.ResilientConfig[int]{
				Retry:   w.Retry(ctx, courier.RetryPolicy{MaxAttempts: 10}),
				Breaker: courier.BreakerPolicy{Random: w.Random(ctx)},
				DLQ:     sim.WrapDLQ(w, letters),
				Clock:   w.Clock(ctx),
			})
			return courier.NewPollingCoordinator(source, applier, w.Options(ctx)...).Start(ctx)
		})
		w.Always(func() error {
			parked, err := letters.Receive(context.Background(), 20)
			for n := range 20 {
				isParked := slices.ContainsFunc(parked, func(l courier.DeadLetter[int]) bool { return l.Record == n })
				if s.shipped[n] == 0 && !isParked && !slices.Contains(s.pending, n) {
					return fmt.Errorf("order %d is marked and was neither shipped nor parked", n)
				}
			}
			return err
		})
		w.Eventually("every order is shipped", func() bool { return len(s.pending) == 0 })
	})
}

// The test of a pipeline of one's own. TestShop is the same, with a check that
// holds always.
func ExampleCheck() {
	_ = func(t *testing.T) { // TestMyPipelineSurvivesChaos
		sim.Check(t, sim.Options{Episodes: 300}, func(w *sim.World) {
			s := newShop() // lives through crashes of the process
			w.Run(func(ctx context.Context) error {
				return courier.Sync(sim.WrapFetch(w, s.fetch), sim.WrapProcess(w, s.ship), sim.WrapMark(w, s.mark), w.Options(ctx)...).Start(ctx)
			})
			w.Eventually("every order is shipped", func() bool { return len(s.pending) == 0 })
		})
	}
}
