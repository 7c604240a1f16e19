package courierttest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
)

// ErrInjected is what every error is that a fault causes, to errors.Is; a panic
// of one included.
var ErrInjected = errors.New("injected fault")

// InjectedError is the error of a fault.
type InjectedError struct {
	Effect Effect
	Record string // its name, "" for a call that is not about one record
	Call   int    // which call of the fake it was
}

func (e *InjectedError) Error() string {
	if e.Record == "" {
		return fmt.Sprintf("%v: %s at call %d", ErrInjected, e.Effect, e.Call)
	}
	return fmt.Sprintf("%v: %s for record %q at call %d", ErrInjected, e.Effect, e.Record, e.Call)
}

// Is reports whether err is [ErrInjected].
func (e *InjectedError) Is(err error) bool { return err == ErrInjected }

// Effect is what a fault does to a call. Its value is its text form.
type Effect string

// The effects without a duration; Delay, RetryAfter and Later make the others.
const (
	OK        Effect = "ok"        // nothing, and no later fault of the list applies
	Error     Effect = "error"     // an error; nothing was done
	Permanent Effect = "permanent" // an error that is courier.Permanent
	Skip      Effect = "skip"      // courier.Skip
	Lost      Effect = "lost"      // the work is done, and the answer is an error
	Panic     Effect = "panic"     // with the error
	Goexit    Effect = "goexit"    // runtime.Goexit
	Hang      Effect = "hang"      // until the context ends
	Whole     Effect = "whole"     // a batch fails as a whole; a single call as Error
)

// Delay waits before the call, or until its context ends. Further faults of the list
// apply after it. In a batch the longest delay counts.
func Delay(d time.Duration) Effect { return Effect("delay " + d.String()) }

// RetryAfter is [Error] with a [courier.RetryAfter] around the error.
func RetryAfter(d time.Duration) Effect { return Effect("retry-after " + d.String()) }

// Later is [Error] with a [courier.Later] around the error: the call does not count as an
// attempt.
func Later(d time.Duration) Effect { return Effect("later " + d.String()) }

// Fault is an effect that happens if its condition holds. It is a value, and safe for
// concurrent use.
type Fault struct {
	Effect Effect
	When   Condition // nil is always
}

// Faults is a list of faults; the first whose condition holds happens. nil is none. It
// has a text form, see [Parse], also as a flag (flag.TextVar) and in JSON.
type Faults []Fault

// Script gives the first call the first effect, the second call the second, and so on.
// Later calls have no fault.
func Script(effects ...Effect) Faults {
	faults := make(Faults, len(effects))
	for i, effect := range effects {
		faults[i] = Fault{effect, Calls(i+1, i+1)}
	}
	return faults
}

// Validate reports an unknown effect or an invalid condition as a [*courier.ConfigError].
func (f Faults) Validate() error {
	for i, fault := range f {
		_, err := parseEffect(string(fault.Effect))
		if err == nil && fault.When != nil {
			err = fault.When.validate()
		}
		if err != nil {
			return &courier.ConfigError{Field: fmt.Sprintf("Faults[%d]", i), Problem: err.Error()}
		}
	}
	return nil
}

// call is what a condition is asked about.
type call struct {
	n       int // of the fake, from 1; each record of a batch is one
	name    string
	attempt int // of the record, from 1
	since   time.Duration
}

// verdict is what the faults make of a call.
type verdict struct {
	call
	delay  time.Duration
	effect Effect // OK for none
}

func (f Faults) judge(c call) verdict {
	v := verdict{call: c, effect: OK}
	for _, fault := range f {
		if fault.When != nil && !fault.When.holds(c) {
			continue
		}
		if d, ok := durationOf(fault.Effect, delayWord); ok {
			v.delay += d
			continue
		}
		v.effect = fault.Effect
		break
	}
	return v
}

// err returns the error of the verdict, nil for OK.
func (v verdict) err() error {
	injected := &InjectedError{v.effect, v.name, v.n}
	switch v.effect {
	case OK:
		return nil
	case Permanent:
		return courier.Permanent(injected)
	case Skip:
		return courier.Skip(injected)
	}
	if d, ok := durationOf(v.effect, retryAfterWord); ok {
		return courier.RetryAfter(injected, d)
	}
	if d, ok := durationOf(v.effect, laterWord); ok {
		return courier.Later(injected, d)
	}
	return injected
}

// interrupt carries out the effects that end a call before anything is done. It
// returns an error for one that does so by returning.
func (v verdict) interrupt(ctx context.Context) error {
	switch v.effect {
	case Panic:
		panic(v.err())
	case Goexit:
		runtime.Goexit()
	case Hang:
		<-ctx.Done()
		return fmt.Errorf("%w: %w", v.err(), context.Cause(ctx))
	}
	return nil
}

// Injector applies faults to the calls of a fake, and counts the calls. The zero value
// has no faults. It is safe for concurrent use, and must not be copied.
type Injector struct {
	mu       sync.Mutex
	faults   Faults
	fault    error // in the faults
	calls    int
	attempts map[string]int
	began    time.Time
}

// Set replaces the faults from the next call on; calls and attempts are counted on.
// Without an argument it ends the faults, for example at the end of an outage.
func (i *Injector) Set(faults ...Fault) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.faults, i.fault = slices.Clone(faults), Faults(faults).Validate()
}

// Calls returns the number of calls; each record of a batch is one.
func (i *Injector) Calls() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.calls
}

// Validate reports an invalid fault.
func (i *Injector) Validate() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fault
}

// next asks the faults about the next call, or the records of it.
func (i *Injector) next(now time.Time, names ...string) ([]verdict, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fault != nil {
		return nil, i.fault
	}
	if i.attempts == nil {
		i.attempts = make(map[string]int)
		i.began = now
	}
	verdicts := make([]verdict, len(names))
	for n, name := range names {
		i.calls++
		i.attempts[name]++
		verdicts[n] = i.faults.judge(call{i.calls, name, i.attempts[name], now.Sub(i.began)})
	}
	return verdicts, nil
}

// pause lets a delay pass.
func pause(ctx context.Context, clock courier.Clock, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-clock.After(d):
	case <-ctx.Done():
	}
}

// draw returns a uniform value in [0, 1) that belongs to its arguments, so that
// no draw depends on which goroutine came first.
func draw(seed uint64, name string, n int) float64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d/%s/%d", seed, name, n)
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return math.Ldexp(float64(x>>11), -53)
}
