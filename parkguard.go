package courier

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/internal/parkguard"
)

// AnyParkRate is a MaxParkRate that switches the guard of a [DLQPolicy] off: any
// share of the records may be parked.
const AnyParkRate = 1.0

// ErrParkRate is what every [*ParkRateError] is, to errors.Is.
var ErrParkRate = errors.New("courier: too many records go to the dead letter queue")

// ParkRateError says that so many of the last records were parked that something
// else than the records must be wrong, and that no more are parked for now. Its
// class is NotAttempted: the records stay pending, and the coordinator pauses
// until the time given. It comes as the Store of a [*ParkError].
type ParkRateError struct {
	Parked, Of int       // of the last records, when the guard tripped
	Until      time.Time // when records are parked again

	due moment
}

func (e *ParkRateError) Error() string {
	return fmt.Sprintf("courier: %d of the last %d records went to the dead letter queue, none is parked until %s: see what their errors have in common, or raise DLQPolicy.MaxParkRate",
		e.Parked, e.Of, e.Until.Format(time.RFC3339))
}

// Is reports whether err is [ErrParkRate].
func (e *ParkRateError) Is(err error) bool { return err == ErrParkRate }

// NotAttempted reports true.
func (e *ParkRateError) NotAttempted() bool { return true }

// RetryAt returns Until, or where the clock was set back since, the time that is
// now.
func (e *ParkRateError) RetryAt() time.Time { return e.due.told(e.Until) }

// parkGuard is the shell of the parkguard kernel. A record that is applied costs
// it one atomic addition. A nil guard allows everything.
type parkGuard struct {
	policy  parkguard.Policy
	clock   *steady
	decided atomic.Uint64
	mu      sync.Mutex
	state   parkguard.State
	refusal *ParkRateError
}

func newParkGuard[T any](p *DLQPolicy[T]) *parkGuard {
	if p.MaxParkRate >= AnyParkRate {
		return nil
	}
	return &parkGuard{clock: newSteady(p.Clock), policy: parkguard.Policy{
		Rate: p.MaxParkRate, Window: p.ParkWindow, Min: p.MinParked, Pause: p.ParkPause,
	}}
}

// applied counts records that were decided: applied, or parked.
func (g *parkGuard) applied(n int) {
	if g != nil {
		g.decided.Add(uint64(n))
	}
}

// ask returns why a record may not be parked. One that is parked behind another
// of its key does not count.
func (g *parkGuard) ask(behind bool) error {
	if g == nil {
		return nil
	}
	now := g.clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state.Refusing(now) {
		refusal := *g.refusal
		refusal.Until = g.clock.told(g.state.Until)
		return &refusal
	}
	if behind {
		return nil
	}
	parked, of, ok := g.state.Park(&g.policy, g.decided.Load(), now)
	if ok {
		return nil
	}
	g.refusal = &ParkRateError{Parked: parked, Of: of, Until: g.clock.told(g.state.Until), due: moment{g.clock, g.state.Until}}
	return g.refusal
}

// undo takes back what ask allowed.
func (g *parkGuard) undo(behind bool) {
	if g == nil || behind {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state.Undo()
}
