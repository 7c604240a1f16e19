package courier

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// ErrorClass is what an error says about a record, see [Classify].
type ErrorClass int

const (
	// ClassRetryable is the default: the attempt was made and failed, and another one may
	// succeed. The failure counts against the record.
	ClassRetryable ErrorClass = iota
	// ClassPermanent means that no retry can succeed: the record is parked, or fails
	// without a retry.
	ClassPermanent
	// ClassNotAttempted means that the error says nothing about the record: an open
	// breaker refused it, its context ended, the pipeline is misconfigured, or the dead
	// letter queue did not take it. The record stays pending, no attempt is counted, and
	// it is never dead-lettered.
	ClassNotAttempted
	// ClassSkipped means that there is nothing to do for the record: it is marked.
	ClassSkipped
)

// String returns the name of the class.
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

// Classify returns the class of a non-nil error. Every decorator and both coordinators
// use it.
//
// An error may name its class itself:
//
//   - An error with a method NotAttempted() bool that returns true is ClassNotAttempted,
//     and so is every error around it.
//   - [Permanent] and [Skip] decide for everything inside them; if one is around the
//     other, the outer one counts.
//   - Among errors side by side (errors.Join, several %w, a [*BatchError]),
//     ClassNotAttempted takes precedence over permanent, permanent over retryable, and
//     retryable over skipped: a Skip counts only if nothing beside it failed. A
//     [*FanOutError] differs in one point: retryable takes precedence over permanent.
//   - A [*PanicError] has no class of its own, whatever value the panic had.
//
// Otherwise an error that arrived after ctx, the context given to the applier, had ended
// is ClassNotAttempted: its cause is the stop and not the record. Every other error is
// ClassRetryable. That includes a context.Canceled or DeadlineExceeded while ctx is
// alive, which comes from the applier itself, and an error that cannot be examined, for
// example a nil pointer or an error that wraps one. A nil ctx counts as alive.
//
// Classify is safe for concurrent use and never blocks.
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

// Permanent marks err as one that no retry can fix: with a dead letter queue the record
// is parked immediately. Permanent(nil) is nil. The error keeps its text, and errors.Is
// and errors.As find err.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Skip says that there is nothing to do for the record, for the given reason: it is
// marked as done without being applied. Beside an error that is not skipped it has no
// effect, see [Classify]. Skip(nil) is nil, which marks the record as well.
func Skip(reason error) error {
	if reason == nil {
		return nil
	}
	return &skipError{reason}
}

type skipError struct{ err error }

func (e *skipError) Error() string { return "skipped: " + e.err.Error() }
func (e *skipError) Unwrap() error { return e.err }

// RetryAfter asks not to retry the record before d has passed, as an HTTP Retry-After
// header does. It is a minimum: the policy's own delay applies if it is longer, and the
// longest of several delays in an error tree counts. A negative d counts as 0.
// RetryPolicy.MaxRetryAfter caps it; without a retry a coordinator accepts up to 24
// hours. A breaker that opens because of the error, or stays open because it is that of a
// probe, admits no call before, up to BreakerPolicy.MaxRetryAfter. RetryAfter(nil, d) is
// nil.
//
// [Source.Fetch] and [Source.Mark] may return it too: the coordinator delays the next
// call of that kind by at most an hour. Wake ends the wait for a fetch. A stop ends the
// wait for a mark, which is retried immediately and then with delays that start again,
// because its records would be applied again otherwise; from then on a requested delay
// counts for at most half the drain timeout. RunOnce gives up a mark that asks for more
// than the drain timeout.
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

// Later asks to retry the record once d has passed, and not before: the destination has
// said that it is busy until then. It does not count as an attempt, nothing is parked,
// breakers ignore it, and the coordinator goes on with other records, even with one
// worker and without an order key. With an order key the later records of the key wait
// with it. A negative d counts as 0, and more than 24 hours as 24 hours. Later(nil, d) is
// nil. For an error that counts as an attempt use [RetryAfter].
//
// An open breaker ignores it too: that the destination answered does not mean that it is
// healthy. A probe with this answer leaves the breaker half-open, and another record is
// the next probe, immediately.
//
// The record waits in hand, where it takes up space, see [WithBatchSize]; also while an
// open breaker pauses the coordinator. When the coordinator stops, it is given back for the
// remaining time if the source is a [Releaser]. So is a record that waits for more than 10
// seconds, or beyond the pause of a polling coordinator, unless its lease is renewed
// ([Renewer]); for the 10 seconds also unless the source keeps a schedule of its own
// ([Failer]). RunOnce waits for all such records together: for the drain timeout since it
// first waited.
//
// The order of a key goes before the time. At a stop, and at the end of RunOnce, a record
// with an order key is given back immediately, with the later ones of its key: nothing
// would keep these from going first. A record is also retried sooner if an earlier one of
// its key is given back, which takes it along.
//
// An ApplyBatch lists it in a [*BatchError], or returns it for all its records. Outside a
// coordinator the error is returned unchanged, and its class is ClassNotAttempted.
func Later(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &askedLaterError{err: err, after: min(max(d, 0), maxAfter)}
}

type askedLaterError struct {
	err   error
	after time.Duration
	usage *usage // of the keyed breaker that asks; nil where none does, or it knows nothing of the record
}

func (e *askedLaterError) Error() string      { return e.err.Error() }
func (e *askedLaterError) Unwrap() error      { return e.err }
func (e *askedLaterError) NotAttempted() bool { return true }

// ErrConfig is what every [*ConfigError] is, to errors.Is.
var ErrConfig = errors.New("courier: invalid configuration")

// ConfigError is a value that Courier cannot work with. Constructors that return no error
// keep it, and Start, RunOnce or Apply returns it before anything is fetched or applied.
// Its class is ClassNotAttempted: if an applier returns it while a coordinator runs,
// because of a pipeline of its own, the record stays pending and the others go on.
type ConfigError struct {
	Field   string // the parameter, option or policy field
	Problem string // what is wrong with it and what to do
}

func (e *ConfigError) Error() string { return fmt.Sprintf("courier: %s %s", e.Field, e.Problem) }

// Is reports whether err is [ErrConfig].
func (e *ConfigError) Is(err error) bool { return err == ErrConfig }

// NotAttempted reports true.
func (e *ConfigError) NotAttempted() bool { return true }

// bound is a condition that a field of a policy must meet.
type bound struct {
	field string
	value any
	holds bool
	want  string
}

// boundsFault reports the first bound of a policy that is not met.
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

// isNil reports whether an interface that is not nil holds a nil pointer, function or
// channel. A nil map or slice can be used.
func isNil(v any) bool {
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Chan:
		return r.IsNil()
	}
	return false
}

// clockFault reports a nil clock in an interface that is not nil.
func clockFault(field string, clock Clock) error {
	if isNil(clock) {
		return &ConfigError{field, fmt.Sprintf("is a nil %T: leave it nil for the system's clock", clock)}
	}
	return nil
}

// clockOr returns a clock that can be called, the system's if there is none.
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

// contextFault reports a nil context, including a nil pointer in the interface.
func contextFault(ctx context.Context) error {
	if ctx == nil || isNil(ctx) {
		return errNoContext
	}
	return nil
}

// ErrPanic is what every [*PanicError] is, to errors.Is.
var ErrPanic = errors.New("courier: user code panicked")

// PanicError is a panic, or a call of runtime.Goexit, in a user's function. It is that
// record's failure, and retryable like any other, even if the value of the panic is an
// error of another class or a [RetryAfter].
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

// Goexit reports whether runtime.Goexit ended the goroutine.
func (e *PanicError) Goexit() bool { return e.Value == nil }

// Is reports whether err is [ErrPanic].
func (e *PanicError) Is(err error) bool { return err == ErrPanic }

// Unwrap returns the value of the panic if it is an error that can be used, else nil.
func (e *PanicError) Unwrap() error {
	if why, err := e.cause(); why == "" {
		return err
	}
	return nil
}

// cause returns the value of the panic if it is an error, and why it cannot be used if
// so.
func (e *PanicError) cause() (why string, err error) {
	if err, _ = e.Value.(error); err != nil {
		why = unsound(err, true)
	}
	return why, err
}

func newPanicError(value any) *PanicError {
	return &PanicError{Value: value, Stack: debug.Stack()}
}

// guard calls a user's function and turns its panic into an error. The result is written
// instead of returned, because a Goexit cannot be stopped: it ends the goroutine, and the
// code that continues the work finds the error in *result.
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

// isolate is guard on a new goroutine, for calls in which a Goexit would end more than
// the call.
func isolate(result *error, call func() error) {
	var wg sync.WaitGroup
	wg.Go(func() { guard(result, call) })
	wg.Wait()
}

// inner is the text of an error inside one of Courier's, whose text has the prefix already.
// It goes through fmt, for which a nil error has a text too.
func inner(err error) string { return strings.TrimPrefix(fmt.Sprint(err), "courier: ") }

// ErrStopped is the cause of records that a stopping coordinator did not attempt. Ready
// returns it from the moment that a stop begins.
var ErrStopped = errors.New("courier: the coordinator is stopping")

// unattemptedError is the error of a record that was never tried, because of the wrapped
// error.
type unattemptedError struct{ err error }

func unattempted(err error) error { return &unattemptedError{err} }

func (e *unattemptedError) Error() string      { return "not attempted: " + e.err.Error() }
func (e *unattemptedError) Unwrap() error      { return e.err }
func (e *unattemptedError) NotAttempted() bool { return true }

// ErrBehindFailed is for an ApplyBatch that keeps the order ([OrderedBatcher]): the error
// of a record that it did not apply because an earlier record of the call has failed. Its
// class is ClassNotAttempted. If ApplyBatch lists it for every record, it has attempted
// none, for an unknown reason.
var ErrBehindFailed = unattempted(errors.New("an earlier record of the same call has failed"))

// behindFailed reports whether ErrBehindFailed is the only reason not to apply a record
// now.
func behindFailed(ctx context.Context, err error) bool {
	if err == nil || !errors.Is(err, ErrBehindFailed) || classify(ctx, err) != ClassNotAttempted {
		return false
	}
	_, paused := pauseOf(err)
	_, waits := waitOf(err)
	_, asked := askedLater(err)
	return !paused && !waits && !asked
}

// pauseOf reports whether an error means that the destination takes nothing for now, so
// that trying other records is pointless, and until when. That is so for any error of
// ClassNotAttempted with a method RetryAt() time.Time. A time in a record's own error,
// which was an attempt, concerns only that record.
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

// pauses reports whether an error leaves the later records unattempted.
func pauses(ctx context.Context, err error) bool {
	if err == nil || classify(ctx, err) != ClassNotAttempted {
		return false
	}
	_, paused := pauseOf(err)
	return paused
}

// sound returns an error of user code that is safe to examine. It is called once, where
// user code returns, so that later walks over the error need not expect a panic: a nil
// pointer returned as an error is not nil, and panics when asked for its text or for the
// error it wraps; an error that wraps itself never ends.
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

// unsound returns why an error cannot be examined, "" if it can. It leaves out the value
// of a panic inside the error, which [PanicError.Unwrap] examines itself, unless Unwrap
// is the caller.
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
