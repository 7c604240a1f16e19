package courier

import (
	"fmt"
	"sync"

	"github.com/erfanmomeniii/courier/internal/budget"
)

// BudgetPolicy configures a [RetryBudget]. The zero value is the default.
type BudgetPolicy struct {
	// Ratio is how many retries each first attempt that succeeds pays for. 0 is
	// 0.2: one retry for five successes.
	Ratio float64

	// Floor is how many retries a second are always allowed, so that a quiet pipeline can
	// retry. 0 is 1.
	Floor float64

	// Burst is how many retries can be saved up. 0 is 100. The budget begins
	// full.
	Burst float64

	// Clock is nil for the system's clock.
	Clock Clock
}

func (p BudgetPolicy) withDefaults() BudgetPolicy {
	p.Ratio = or(p.Ratio, 0.2)
	p.Floor = or(p.Floor, 1)
	p.Burst = or(p.Burst, 100)
	p.Clock = clockOr(p.Clock)
	return p
}

func (p BudgetPolicy) validate() error {
	within := func(v float64) bool { return v >= 0 && v <= maxCount }
	want := fmt.Sprintf("more than 0 and at most %d, or 0 for the default", maxCount)
	return firstFault(boundsFault("BudgetPolicy", []bound{
		{"Ratio", p.Ratio, within(p.Ratio), want},
		{"Floor", p.Floor, within(p.Floor), want},
		{"Burst", p.Burst, within(p.Burst), want},
		{"Burst", p.Burst, p.withDefaults().Burst >= 1, "at least one retry"},
	}), clockFault("BudgetPolicy.Clock", p.Clock))
}

// RetryBudget limits the retries of everything that shares it to a fraction of the
// successes: when all records fail at once, retries do not multiply the load on a
// destination in trouble. Share one among the retries for a destination, by
// RetryPolicy.Budget. It is safe for concurrent use and never blocks.
//
// The scheme is that of Finagle: successes deposit, retries withdraw, a retry that
// succeeds is refunded, and a floor rate refills it in any case.
type RetryBudget struct {
	kernel budget.Policy
	clock  *steady
	fault  error

	mu    sync.Mutex
	state budget.State
}

// NewRetryBudget returns a full budget. A bad policy is reported by the Apply of
// the retries that use it.
func NewRetryBudget(policy BudgetPolicy) *RetryBudget {
	p := policy.withDefaults()
	return &RetryBudget{kernel: budget.Policy{Ratio: p.Ratio, Floor: p.Floor, Burst: p.Burst}, clock: newSteady(p.Clock), fault: policy.validate()}
}

func (b *RetryBudget) deposit(n int) {
	if b == nil {
		return
	}
	now := b.clock.Now()
	b.mu.Lock()
	b.state.Deposit(&b.kernel, float64(n), now)
	b.mu.Unlock()
}

func (b *RetryBudget) withdraw(n int) bool {
	if b == nil {
		return true
	}
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Withdraw(&b.kernel, float64(n), now)
}

func (b *RetryBudget) refund(n int) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.state.Refund(&b.kernel, float64(n))
	b.mu.Unlock()
}

// owedRetries is how many retries a run has withdrawn from budgets for attempts that it has
// not made yet.
type owedRetries struct {
	mu sync.Mutex
	to map[*RetryBudget]int
}

// add notes that n more were withdrawn, or that they are not owed any more where n is
// negative.
func (o *owedRetries) add(b *RetryBudget, n int) {
	if b == nil || n == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.to == nil {
		o.to = make(map[*RetryBudget]int)
	}
	o.to[b] += n
}

// payBack refunds what is owed at the end of a run: those attempts are not made.
func (o *owedRetries) payBack() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for b, n := range o.to {
		b.refund(max(0, n))
	}
	o.to = nil
}
