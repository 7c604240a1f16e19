package sim

import (
	"context"
	"fmt"
	"testing"

	"github.com/erfanmomeniii/courier"
)

// bank is a user's own state: payments to be made, and an account.
type bank struct {
	pending []int
	paid    map[int]bool
	balance int
}

func newBank(n int) *bank {
	b := &bank{paid: map[int]bool{}}
	for i := range n {
		b.pending = append(b.pending, i)
	}
	return b
}

func (b *bank) fetch(context.Context) ([]int, error) {
	return append([]int(nil), b.pending[:min(10, len(b.pending))]...), nil
}

func (b *bank) mark(_ context.Context, done []int) error {
	kept := b.pending[:0:0]
	for _, n := range b.pending {
		marked := false
		for _, d := range done {
			marked = marked || d == n
		}
		if !marked {
			kept = append(kept, n)
		}
	}
	b.pending = kept
	return nil
}

func (b *bank) pay(_ context.Context, n int) error {
	if !b.paid[n] {
		b.paid[n] = true
		b.balance += 10
	}
	return nil
}

func (b *bank) payAgain(_ context.Context, n int) error {
	b.paid[n] = true
	b.balance += 10
	return nil
}

func simulateBank(pay func(b *bank) func(context.Context, int) error) func(w *World) {
	return func(w *World) {
		b := newBank(40)
		w.Run(func(ctx context.Context) error {
			return courier.SyncWithRetry(WrapFetch(w, b.fetch), WrapProcess(w, pay(b)), WrapMark(w, b.mark), 3, w.Options(ctx)...).Start(ctx)
		})
		w.Always(func() error {
			if want := 10 * len(b.paid); b.balance != want {
				return fmt.Errorf("the balance is %d, want %d", b.balance, want)
			}
			return nil
		})
		w.Eventually("nothing is pending", func() bool { return len(b.pending) == 0 })
	}
}

func TestAUsersPipelineIsSimulated(t *testing.T) {
	for _, native := range []bool{false, true} {
		Check(t, Options{Episodes: 100, Native: native}, simulateBank(func(b *bank) func(context.Context, int) error { return b.pay }))
	}
}
