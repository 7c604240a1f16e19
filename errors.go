package courier

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"
	"time"
)

// ErrorClass is what an error says about a record, see [Classify].
type ErrorClass int

const (
	// ClassRetryable is the default: the attempt was made and failed, and another
	// one may succeed. It counts against the record.
	ClassRetryable ErrorClass = iota
	// ClassPermanent is an attempt that no retry can mend: the record is
	// parked, or left to fail.
	ClassPermanent
	// ClassNotAttempted means that nothing can be held against the record: an open
	// breaker refused it, its context ended, the pipeline is misconfigured, the
	// dead letter queue did not take it. It stays pending, counts no attempt
	// and is never dead-lettered.
	ClassNotAttempted
	// ClassSkipped means that there is nothing to do for the record: it is marked.
	ClassSkipped
)

// String returns the name of the class in words.
func (c ErrorClass) String() string {
	switch c {
	case ClassRetryable:
		return "retryable"
	case ClassPermanent:
		return "permanent"
	case ClassNotAttempted:
		return "not attempted"
	case ClassSkipped:
		return "skipped"
	}
	return fmt.Sprintf("ErrorClass(%d)", int(c))
}

// Classify says which class a non-nil error is of. Every decorator and both
// coordinators decide by it.
//
// A class that the error names itself comes first:
//
//   - An error with a method NotAttempted() bool that returns true is
//     ClassNotAttempted, and so is everything around it.
//   - [Permanent] and [Skip] decide for everything inside them: of two, one
//     around the other, the outer one counts.
//   - Of errors side by side (errors.Join, several %w, a [*BatchError]),
//     ClassNotAttempted counts before permanent, permanent before retryable, and
//     retryable before skipped: a Skip counts only when nothing beside it failed.
//     A [*FanOutError] differs in one point: a branch that may be retried counts
//     before one that failed for good.
//   - A [*PanicError] has no class of its own, whatever the panic was called with.
//
// Otherwise an error that arrived after ctx, the context that the applier was
// given, had ended is NotAttempted: it tells of the stop, not of the record.
// Everything else is ClassRetryable, a context.Canceled or DeadlineExceeded while ctx
// lives included: that is the applier's own. So is an error that cannot be looked
// into, a nil pointer, say, or that holds such a one: what it says is not believed.
// A nil ctx counts as one that lives.
//
// It is safe for concurrent use and never blocks.
func Classify(ctx context.Context, err error) ErrorClass { return classify(ctx, sound(err)) }

// classify is Classify of an error that is sound.
func classify(ctx context.Context, err error) ErrorClass {
	if class := markedClass(ctx, err); class != ClassRetryable {
		return class
	}
	if ctx != nil && ctx.Err() != nil {
		return ClassNotAttempted
	}
	return ClassRetryable
}

// markedClass returns the class that an error tree was marked with, ClassRetryable where
// there is no mark. It walks the tree by hand because errors.As would stop at
// the first error that has a NotAttempted method, whatever that returns.
func markedClass(ctx context.Context, err error) ErrorClass {
	mark := ClassRetryable
	switch e := err.(type) {
	case *FanOutError: // several records' worth of marks below it: it decides
		return e.class(ctx)
	case *permanentError:
		mark = ClassPermanent
	case *skipError:
		mark = ClassSkipped
	case interface{ NotAttempted() bool }:
		if e.NotAttempted() {
			return ClassNotAttempted
		}
	}
	class, found := ClassRetryable, false
	several, one := wrappedIn(err)
	if one != nil {
		class = markedClass(ctx, one)
	}
	for _, child := range several {
		switch {
		case child == nil:
		case !found:
			class, found = markedClass(ctx, child), true
		default:
			class = strongest(class, markedClass(ctx, child))
		}
	}
	if mark != ClassRetryable && class != ClassNotAttempted {
		return mark
	}
	return class
}

// wrappedIn returns what an error wraps, by the one method or the other. The value
// of a panic is not among it: that says how the call ended, and not what became of
// the record.
func wrappedIn(err error) (several []error, one error) {
	switch e := err.(type) {
	case *PanicError:
	case interface{ Unwrap() error }:
		one = e.Unwrap()
	case interface{ Unwrap() []error }:
		several = e.Unwrap()
	}
	return several, one
}

// classOf is the class of a failed record's error, whatever has become of its
// context since; what did not fail was not attempted.
func classOf(failed bool, err error) ErrorClass {
	if !failed {
		return ClassNotAttempted
	}
	if markedClass(context.Background(), err) == ClassPermanent {
		return ClassPermanent
	}
	return ClassRetryable
}

// strongest is the class of two errors side by side.
func strongest(a, b ErrorClass) ErrorClass {
	for _, class := range [...]ErrorClass{ClassNotAttempted, ClassPermanent, ClassRetryable} {
		if a == class || b == class {
			return class
		}
	}
	return ClassSkipped
}

// Permanent marks err as one that no retry can mend: the record is parked at
// once where there is a dead letter queue. Permanent(nil) is nil. The error
// keeps its text, and errors.Is and errors.As see err.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Skip says that there is nothing to do for the record, for the reason given:
// it is marked as done without having been applied. Beside an error that is not
// skipped it has no effect, see [Classify]. Skip(nil) is nil, which marks the
// record as well.
func Skip(reason error) error {
	if reason == nil {
		return nil
	}
	return &skipError{reason}
}

type skipError struct{ err error }

func (e *skipError) Error() string { return "skipped: " + e.err.Error() }
func (e *skipError) Unwrap() error { return e.err }

// RetryAfter asks that the record not be tried again before d has passed, as
// an HTTP Retry-After header does. It is a minimum: the policy's own delay
// applies where it is longer, and of several errors in a tree the longest does. A
// negative d counts as 0. RetryPolicy.MaxRetryAfter caps it; without a retry a
// coordinator obeys up to 24 hours. A breaker that opens over the error, or stays
// open over that of a probe, lets no other call through before, up to
// BreakerPolicy.MaxRetryAfter. RetryAfter(nil, d) is nil.
//
// [Source.Fetch] and [Source.Mark] may return it too: the coordinator makes the
// next call of that kind no sooner, and obeys at most an hour. Wake ends the wait
// for a fetch. A stop ends that for a mark, which is tried again at once and then with
// delays that begin anew, as its records would be applied again otherwise: of what it
// asks for then, half the drain timeout counts at the most. RunOnce gives a mark up
// that asks for more than the drain timeout.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, max(d, 0)}
}

type retryAfterError struct {
	err   error
	after time.Duration
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// ErrConfig is what every [*ConfigError] is, to errors.Is.
var ErrConfig = errors.New("courier: invalid configuration")

// ConfigError is a value that Courier cannot work with. Constructors that
// return no error keep it, and Start, RunOnce or Apply returns it before
// anything was fetched or applied. Its class is NotAttempted: one that an applier
// returns while a coordinator runs, of a pipeline of its own, leaves the record
// pending and stops no other.
type ConfigError struct {
	Field   string // the parameter, option or policy field
	Problem string // what is wrong with it and what to do
}

func (e *ConfigError) Error() string { return fmt.Sprintf("courier: %s %s", e.Field, e.Problem) }

// Is reports whether err is [ErrConfig].
func (e *ConfigError) Is(err error) bool { return err == ErrConfig }

// NotAttempted reports true.
func (e *ConfigError) NotAttempted() bool { return true }

// bound is what the field of a policy has to be.
type bound struct {
	field string
	value any
	holds bool
	want  string
}

// boundsFault reports the first bound of a policy that does not hold.
func boundsFault(policy string, bounds []bound) error {
	for _, b := range bounds {
		if !b.holds {
			return &ConfigError{policy + "." + b.field, fmt.Sprintf("is %v: want %s", b.value, b.want)}
		}
	}
	return nil
}

// configErrorOf returns what is wrong with a source, an applier or a queue.
func configErrorOf(field string, v any) (fault error) {
	if v == nil {
		return &ConfigError{Field: field, Problem: "is nil: it is required"}
	}
	if reflect.ValueOf(v).Kind() == reflect.Pointer && isNil(v) {
		return &ConfigError{Field: field, Problem: fmt.Sprintf("is a nil %T", v)}
	}
	if c, ok := v.(Validator); ok {
		isolate(&fault, c.Validate)
	}
	if p, ok := fault.(*PanicError); ok {
		return &ConfigError{Field: field, Problem: fmt.Sprintf("cannot tell what is wrong with it: Validate of the %T did not return (%v)", v, p)}
	}
	if fault == nil && isNil(v) {
		return &ConfigError{Field: field, Problem: fmt.Sprintf("is a nil %T", v)}
	}
	return fault
}

// isNil reports whether there is a nil pointer, function or channel behind an
// interface, which is not nil by itself. A nil map or slice can be worked with.
func isNil(v any) bool {
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Chan:
		return r.IsNil()
	}
	return false
}

// clockFault reports a clock that is none, though the interface is not nil.
func clockFault(field string, clock Clock) error {
	if isNil(clock) {
		return &ConfigError{field, fmt.Sprintf("is a nil %T: leave it nil for the system's clock", clock)}
	}
	return nil
}

// clockOr returns a clock that can be asked, the system's where there is none.
func clockOr(clock Clock) Clock {
	if clock == nil || isNil(clock) {
		return systemClock{}
	}
	switch clock.(type) {
	case systemClock, soundClock, *steady:
		return clock
	}
	return soundClock{clock}
}

var errNoContext = &ConfigError{"ctx", "is nil: pass context.Background() where there is no other"}

// contextFault reports a context that is none, where there is time to look closely.
func contextFault(ctx context.Context) error {
	if ctx == nil || isNil(ctx) {
		return errNoContext
	}
	return nil
}

// ErrPanic is what every [*PanicError] is, to errors.Is.
var ErrPanic = errors.New("courier: user code panicked")

// PanicError is a panic, or a call of runtime.Goexit, in a user's function. It
// is that record's failure, and retryable as any other, also where the panic was
// called with an error of another class or with a [RetryAfter].
type PanicError struct {
	Value any    // what was passed to panic; nil for Goexit
	Stack []byte // of the goroutine, from where it panicked
}

func (e *PanicError) Error() string {
	if e.Goexit() {
		return "courier: user code called runtime.Goexit (does it use a testing.T's FailNow?)"
	}
	if why, _ := e.cause(); why != "" {
		return "courier: user code panicked with an error that cannot be used: " + why
	}
	return fmt.Sprintf("courier: user code panicked: %v", e.Value)
}

// Goexit reports that the goroutine was ended by runtime.Goexit.
func (e *PanicError) Goexit() bool { return e.Value == nil }

// Is reports whether err is [ErrPanic].
func (e *PanicError) Is(err error) bool { return err == ErrPanic }

// Unwrap returns the value passed to panic where that is an error, nil where it is
// one that cannot be used, such as a nil pointer.
func (e *PanicError) Unwrap() error {
	if why, err := e.cause(); why == "" {
		return err
	}
	return nil
}

// cause returns the value passed to panic where that is an error, and why it cannot
// be used where that is so.
func (e *PanicError) cause() (why string, err error) {
	if err, _ = e.Value.(error); err != nil {
		why = unsound(err, true)
	}
	return why, err
}

func newPanicError(value any) *PanicError {
	return &PanicError{Value: value, Stack: debug.Stack()}
}

// guard calls a user's function and turns its panic into an error. The result
// is written, not returned, because a Goexit cannot be stopped: it ends the
// goroutine, and whoever goes on with the work finds the error in *result.
func guard(result *error, call func() error) {
	returned := false
	defer func() {
		if !returned {
			*result = newPanicError(recover())
		}
	}()
	*result = sound(call())
	returned = true
}

// isolate is guard on a goroutine of its own, for where a Goexit would take
// more along than the call.
func isolate(result *error, call func() error) {
	var wg sync.WaitGroup
	wg.Go(func() { guard(result, call) })
	wg.Wait()
}

// ErrStopped is the cause of what a stopping coordinator did not attempt, and what
// Ready returns from the moment that a stop begins.
var ErrStopped = errors.New("courier: the coordinator is stopping")

// unattemptedError is the error of a record that was never tried, because of
// what the wrapped error says.
type unattemptedError struct{ err error }

func unattempted(err error) error { return &unattemptedError{err} }

func (e *unattemptedError) Error() string      { return "not attempted: " + e.err.Error() }
func (e *unattemptedError) Unwrap() error      { return e.err }
func (e *unattemptedError) NotAttempted() bool { return true }

// ErrBehindFailed is for an ApplyBatch that keeps the order ([OrderedBatcher]): the error
// of a record that it did not apply because an earlier one of the call has failed. Its
// class is ClassNotAttempted. An ApplyBatch that lists it for every record has attempted none,
// for a reason that is not told.
var ErrBehindFailed = unattempted(errors.New("an earlier record of the same call has failed"))

// behindFailed reports whether nothing else than ErrBehindFailed keeps a record from
// being applied now.
func behindFailed(ctx context.Context, err error) bool {
	if err == nil || !errors.Is(err, ErrBehindFailed) || classify(ctx, err) != ClassNotAttempted {
		return false
	}
	_, paused := pauseOf(err)
	_, waits := waitOf(err)
	_, asked := askedLater(err)
	return !paused && !waits && !asked
}

// pauseOf says whether an error means that the destination takes nothing for
// now, so that trying other records is pointless, and until when. Any error
// that is ClassNotAttempted and has a method RetryAt() time.Time means that. The time
// in a record's own error, which was an attempt, is the record's alone.
func pauseOf(err error) (until time.Time, paused bool) {
	switch e := err.(type) {
	case nil:
		return time.Time{}, false
	case *FanOutError:
		return e.pause()
	case *ParkError:
		return pauseOf(e.Store)
	case *RetryError:
		return pauseOf(e.Cause)
	case *askedLaterError: // the record waits alone, be it for a breaker
		return time.Time{}, false
	case interface{ RetryAt() time.Time }:
		if n, ok := err.(interface{ NotAttempted() bool }); ok && n.NotAttempted() {
			return e.RetryAt(), true
		}
	}
	several, one := wrappedIn(err)
	if one != nil {
		return pauseOf(one)
	}
	for _, child := range several {
		if until, paused := pauseOf(child); paused {
			return until, true
		}
	}
	return time.Time{}, false
}

// pauses reports whether an error leaves the records behind it unattempted.
func pauses(ctx context.Context, err error) bool {
	if err == nil || classify(ctx, err) != ClassNotAttempted {
		return false
	}
	_, paused := pauseOf(err)
	return paused
}

// sound returns an error of user code that can be looked into. It is called where
// user code ends, once, so that no walk over an error has to fear for itself: a nil
// pointer returned as an error is not nil, and panics when it is asked for its text
// or for what it wraps; an error that wraps itself has no end.
func sound(err error) error {
	if err == nil { // apart, for the compiler to see how little that is
		return nil
	}
	return tested(err)
}

func tested(err error) error {
	if list, ok := err.(*BatchError); ok { // of several records: one takes no other along
		return list.tested()
	}
	if why := unsound(err, false); why != "" {
		return errors.New("courier: user code returned an error that cannot be used: " + why)
	}
	return err
}

// causeOf returns why a context has ended, nil while it lives. The cause is the
// user's, as any error of user code, and may be compared with others.
func causeOf(ctx context.Context) error {
	cause := sound(context.Cause(ctx))
	if cause != nil && !reflect.ValueOf(cause).Comparable() {
		return fmt.Errorf("%w", cause)
	}
	return cause
}

// maxErrors is how many errors one may hold, itself included: more than anybody
// reads, and few enough for every walk.
const maxErrors = 10_000

// unsound returns why an error cannot be looked into, "" when it can. Of a panic
// inside it the value is left out, which [PanicError.Unwrap] looks at itself, unless
// it is that which asks.
func unsound(err error, panics bool) (why string) {
	l := look{left: maxErrors, panics: panics}
	defer func() {
		if value := recover(); value != nil {
			why = l.fault(err, value)
		}
	}()
	if l.into(err, true); l.left < 0 {
		return fmt.Sprintf("a %T, which holds itself or more than %d errors", err, maxErrors)
	}
	return ""
}

// look is one walk through an error and all that it holds, which calls every method
// that is called later on.
type look struct {
	left   int   // how many errors it may still meet; below 0 it has ended
	panics bool  // the values of panics are looked into
	at     error // whose methods are called
}

// into looks at an error after what it holds. told says that its text is asked for:
// that of an error inside another one is the other's to ask for.
func (l *look) into(err error, told bool) {
	if l.left--; l.left < 0 {
		return
	}
	l.at = err
	ours := false
	switch e := err.(type) {
	case *BatchError:
		if e != nil {
			l.all(e.Unwrap(), true) // each may be asked for by itself
		}
		return
	case *PanicError:
		if value, ok := e.Value.(error); ok && l.panics {
			l.into(value, told)
		}
		return
	case *ParkRateError:
		_ = e.Until
		return
	case *permanentError, *skipError, *retryAfterError, *unattemptedError, *pendingError, *laterError, *askedLaterError, *OpenError, *RetryError,
		*AttemptTimeoutError, *ParkError, *FanOutError, *DecodeError, *MarkError, *RedriveError:
		ours = true // with methods that are sound if what they wrap is
	}
	several, one := wrappedIn(err)
	if one != nil {
		l.into(one, told && ours)
	}
	l.all(several, told && ours)
	if ours || l.left < 0 {
		return
	}
	l.at = err
	if told || one == nil && len(several) == 0 {
		_ = err.Error()
	}
	if e, ok := err.(interface{ Is(error) bool }); ok {
		e.Is(ErrPanic)
	}
	if e, ok := err.(interface{ As(any) bool }); ok {
		if p := (*PanicError)(nil); e.As(&p) {
			_ = p.Value
		}
	}
	if e, ok := err.(interface{ NotAttempted() bool }); ok {
		e.NotAttempted()
	}
	if e, ok := err.(interface{ RetryAt() time.Time }); ok {
		e.RetryAt()
	}
}

func (l *look) all(errs []error, told bool) {
	for _, err := range errs {
		if err != nil && l.left >= 0 {
			l.into(err, told)
		}
	}
}

// fault says what was wrong when a look ended with a panic.
func (l *look) fault(err error, value any) string {
	what := fmt.Sprintf("a %T", err)
	if reflect.TypeOf(l.at) != reflect.TypeOf(err) {
		what = fmt.Sprintf("%s (%v), in which there is a %T", what, err, l.at)
	}
	if v := reflect.ValueOf(l.at); v.Kind() == reflect.Pointer && v.IsNil() {
		return what + " that is a nil pointer: return nil itself"
	}
	return fmt.Sprintf("%s with a method that panics: %v", what, value)
}
