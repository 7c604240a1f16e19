package sim

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/erfanmomeniii/courier"
)

// Kind is what a call into the world is for.
type Kind uint8

// The kinds of calls.
const (
	Fetch Kind = iota
	Apply
	Batch // an apply of several records
	Mark
	Release
	Fail
	Renew
	Send  // to a dead letter queue
	Keys  // of a dead letter queue: which are parked
	Begin // a worker comes to a record
	Hook  // of a retry
	Read  // of a dead letter queue
	Edit  // of its letters
	Call  // of the code under test, see World.Call
	kinds
)

var kindNames = [kinds]string{"fetch", "apply", "batch", "mark", "release", "fail", "renew", "send", "keys", "begin", "hook", "read", "edit", "call"}

func (k Kind) String() string { return kindNames[k] }

// MarshalText returns the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText takes a kind's name.
func (k *Kind) UnmarshalText(text []byte) error {
	for i, name := range kindNames {
		if name == string(text) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("sim: there is no kind of call %q", text)
}

// callID names a call: what it is for, what it is about, and how many such calls
// there were before.
type callID struct {
	kind Kind
	n    uint32
	id   uint64
}

// call is one call into the world. It parks until the scheduler lets it go on.
type call struct {
	callID
	p      *Process
	ctx    context.Context
	lane   int         // see inLane
	number uint64      // of the delivery, where several of a record may come at one instant
	name   string      // of what it is about
	detail string      // where it is traced
	data   any         // the model's
	effect func(*call) // what it does to the world, at one instant; nil where the caller does it
	fault  FaultKind
	err    error
	wait   bool // set by effect: nothing to reply yet, see World.kick
	had    bool // the effect, or a failure in its place
	gone   bool // is to return, and have no effect any more
	closes bool // the second half of a call whose effect the caller had
	turn   bool // likewise, of one that takes no time, see takeTurn
	passed any  // the model's: the breakers that let it through
	counts bool // likewise: as an attempt, if it is one
	stamp  uint64
	came   int64 // when
	wake   chan struct{}
}

var (
	// ErrInjected is in the tree of every error that the simulation made.
	ErrInjected = errors.New("injected")

	errCrashed = errors.New("the process is dead")
)

// callError is the error of a call. It knows its record, by which the hooks of a
// retry are told apart.
type callError struct {
	id    uint64
	text  string
	cause error         // ErrInjected, or that of the context
	after time.Duration // for how long it asks with courier.Later; 0 if it does not
}

func (e *callError) Error() string { return e.text }
func (e *callError) Unwrap() error { return e.cause }

func injured(id uint64, text string) *callError {
	return &callError{id: id, text: text, cause: ErrInjected}
}

// do makes a call and returns when its reply is due. effect runs on the
// scheduler's goroutine while nothing else runs.
func (p *Process) do(ctx context.Context, kind Kind, id uint64, name string, data any, effect func(*call)) *call {
	return p.doFor(ctx, 0, kind, id, name, data, effect)
}

// doFor is do for one of several deliveries of a record.
func (p *Process) doFor(ctx context.Context, number uint64, kind Kind, id uint64, name string, data any, effect func(*call)) *call {
	w := p.w
	w.mu.Lock()
	var c *call
	if n := len(w.free); n > 0 {
		c, w.free = w.free[n-1], w.free[:n-1]
		*c = call{wake: c.wake, stamp: c.stamp}
	} else {
		c = &call{wake: make(chan struct{}, 1)}
	}
	c.callID, c.p, c.ctx, c.name, c.data, c.effect = callID{kind: kind, id: id}, p, ctx, name, data, effect
	c.lane, c.number = laneOf(ctx), number
	w.inbox = append(w.inbox, c)
	w.mu.Unlock()
	<-c.wake
	return c
}

type laneKey struct{}

// inLane tells the calls of one of several coordinators of a process from those of the
// others, which may be about the same at one instant.
func inLane(ctx context.Context, lane int) context.Context {
	return context.WithValue(ctx, laneKey{}, lane)
}

func laneOf(ctx context.Context) int {
	lane, _ := ctx.Value(laneKey{}).(int)
	return lane
}

// close parks once more, between an effect that the caller had and the reply.
func (p *Process) close(c *call) {
	w := p.w
	w.mu.Lock()
	c.closes = true
	w.inbox = append(w.inbox, c)
	w.mu.Unlock()
	<-c.wake
}

// takeTurn parks until those that come at the same instant go on one by one, in the order
// of what they are about. It is for calls of the library's own memory, which are no part
// of the world and take no time, but whose order shows.
func (p *Process) takeTurn(ctx context.Context, id uint64) {
	c := &call{callID: callID{kind: Hook, id: id}, p: p, lane: laneOf(ctx), name: "a turn", turn: true, wake: make(chan struct{}, 1)}
	p.close(c)
}

// done lets the memory of a call be used again.
func (p *Process) done(c *call) {
	p.w.mu.Lock()
	p.w.free = append(p.w.free, c)
	p.w.mu.Unlock()
}

// refusal is an error that says that the call was no attempt, as that of a limiter
// in front of a destination does.
type refusal struct{ error }

// NotAttempted reports true.
func (r *refusal) NotAttempted() bool { return true }

func (r *refusal) Unwrap() error { return r.error }

// fail makes the injected error of a call.
func (c *call) fail(text string) error {
	return c.p.w.injected(c.fault, c.callID, fmt.Sprintf("%s of %s #%d: %s", c.kind, c.name, c.n, text))
}

// injected makes the error of a fault.
func (w *World) injected(k FaultKind, c callID, text string) error {
	err := injured(c.id, text)
	if c.kind == Apply || c.kind == Batch {
		return w.dress(k, c, err)
	}
	return err
}

// dress gives the error of an apply a form that programs give it. Often it is plain.
// Else it is one of a tree that says the same: what failed beside what was skipped has
// failed, and what was no attempt is none, whatever is around it or beside it.
func (w *World) dress(k FaultKind, c callID, err *callError) error {
	h := hash(w.seed, forDress, uint64(c.kind)<<32|uint64(c.n), c.id)
	skip := courier.Skip(injured(c.id, "a part of it was not to be done"))
	switch k {
	case Permanent:
		err := courier.Permanent(err)
		if h%10 > 5 {
			return [...]error{errors.Join(skip, err), errors.Join(err, skip), fmt.Errorf("given up: %w", err), courier.Permanent(errors.Join(skip, err))}[(h>>8)%4]
		}
		return err
	case Later:
		err.after = w.busyFor(c)
		later := courier.Later(err, err.after)
		if h%10 > 5 {
			return [...]error{
				errors.Join(skip, later), courier.Permanent(later), courier.Skip(later), fmt.Errorf("busy: %w", later),
				errors.Join(courier.Later(err, err.after/2), later), fmt.Errorf("mail: %w; ledger: %w", later, skip),
			}[(h>>8)%6]
		}
		return later
	case Refused:
		err := error(&refusal{err})
		if h%10 > 5 {
			return [...]error{
				errors.Join(skip, err), courier.Permanent(err), courier.Skip(err), fmt.Errorf("limited: %w", err),
				foreign(err),
			}[(h>>8)%5]
		}
		return err
	}
	if h%10 > 5 {
		return [...]error{
			errors.Join(skip, err), errors.Join(err, skip), fmt.Errorf("mail: %w; ledger: %w", skip, err), fmt.Errorf("ledger: %w", errors.Join(err, skip)),
			errors.Join(skip, &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: err}}}), fmt.Errorf("failed: %w", err),
		}[(h>>8)%6]
	}
	return err
}

// busyFor is how long a destination asks to be left alone: for most records less than
// a source without leases leaves one in hand, and for some more.
func (w *World) busyFor(c callID) time.Duration {
	h := hash(w.seed, forLater, uint64(c.kind)<<32|uint64(c.n), c.id)
	most := [...]time.Duration{50 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second}[h%4]
	return 1 + time.Duration(uniform(mix(h))*float64(most))
}

// thrown is what a call panics with: its error, plain or with a class or a delay of
// its own, a text, or one of what Go programs panic with without meaning to. To the
// record they are all the same.
func (c *call) thrown() any {
	h := hash(c.p.w.seed, forThrow, uint64(c.kind)<<32|uint64(c.n), c.id)
	switch h % 12 {
	case 3:
		return courier.Skip(c.err)
	case 4:
		return courier.Permanent(c.err)
	case 5:
		return courier.RetryAfter(c.err, time.Hour)
	case 6:
		return &refusal{c.err}
	case 7:
		return text{c.id}
	case 8:
		return (*callError)(nil) // the classic: a nil pointer that is an error
	case 9:
		return outOfRange()
	case 10:
		return &runtime.PanicNilError{}
	case 11:
		return []string(nil) // which cannot be compared
	}
	return c.err
}

// text is a value that is no error.
type text struct{ id uint64 }

func (t text) String() string { return fmt.Sprintf("a panic of %d", t.id) }

// outOfRange returns the error of an index that is out of range.
func outOfRange() (value any) {
	defer func() { value = recover() }()
	list := make([]int, 1)
	return list[len(list)]
}

// foreign is the error of a handler that has a pipeline of its own for each tenant, one
// of which is misconfigured.
func foreign(err error) error {
	return fmt.Errorf("a tenant's pipeline: %w (%w)", &courier.ConfigError{Field: "RetryPolicy.MaxAttempts", Problem: "is -1"}, err)
}

// await is do for a call that has nothing to return but an error, and may end
// otherwise than by returning.
func (p *Process) await(ctx context.Context, kind Kind, id uint64, name string, data any, effect func(*call)) error {
	c := p.do(ctx, kind, id, name, data, effect)
	fault, err := c.fault, c.err
	var value any
	if fault == Panic && err != nil {
		value = c.thrown()
	}
	p.done(c)
	switch {
	case err == nil:
	case fault == Panic:
		panic(value)
	case fault == Goexit:
		runtime.Goexit()
	}
	return err
}

// latency is how long a kind of call takes at most, up to its effect and from
// there to its reply.
var latency = [kinds]time.Duration{
	Fetch: 4 * time.Millisecond, Apply: 10 * time.Millisecond, Batch: 10 * time.Millisecond, Mark: 4 * time.Millisecond,
	Release: 4 * time.Millisecond, Fail: 4 * time.Millisecond, Renew: 4 * time.Millisecond, Send: 8 * time.Millisecond,
	Keys: 4 * time.Millisecond, Begin: 500 * time.Microsecond, Hook: 200 * time.Microsecond, Read: 4 * time.Millisecond, Edit: 4 * time.Millisecond,
	Call: 4 * time.Millisecond,
}

const (
	slower = 20               // times, where a call is slow
	hung   = 15 * time.Second // by then a call that hangs gives up, whatever its context says
)

// continues reports whether a call whose effect the caller has is to have one.
func (c *call) continues() bool {
	switch c.fault {
	case None, Lost, Slow:
		return true
	}
	return false
}
