package courier_test

// Errors of user code that panic, or have no end, when they are looked into (D9).

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// explosive is an error of which one method panics.
type explosive struct{ method string }

func (e explosive) light(method string) {
	if e.method == method {
		panic(method + " of an error")
	}
}

func (e explosive) Error() string      { e.light("Error"); return "explosive" }
func (e explosive) Unwrap() error      { e.light("Unwrap"); return nil }
func (e explosive) Is(error) bool      { e.light("Is"); return false }
func (e explosive) As(any) bool        { e.light("As"); return e.method == "claims" }
func (e explosive) NotAttempted() bool { e.light("NotAttempted"); return false }
func (e explosive) RetryAt() time.Time { e.light("RetryAt"); return time.Time{} }

// link is an error that wraps whatever it is told to, itself included.
type link struct{ next []error }

func (*link) Error() string     { return "link" }
func (l *link) Unwrap() []error { return l.next }

// tagged is a value that wraps an error.
type tagged struct{ error }

func (t tagged) Unwrap() error { return t.error }

// textOf is an error that is a function.
type textOf func() string

func (f textOf) Error() string { return f() }

// oddities are errors that panic or have no end when they are looked into.
func oddities() map[string]error {
	odd := map[string]error{
		"nil *fs.PathError":                (*fs.PathError)(nil),
		"nil *json.SyntaxError":            (*json.SyntaxError)(nil),
		"nil *ConfigError":                 (*courier.ConfigError)(nil),
		"nil *OpenError":                   (*courier.OpenError)(nil),
		"nil *RetryError":                  (*courier.RetryError)(nil),
		"nil *ParkError":                   (*courier.ParkError)(nil),
		"nil *ParkRateError":               (*courier.ParkRateError)(nil),
		"nil *FanOutError":                 (*courier.FanOutError)(nil),
		"nil *DecodeError":                 (*courier.DecodeError)(nil),
		"nil *MarkError":                   (*courier.MarkError)(nil),
		"nil *PanicError":                  (*courier.PanicError)(nil),
		"nil *RedriveError":                (*courier.RedriveError)(nil),
		"nil *AttemptTimeoutError":         (*courier.AttemptTimeoutError)(nil),
		"nil *UnsettledError":              (*courier.UnsettledError[int])(nil),
		"nil *OpenError in a struct":       struct{ *courier.OpenError }{},
		"nil error in a struct":            struct{ error }{},
		"nil function":                     textOf(nil),
		"a text that panics":               explosive{"Error"},
		"an Unwrap that panics":            explosive{"Unwrap"},
		"an Is that panics":                explosive{"Is"},
		"an As that panics":                explosive{"As"},
		"an As that claims what it is not": explosive{"claims"},
		"a NotAttempted that panics":       explosive{"NotAttempted"},
		"a RetryAt that panics":            explosive{"RetryAt"},
	}
	self := new(link)
	self.next = []error{errTest, self}
	odd["wraps itself"] = self
	first := new(link)
	first.next = []error{courier.Permanent(&courier.OpenError{Cause: &link{[]error{first}}})}
	odd["wraps itself two below"] = first
	deep := errTest
	for range 1_000_000 {
		deep = &link{[]error{deep}}
	}
	odd["a million below each other"] = deep
	wide := errTest
	for range 40 {
		wide = &link{[]error{wide, wide}}
	}
	odd["without end sideways"] = wide
	return odd
}

// look calls of an error all that a user or a logger may call of it.
func look(err error) {
	_ = err.Error()
	_ = errors.Is(err, fs.ErrClosed)
	var p *fs.PathError
	var panicked *courier.PanicError
	var retried *courier.RetryError
	var config *courier.ConfigError
	_ = errors.As(err, &p)
	_ = errors.As(err, &config)
	if errors.As(err, &panicked) {
		_ = panicked.Stack
	}
	if errors.As(err, &retried) {
		_ = retried.Last
	}
	_ = courier.Classify(context.Background(), err)
}

// heard collects the errors that an observer is told of.
type heard struct {
	mu   sync.Mutex
	errs []error
}

func (h *heard) hear(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.errs = append(h.errs, err)
	}
}

func (h *heard) observer() courier.Observer {
	return courier.Observer{
		Fetched:     func(_ context.Context, e courier.FetchEvent) { h.hear(e.Err) },
		Applied:     func(_ context.Context, e courier.ApplyEvent) { h.hear(e.Err) },
		Failed:      func(_ context.Context, e courier.FailEvent) { h.hear(e.Err) },
		Retried:     func(_ context.Context, e courier.RetryEvent) { h.hear(e.Err) },
		Parked:      func(_ context.Context, e courier.ParkEvent) { h.hear(e.Err) },
		Marked:      func(_ context.Context, e courier.MarkEvent) { h.hear(e.Err) },
		Released:    func(_ context.Context, e courier.ReleaseEvent) { h.hear(e.Err) },
		Renewed:     func(_ context.Context, e courier.RenewEvent) { h.hear(e.Err) },
		Paused:      func(_ context.Context, e courier.PauseEvent) { h.hear(e.Err) },
		Stopped:     func(_ context.Context, e courier.StopEvent) { h.hear(e.Err) },
		RecordEnded: func(_ context.Context, e courier.RecordEvent) { h.hear(e.Err) },
	}
}

// options log, and tell the observer.
func (h *heard) options(more ...courier.Option) []courier.Option {
	return append(more, courier.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))), courier.WithObserver(h.observer()))
}

// ending is how a record's attempt ends with an odd error.
type ending struct {
	name   string
	apply  func(err error) error                   // of one record
	listed func(err error, index int, n int) error // of a batch of n, of which one is bad
}

var endings = []ending{
	{"returned", func(err error) error { return err }, func(err error, _, _ int) error { return err }},
	{"panicked", func(err error) error { panic(err) }, func(err error, _, _ int) error { panic(err) }},
	{"listed", func(err error) error { return err }, func(err error, i, _ int) error {
		return &courier.BatchError{Failures: []courier.BatchFailure{{Index: i, Err: err}}}
	}},
	{"listed and wrapped", func(err error) error { return fmt.Errorf("insert: %w", err) }, func(err error, i, _ int) error {
		return courier.RetryAfter(fmt.Errorf("insert: %w", &courier.BatchError{Failures: []courier.BatchFailure{{Index: i, Err: err}}}), time.Second)
	}},
	{"listed twice", func(err error) error { return err }, func(err error, i, _ int) error {
		return &courier.BatchError{Failures: []courier.BatchFailure{{Index: i, Err: errTest}, {Index: i, Err: err}}}
	}},
	{"listed out of place", func(err error) error { return err }, func(err error, _, n int) error {
		return &courier.BatchError{Failures: []courier.BatchFailure{{Index: n, Err: err}}}
	}},
}

// bad is the record whose attempts end oddly.
const bad = 2

// oddSink returns a destination of single records or of batches.
func oddSink(end ending, err error, batches bool) (courier.Applier[int], *sink[int]) {
	fail := func(_ context.Context, r, _ int) error {
		if r == bad {
			return end.apply(err)
		}
		return nil
	}
	if !batches {
		s := &sink[int]{fail: fail}
		return s, s
	}
	s := &batchSink[int]{sink: sink[int]{fail: fail}, failBatch: func(_ context.Context, records []int, _ int) error {
		if i := slices.Index(records, bad); i >= 0 {
			return end.listed(err, i, len(records))
		}
		return nil
	}}
	return oddBatches{s, strings.HasPrefix(end.name, "listed") && end.name != "listed out of place"}, &s.sink
}

// oddBatches applies what a list does not name, and does not look into the list as
// batchSink does.
type oddBatches struct {
	*batchSink[int]
	lists bool
}

func (s oddBatches) ApplyBatch(ctx context.Context, records []int) error {
	err := s.failBatch(ctx, records, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		if err == nil || s.lists && r != bad {
			s.applied = append(s.applied, r)
		}
	}
	return err
}

// pipelines are all shapes of a stack, and whether they park.
var pipelines = []struct {
	name  string
	parks bool
	wrap  func(courier.Applier[int]) courier.Applier[int]
}{
	{"plain", false, func(a courier.Applier[int]) courier.Applier[int] { return a }},
	{"retry", false, func(a courier.Applier[int]) courier.Applier[int] { return courier.WithRetry(a) }},
	{"retry with a budget and a timeout", false, func(a courier.Applier[int]) courier.Applier[int] {
		return courier.NewRetryableApplier(courier.NewAttemptTimeoutApplier(a, time.Minute, nil), courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{}), MaxElapsed: time.Hour})
	}},
	{"timeout", false, func(a courier.Applier[int]) courier.Applier[int] {
		return courier.NewAttemptTimeoutApplier(a, time.Minute, nil)
	}},
	{"DLQ", true, func(a courier.Applier[int]) courier.Applier[int] { a, _ = courier.WithDLQ(a); return a }},
	{"DLQ by key", true, func(a courier.Applier[int]) courier.Applier[int] {
		return courier.NewDLQApplier(a, courier.DLQ[int](&courier.MemoryDLQ[int]{}), courier.DLQPolicy[int]{Key: strconv.Itoa})
	}},
	{"breaker", false, courier.WithCircuitBreaker[int]},
	{"resilient", true, func(a courier.Applier[int]) courier.Applier[int] { a, _ = courier.ResilientApplier(a, nil); return a }},
	{"resilient with a limiter of one's own", true, func(a courier.Applier[int]) courier.Applier[int] {
		inner := courier.WithCircuitBreaker(a)
		a, _ = courier.WithDLQ(courier.WithRetry(courier.ProcessFunc(func(ctx context.Context, r int) error { return inner.Apply(ctx, r) })))
		return a
	}},
	{"fan-out", false, func(a courier.Applier[int]) courier.Applier[int] {
		return courier.NewFanOutApplier(a, courier.ProcessFunc(nop[int]))
	}},
	{"fan-out of one, cloned", false, func(a courier.Applier[int]) courier.Applier[int] {
		return courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(a), Identity: strconv.Itoa, Clone: func(r int) int { return r }})
	}},
	{"fan-out of resilient", true, func(a courier.Applier[int]) courier.Applier[int] {
		a, _ = courier.ResilientApplier(a, nil)
		return courier.NewFanOutApplier(courier.ProcessFunc(nop[int]), a)
	}},
	{"retried fan-out", false, func(a courier.Applier[int]) courier.Applier[int] {
		return courier.WithRetry(courier.NewFanOutApplier(a, a))
	}},
	{"decoded", true, func(a courier.Applier[int]) courier.Applier[int] {
		a, _ = courier.ResilientApplier(courier.NewDecodingApplier(a, func(r int) (int, error) { return r, nil }), nil)
		return a
	}},
}

// supply is a source whose records can be counted.
type supply interface {
	Add(records ...int)
	Pending() []int
}

// runs are all kinds of a run.
var runs = []struct {
	name string
	run  func(t *testing.T, r *courierttest.Recorder[int], a courier.Applier[int], opts []courier.Option, records ...int) (supply, error)
}{
	{"polling", func(t *testing.T, r *courierttest.Recorder[int], a courier.Applier[int], opts []courier.Option, records ...int) (supply, error) {
		s := r.Source(records...)
		return s, during(t, s, courier.NewPollingCoordinator[int](s, a, append(opts, courier.WithSlowPolling())...))
	}},
	{"polling with workers", func(t *testing.T, r *courierttest.Recorder[int], a courier.Applier[int], opts []courier.Option, records ...int) (supply, error) {
		s := r.LeasingSource(time.Minute, records...)
		return s, during(t, s, courier.NewPollingCoordinator[int](s, a, append(opts, courier.WithWorkers(3))...))
	}},
	{"polling by key", func(t *testing.T, r *courierttest.Recorder[int], a courier.Applier[int], opts []courier.Option, records ...int) (supply, error) {
		s := r.Source(records...)
		return s, during(t, s, courier.NewPollingCoordinator[int](s, a, append(opts, courier.WithWorkers(2), courier.WithOrderKey(strconv.Itoa))...))
	}},
	{"streaming", func(t *testing.T, r *courierttest.Recorder[int], a courier.Applier[int], opts []courier.Option, records ...int) (supply, error) {
		s := r.StreamSource(records...)
		return s, during(t, s, courier.NewStreamingCoordinator[int](s, a, append(opts, courier.WithStreamWorkers(2))...))
	}},
	{"streaming by key", func(t *testing.T, r *courierttest.Recorder[int], a courier.Applier[int], opts []courier.Option, records ...int) (supply, error) {
		s := r.StreamSource(records...)
		return s, during(t, s, courier.NewStreamingCoordinator[int](s, a, append(opts, courier.WithOrderKey(strconv.Itoa))...))
	}},
	{"RunOnce, over and over", func(t *testing.T, r *courierttest.Recorder[int], a courier.Applier[int], opts []courier.Option, records ...int) (supply, error) {
		s := r.Source(records...)
		for n := range later {
			if err := courier.NewPollingCoordinator[int](s, a, opts...).RunOnce(t.Context()); err != nil {
				look(err)
			}
			time.Sleep(time.Minute)
			s.Add(10 + n)
		}
		return s, nil
	}},
}

// later is how many records come one after the other while a coordinator runs.
const later = 10

// during runs a coordinator while other records come, without which a breaker could
// not tell a bad one from an outage.
func during(t *testing.T, s supply, c courierttest.Starter) error {
	run := courierttest.Start(t, c)
	for n := range later {
		time.Sleep(time.Minute)
		s.Add(10 + n)
	}
	time.Sleep(5 * time.Minute)
	return run.Stop()
}

// survives runs a pipeline with a bad record among others and returns what is wrong
// afterwards.
func survives(t *testing.T, run, pipeline int, end ending, batches bool, odd error) (problem error) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		a, s := oddSink(end, odd, batches)
		var r courierttest.Recorder[int]
		p := pipelines[pipeline]
		source, err := runs[run].run(t, &r, p.wrap(a), h.options(), 0, 1, bad, 3, 4)
		for _, err := range h.errs {
			look(err)
		}
		applied := map[int]bool{}
		for _, r := range s.got() {
			applied[r] = true
		}
		left := source.Pending()
		once := runs[run].name == "RunOnce, over and over"
		switch {
		case err != nil:
			problem = fmt.Errorf("it ended with %w", err)
		case applied[bad]:
			problem = errors.New("the bad record counts as applied")
		case !once && len(applied) != 4+later:
			problem = fmt.Errorf("applied: %v", s.got())
		case !once && p.parks && slices.Contains(left, bad):
			problem = fmt.Errorf("pending: %v", left)
		case !p.parks && !slices.Contains(left, bad):
			problem = fmt.Errorf("the bad record is marked; pending: %v", left)
		case h.errs == nil:
			problem = errors.New("nobody was told")
		}
	})
	return problem
}

// D9: whatever an error of user code is, it fails its record and no other, and the
// process lives.
func TestD9_ErrorsThatCannotBeUsed(t *testing.T) {
	turn := 0 // the property has the other half
	for name, odd := range oddities() {
		turn++
		t.Run(name, func(t *testing.T) {
			require.Equal(t, courier.ClassRetryable, courier.Classify(t.Context(), odd))
			require.Equal(t, courier.ClassRetryable, courier.Classify(t.Context(), courier.Permanent(odd)), "what cannot be looked into says nothing")
			look(&courier.PanicError{Value: odd})
			for pipeline := range pipelines {
				if _, slow := odd.(*link); (slow || raceEnabled) && (turn+pipeline)%4 > 0 {
					continue
				}
				end := endings[(turn+pipeline)%2]
				if problem := survives(t, 0, pipeline, end, false, odd); problem != nil {
					t.Errorf("%s, %s: %v", pipelines[pipeline].name, end.name, problem)
				}
			}
		})
	}
}

// D9 as a property: random trees with such an error in them, however they arrive,
// in every pipeline, under every coordinator.
func TestD9_Property_ErrorsThatCannotBeUsed(t *testing.T) {
	odd := oddities()
	var names []string
	for name := range odd {
		names = append(names, name)
	}
	slices.Sort(names)
	rapid.Check(t, func(rt *rapid.T) {
		err := odd[rapid.SampledFrom(names).Draw(rt, "inside")]
		for range rapid.IntRange(0, 4).Draw(rt, "wrappers") {
			err = wrappers[rapid.IntRange(0, len(wrappers)-1).Draw(rt, "wrapper")](err)
		}
		if class := courier.Classify(context.Background(), err); class != courier.ClassRetryable {
			rt.Fatalf("the class is %v", class)
		}
		run := rapid.IntRange(0, len(runs)-1).Draw(rt, "run")
		pipeline := rapid.IntRange(0, len(pipelines)-1).Draw(rt, "pipeline")
		end := rapid.IntRange(0, len(endings)-1).Draw(rt, "ending")
		batches := rapid.Bool().Draw(rt, "in batches")
		rt.Logf("%s, %s, %s", runs[run].name, pipelines[pipeline].name, endings[end].name)
		if problem := survives(t, run, pipeline, endings[end], batches, err); problem != nil {
			rt.Fatal(problem)
		}
	})
}

// wrappers are what may be around such an error: of everybody's making, of ours, and
// values of our types that a user made.
var wrappers = []func(error) error{
	func(err error) error { return &link{[]error{err}} },
	func(err error) error { return &link{[]error{nil, errTest, err}} },
	func(err error) error { return tagged{err} },
	func(err error) error { return &fs.PathError{Op: "open", Path: "x", Err: err} },
	courier.Permanent,
	courier.Skip,
	func(err error) error { return courier.RetryAfter(err, time.Second) },
	func(err error) error {
		return &courier.OpenError{Until: time.Now().Add(time.Hour), Cause: err}
	},
	func(err error) error {
		return &courier.RetryError{Reason: courier.ReasonExhausted, Attempts: 3, Last: err}
	},
	func(err error) error {
		return &courier.RetryError{Reason: courier.ReasonInterrupted, Last: errTest, Cause: err}
	},
	func(err error) error { return &courier.ParkError{Err: errTest, Store: err} },
	func(err error) error {
		return &courier.FanOutError{Failures: []courier.BranchFailure{{Branch: "a", Err: err}}}
	},
	func(err error) error {
		return struct{ *courier.FanOutError }{&courier.FanOutError{Failures: []courier.BranchFailure{{Branch: "a", Err: err}}}}
	},
	func(err error) error { return &courier.DecodeError{Err: err} },
	func(err error) error { return &courier.MarkError{Records: 1, Err: err} },
	func(err error) error { return &courier.RedriveError{Err: err} },
	func(err error) error { return &courier.AttemptTimeoutError{Err: err} },
	func(err error) error { return &courier.UnsettledError[int]{Err: err} },
}

// A redrive goes on with the others, and the letter stays with an error that can be
// used.
func TestD9_ARedriveOverErrorsThatCannotBeUsed(t *testing.T) {
	for name, odd := range oddities() {
		for _, end := range endings {
			for _, batches := range []bool{false, true} {
				q := queueOf(0, 1, bad, 3)
				a, s := oddSink(end, odd, batches)
				result, err := courier.Redrive(t.Context(), q, a, nil)
				require.NoError(t, err, "%s %s", name, end.name)
				require.Equal(t, courier.RedriveResult{Attempted: 4, Succeeded: 3, Failed: 1}, result, "%s %s", name, end.name)
				require.Subset(t, s.got(), []int{0, 1, 3})
				letters, _ := q.Receive(t.Context(), 9)
				require.Len(t, letters, 1)
				look(letters[0].Error)
			}
		}
	}
}

// oddQueue fails one of its methods.
type oddQueue struct {
	courier.DLQ[int]
	method string
	fail   func() error
}

func (q *oddQueue) failing(method string) error {
	if q.method == method {
		return q.fail()
	}
	return nil
}

func (q *oddQueue) Send(ctx context.Context, l courier.DeadLetter[int]) error {
	return firstOf(q.failing("Send"), func() error { return q.DLQ.Send(ctx, l) })
}

func (q *oddQueue) Update(ctx context.Context, l courier.DeadLetter[int]) error {
	return firstOf(q.failing("Update"), func() error { return q.DLQ.Update(ctx, l) })
}

func (q *oddQueue) Delete(ctx context.Context, ids ...string) error {
	return firstOf(q.failing("Delete"), func() error { return q.DLQ.Delete(ctx, ids...) })
}

func (q *oddQueue) List(ctx context.Context, after string, n int) (l []courier.DeadLetter[int], err error) {
	err = firstOf(q.failing("List"), func() error { l, err = q.DLQ.List(ctx, after, n); return err })
	return l, err
}

func (q *oddQueue) Count(ctx context.Context) (n int, err error) {
	err = firstOf(q.failing("Count"), func() error { n, err = q.DLQ.Count(ctx); return err })
	return n, err
}

func (q *oddQueue) ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error) {
	if err := q.failing("ParkedKeys"); err != nil {
		return nil, err
	}
	return q.DLQ.(courier.KeyedDLQ).ParkedKeys(ctx, branch, keys)
}

func firstOf(err error, call func() error) error {
	if err != nil {
		return err
	}
	return call()
}

// a queue that fails oddly has refused: the record stays pending, and a redrive
// stops with an error that can be used.
func TestD9_AQueueWhoseErrorsCannotBeUsed(t *testing.T) {
	for name, odd := range oddities() {
		for kind, fail := range map[string]func() error{"returned": func() error { return odd }, "panicked": func() error { panic(odd) }} {
			for _, method := range []string{"Send", "Update", "Delete", "List", "Count", "ParkedKeys"} {
				q := &oddQueue{queueOf(0, 1), method, fail}
				_, err := courier.Redrive(t.Context(), courier.DLQ[int](q), courier.ProcessFunc(func(_ context.Context, r int) error {
					if r == 0 {
						return errTest
					}
					return nil
				}), nil)
				fails := method != "Send" && method != "ParkedKeys"
				require.Equal(t, fails, errors.Is(err, courier.ErrRedrive), "%s %s by %s: %v", name, kind, method, err)
				if fails {
					look(err)
				}
				for _, err := range courier.Letters(t.Context(), courier.DLQ[int](q)) {
					if err != nil {
						look(err)
					}
				}
			}
			for _, method := range []string{"Send", "ParkedKeys"} {
				q := &oddQueue{&courier.MemoryDLQ[int]{}, method, fail}
				source := newShelf(1)
				stack := courier.NewDLQApplier(always(errTest), courier.DLQ[int](q), courier.DLQPolicy[int]{Key: strconv.Itoa})
				err := courier.NewPollingCoordinator(source, stack, quiet).RunOnce(t.Context())
				require.Error(t, err, "%s %s by %s", name, kind, method)
				require.Equal(t, []int{1}, source.left())
				look(err)
				var listed *courier.BatchError
				require.ErrorAs(t, err, &listed)
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), listed.Failures[0].Err))
			}
		}
	}
}

// oddSource is a source of all capabilities whose calls fail every other time.
type oddSource struct {
	*leasing[int]
	fail  func() error
	turns map[string]int
}

func (s *oddSource) turn(method string) error {
	s.mu.Lock()
	s.turns[method]++
	n := s.turns[method]
	s.mu.Unlock()
	if n%2 == 1 {
		return s.fail()
	}
	return nil
}

func (s *oddSource) Fetch(ctx context.Context, n int) (records []int, err error) {
	err = firstOf(s.turn("Fetch"), func() error { records, err = s.leasing.Fetch(ctx, n); return err })
	return records, err
}

func (s *oddSource) Mark(ctx context.Context, records []int) error {
	return firstOf(s.turn("Mark"), func() error { return s.leasing.Mark(ctx, records) })
}

func (s *oddSource) Release(ctx context.Context, records []int, after time.Duration) error {
	_ = s.leasing.Release(ctx, records, after) // an error says that the lease will end
	return s.turn("Release")
}

func (s *oddSource) Fail(ctx context.Context, failed []courier.FailedRecord[int]) error {
	for _, f := range failed {
		_ = s.leasing.Release(ctx, []int{f.Record}, 0)
	}
	return s.turn("Fail")
}

func (s *oddSource) RenewEvery() time.Duration { return time.Second }

func (s *oddSource) Renew(context.Context, []int) error { return s.turn("Renew") }

func (s *oddSource) Lag(context.Context) (courier.Lag, error) { return courier.Lag{}, s.turn("Lag") }

// D9, D7: a source whose every other call fails oddly loses nothing.
func TestD9_ASourceWhoseErrorsCannotBeUsed(t *testing.T) {
	for name, odd := range oddities() {
		for kind, fail := range map[string]func() error{"returned": func() error { return odd }, "panicked": func() error { panic(odd) }} {
			for _, streaming := range []bool{false, true} {
				if _, slow := odd.(*link); slow && streaming {
					continue
				}
				synctest.Test(t, func(t *testing.T) {
					var h heard
					source := &oddSource{newLeasing(numbers(9)...), fail, map[string]int{}}
					source.wait = streaming
					s := &sink[int]{fail: func(_ context.Context, r, call int) error {
						time.Sleep(3 * time.Second)
						if call%5 == 0 {
							return errTest
						}
						return nil
					}}
					var c interface {
						Start(context.Context) error
						Lag(context.Context) (courier.Lag, error)
						Ready() error
					} = courier.NewPollingCoordinator[int](source, s, h.options(courier.WithBatchSize(2), courier.WithPrefetch(1))...)
					if streaming {
						c = courier.NewStreamingCoordinator[int](source, s, h.options(courier.WithBatchSize(2))...)
					}
					stop := start(t, c)
					time.Sleep(time.Second)
					if err := c.Ready(); err != nil {
						look(err)
					}
					_, err := c.Lag(t.Context())
					require.Error(t, err)
					look(err)
					time.Sleep(5 * time.Minute)
					require.NoError(t, stop(), "%s %s", name, kind)
					require.Empty(t, source.left(), "%s %s", name, kind)
					for _, err := range h.errs {
						look(err)
					}
					for _, method := range []string{"Fetch", "Mark", "Fail", "Renew"} {
						require.Greater(t, source.turns[method], 1, "%s was not called", method)
					}
				})
			}
		}
	}
}

// The cause of a context is the user's too.
func TestD9_ACauseThatCannotBeUsed(t *testing.T) {
	for name, odd := range oddities() {
		t.Run(name, func(t *testing.T) {
			ended, cancel := context.WithCancelCause(t.Context())
			cancel(odd)
			for _, p := range pipelines[1:] {
				err := p.wrap(courier.ProcessFunc(func(ctx context.Context, _ int) error { return context.Cause(ctx) })).Apply(ended, 1)
				require.Error(t, err, p.name)
				look(err)
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(ended, err), p.name)
			}
			_, err := courier.NewBreaker(courier.BreakerPolicy{}).Acquire(ended)
			look(err)
			_, err = courier.Redrive(ended, courier.DLQ[int](queueOf(1)), always(nil), nil)
			look(err)
			err = courier.RunOnce(ended, func(ctx context.Context) ([]int, error) { return nil, context.Cause(ctx) }, nop[int], nop[[]int], quiet)
			look(err)
			synctest.Test(t, func(t *testing.T) { // in the wait before a retry
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Millisecond, func() { cancel(odd) })
				err := courier.NewRetryableApplier(always(errTest), plain).Apply(ctx, 1)
				look(err)
				require.ErrorIs(t, err, errTest)
			})
		})
	}
}

// A cause that cannot be compared, and comes back from the fetch that it ended.
func TestD9_ACauseThatCannotBeCompared(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(struct {
		error
		details any
	}{errTest, []string{"not comparable"}})
	err := courier.RunOnce(ctx, func(ctx context.Context) ([]int, error) { return nil, context.Cause(ctx) }, nop[int], nop[[]int], quiet)
	require.ErrorContains(t, err, errTest.Error())
}

// B-4: a permit that is given back with such an error is given back, and its failure
// counts.
func TestB4_AReportWithAnErrorThatCannotBeUsed(t *testing.T) {
	for name, odd := range oddities() {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var told []courier.BreakerChange
				b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, DisableJitter: true, OnStateChange: func(_ context.Context, c courier.BreakerChange) { told = append(told, c) }})
				for n := range 3 {
					permit, err := b.Acquire(t.Context())
					require.NoError(t, err, "the permit before it was not given back")
					err = b.Report(t.Context(), permit, odd)
					require.ErrorIs(t, err, courier.ErrOpen)
					look(err)
					require.Equal(t, courier.BreakerOpen, b.State())
					look(b.Metrics().Cause)
					look(told[len(told)-1].Cause)
					_, err = b.Acquire(t.Context())
					look(err)
					time.Sleep(time.Second << n)
				}
			})
		})
	}
}

// What cannot be used says what it is, where, and what to do.
func TestD9_TheTextOfAnErrorThatCannotBeUsed(t *testing.T) {
	var missing *fs.PathError
	for _, test := range []struct {
		err  error
		want string
	}{
		{missing, "courier: user code returned an error that cannot be used: a *fs.PathError that is a nil pointer: return nil itself"},
		{fmt.Errorf("open: %w", missing), "courier: user code returned an error that cannot be used: a *fmt.wrapError (open: <nil>), in which there is a *fs.PathError that is a nil pointer: return nil itself"},
		{explosive{"Is"}, "courier: user code returned an error that cannot be used: a courier_test.explosive with a method that panics: Is of an error"},
		{oddities()["wraps itself"], "courier: user code returned an error that cannot be used: a *courier_test.link, which holds itself or more than 10000 errors"},
	} {
		err := courier.NewBreaker(courier.BreakerPolicy{}).Report(t.Context(), courier.Permit{}, test.err)
		require.EqualError(t, err, test.want)
	}
	require.EqualError(t, &courier.PanicError{Value: error(missing)}, "courier: user code panicked with an error that cannot be used: a *fs.PathError that is a nil pointer: return nil itself")
	sound := &courier.PanicError{Value: fs.ErrClosed}
	require.ErrorIs(t, sound, fs.ErrClosed)
	require.ErrorIs(t, sound, courier.ErrPanic)
	large := make([]error, 9_000)
	for i := range large {
		large[i] = errTest
	}
	err := errors.Join(large...)
	require.Same(t, err, courier.NewBreaker(courier.BreakerPolicy{}).Report(t.Context(), courier.Permit{}, err), "an error may be large")
}
