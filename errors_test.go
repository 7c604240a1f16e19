package courier_test

// Classes of errors, and what errors say.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// refused is an error of a user's own that says NotAttempted, and until when.
type refused struct{ err error }

func (e *refused) Error() string      { return "refused" }
func (e *refused) Unwrap() error      { return e.err }
func (e *refused) NotAttempted() bool { return true }
func (e *refused) RetryAt() time.Time { return time.Now().Add(time.Hour) }

// Classify: two errors side by side, and one mark around another. A letter is a
// mark, in the columns and rows; in the tables it is the first of the class:
// retryable, permanent, skipped, not attempted.
func TestClassify_EveryPairOfMarks(t *testing.T) {
	marks := []struct {
		name string
		mark func(error) error
	}{
		{"plain", func(err error) error { return fmt.Errorf("insert: %w", err) }},
		{"Permanent", courier.Permanent},
		{"Skip", courier.Skip},
		{"RetryAfter", func(err error) error { return courier.RetryAfter(err, time.Second) }},
		{"not attempted", func(err error) error { return &refused{err} }},
		{"panic", func(err error) error { return &courier.PanicError{Value: err} }},
	}
	classes := map[byte]courier.ErrorClass{'r': courier.ClassRetryable, 'p': courier.ClassPermanent, 's': courier.ClassSkipped, 'n': courier.ClassNotAttempted}
	beside := []string{
		"rprrnr",
		"ppppnp",
		"rpsrnr",
		"rprrnr",
		"nnnnnn",
		"rprrnr",
	}
	around := []string{ // row around column
		"rpsrnr",
		"ppppnp",
		"ssssns",
		"rpsrnr",
		"nnnnnn",
		"rrrrrr",
	}
	trees := map[string]func(a, b error) error{
		"errors.Join":      func(a, b error) error { return errors.Join(a, b) },
		"two %w":           func(a, b error) error { return fmt.Errorf("mail: %w; ledger: %w", a, b) },
		"a join below":     func(a, b error) error { return fmt.Errorf("both: %w", errors.Join(a, b)) },
		"a join in a join": func(a, b error) error { return errors.Join(errors.Join(a), fmt.Errorf("and: %w", errors.Join(nil, b))) },
		"a BatchError": func(a, b error) error {
			return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: a}, {Index: 1, Err: b}}}
		},
		"a BatchError beside": func(a, b error) error {
			return errors.Join(&courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: a}}}, b)
		},
		"a fan-out in a join": func(a, b error) error {
			return errors.Join(&courier.FanOutError{Failures: []courier.BranchFailure{{Branch: "0", Err: a}}}, b)
		},
		"with what went well": func(a, b error) error { return several{nil, a, nil, b, nil} },
		"the end of a retry": func(a, b error) error {
			return &courier.RetryError{Reason: courier.ReasonExhausted, Last: errors.Join(a, b)}
		},
		"a record's two fates": func(a, b error) error { return errors.Join(errors.Join(a, a), errors.Join(b, b)) },
	}
	for i, first := range marks {
		for j, second := range marks {
			a, b := first.mark(errTest), second.mark(io.ErrUnexpectedEOF)
			for name, tree := range trees {
				require.Equal(t, classes[beside[i][j]], courier.Classify(t.Context(), tree(a, b)), "%s beside %s: %s", first.name, second.name, name)
			}
			require.Equal(t, beside[i][j], beside[j][i], "the order of what is side by side says nothing")
			for name, inner := range map[string]error{
				"one around the other": b,
				"with text between":    fmt.Errorf("publish: %w", b),
				"around a join":        errors.Join(b),
			} {
				require.Equal(t, classes[around[i][j]], courier.Classify(t.Context(), first.mark(inner)), "%s around %s: %s", first.name, second.name, name)
			}
		}
	}
}

// several is a list of errors with places for what went well.
type several []error

func (several) Error() string     { return "several" }
func (s several) Unwrap() []error { return s }

// A mark around a list of failures is meant for each, and the outer of two counts
// there too.
func TestClassify_MarksAroundAListKeepTheirOrder(t *testing.T) {
	list := &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: errTest}}}
	for _, test := range []struct {
		err  error
		want courier.ErrorClass
	}{
		{courier.Permanent(courier.Skip(list)), courier.ClassPermanent},
		{courier.Skip(courier.Permanent(list)), courier.ClassSkipped},
		{courier.Skip(fmt.Errorf("insert: %w", courier.Permanent(list))), courier.ClassSkipped},
	} {
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return test.err }}
		err := courier.WithRetry[int](s).(courier.BatchApplier[int]).ApplyBatch(t.Context(), numbers(2))
		var got *courier.BatchError
		require.ErrorAs(t, err, &got)
		require.Equal(t, test.want, courier.Classify(t.Context(), got.Failures[0].Err), "%T", test.err)
	}
}

// D2 as a property of Classify: a record is marked without having been applied only
// where a Skip is around everything that failed.
func TestClassify_Property_SkippedIsWhatHasASkipAroundAllOfIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		covered := true // every error and panic so far has a Skip around it
		var tree func(depth int, skipped bool) error
		tree = func(depth int, skipped bool) error {
			kind := rapid.IntRange(0, 8).Draw(t, "kind")
			if depth == 0 {
				kind = 0
			}
			switch kind {
			case 1:
				return courier.Permanent(tree(depth-1, skipped))
			case 2, 3:
				return courier.Skip(tree(depth-1, true))
			case 4:
				return courier.RetryAfter(tree(depth-1, skipped), time.Second)
			case 5:
				covered = covered && skipped
				return &courier.PanicError{Value: tree(depth-1, true)}
			case 6:
				return fmt.Errorf("for: %w", tree(depth-1, skipped))
			case 7:
				return errors.Join(tree(depth-1, skipped), tree(depth-1, skipped))
			case 8:
				return &courier.FanOutError{Failures: []courier.BranchFailure{{Branch: "a", Err: tree(depth-1, skipped)}, {Branch: "b", Err: tree(depth-1, skipped)}}}
			}
			covered = covered && skipped
			return errTest
		}
		err := tree(rapid.IntRange(0, 5).Draw(t, "depth"), false)
		if got := courier.Classify(context.Background(), err); got == courier.ClassSkipped && !covered {
			t.Fatalf("%v", err)
		}
	})
}

// D2: what is skipped beside something that failed is not marked, in any stack.
func TestD2_ASkipBesideAFailureMarksNothing(t *testing.T) {
	skip := courier.Skip(errTest)
	for name, err := range map[string]error{
		"joined":               errors.Join(skip, io.ErrUnexpectedEOF),
		"joined the other way": errors.Join(io.ErrUnexpectedEOF, skip),
		"two %w":               fmt.Errorf("mail: %w; ledger: %w", skip, io.ErrUnexpectedEOF),
		"a list inside":        fmt.Errorf("both: %w, %w", &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: io.ErrUnexpectedEOF}}}, skip),
		"no branch at all":     &courier.FanOutError{},
	} {
		t.Run(name, func(t *testing.T) {
			for shape, stack := range stacks(courier.ProcessFunc(func(context.Context, int) error { return err })) {
				courierttest.Bubble(t, func(t *testing.T) {
					source := newShelf(1)
					c := courier.NewPollingCoordinator(source, stack, quiet)
					courierttest.RunFor(t, c, time.Minute)
					require.Zero(t, c.Stats().Skipped, shape)
					require.Equal(t, c.Stats().Parked > 0, len(source.left()) == 0, shape)
				})
			}
		})
	}
}

// D9: a panic is a failed attempt, whatever it was called with: nothing is marked,
// left for ever, waited for or counted by what its value says.
func TestD9_APanicHasNoClassOfItsOwn(t *testing.T) {
	interrupted := &courier.RetryError{Reason: courier.ReasonExhausted, Attempts: 7, Last: errTest}
	for name, value := range map[string]any{
		"Skip":          courier.Skip(errTest),
		"Permanent":     courier.Permanent(errTest),
		"wrapped Skip":  fmt.Errorf("must: %w", courier.Skip(errTest)),
		"RetryAfter":    courier.RetryAfter(errTest, time.Hour),
		"not attempted": &refused{errTest},
		"an open one":   &courier.OpenError{Until: time.Now().Add(time.Hour), Cause: errTest},
		"a retry":       interrupted,
		"a list":        &courier.BatchError{Failures: []courier.BatchFailure{{Index: 9, Err: errTest}}},
		"configuration": &courier.ConfigError{Field: "x", Problem: "is bad"},
	} {
		t.Run(name, func(t *testing.T) {
			must := courier.ProcessFunc(func(_ context.Context, r int) error {
				if r == 1 {
					panic(value)
				}
				return nil
			})
			for shape, stack := range stacks(must) {
				courierttest.Bubble(t, func(t *testing.T) {
					source := newShelf(1, 2)
					c := courier.NewPollingCoordinator(source, stack, quiet, courier.WithFastPolling())
					courierttest.RunFor(t, c, 10*time.Second)
					stats := c.Stats()
					require.Zero(t, stats.Skipped, shape)
					require.NotContains(t, source.left(), 2, shape)
					switch shape {
					case "plain", "retry":
						require.Equal(t, []int{1}, source.left(), shape)
						require.Greater(t, stats.Failed, int64(1), "%s: it was not tried again, or not counted", shape)
					case "dlq":
						require.Empty(t, source.left(), shape)
					}
				})
			}
			q := &courier.MemoryDLQ[int]{}
			require.NoError(t, courier.NewDLQApplier(must, courier.DLQ[int](q), courier.DLQPolicy[int]{}).Apply(t.Context(), 1))
			letters, _ := q.Receive(t.Context(), 1)
			require.Equal(t, courier.ReasonExhausted, letters[0].Reason)
			require.Equal(t, 1, letters[0].Attempts, "the attempts of the panic's value are none of this record's")
			if err, ok := value.(error); ok {
				require.ErrorIs(t, letters[0].Error, err, "it can be found all the same")
			}

			b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1})
			permit, err := b.Acquire(t.Context())
			require.NoError(t, err)
			require.ErrorIs(t, b.Report(t.Context(), permit, &courier.PanicError{Value: value}), courier.ErrOpen)
			require.Equal(t, courier.BreakerOpen, b.State())
		})
	}
}

// The text of a breaker's errors has its name.
func TestOpenError_NamesItsBreaker(t *testing.T) {
	b := courier.NewBreaker(courier.BreakerPolicy{Name: "crm", FailureThreshold: 1})
	require.Equal(t, "crm", b.Metrics().Name)
	a := courier.NewCircuitBreakerApplier(always(errTest), b)
	require.ErrorContains(t, a.Apply(t.Context(), 1), `courier: breaker "crm" open, next probe at `)
	b.ForceOpen()
	require.EqualError(t, a.Apply(t.Context(), 1), `courier: the breaker was forced open, until Reset or ForceClosed is called (it is "crm")`)
}

// An error says each thing once.
func TestErrors_SayEachThingOnce(t *testing.T) {
	const forced = "courier: the breaker was forced open, until Reset or ForceClosed is called"
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		var log bytes.Buffer
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Hour})
		c, run := with(courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }), b), numbers(5), courier.WithLogger(timeless(&log)))
		if shape == "RunOnce" {
			b.ForceOpen()
			run(0)
			require.Contains(t, log.String(), `error="`+forced+`"`)
		} else {
			run(time.Second)
			require.Regexp(t, `^courier: breaker open, next probe at \S+; opened by: the record's own error$`, c.Ready().Error())
			b.ForceOpen()
			run(time.Minute)
			require.EqualError(t, c.Ready(), forced)
		}
		require.NotContains(t, log.String(), "until=0001")
	})
	require.EqualError(t, &courier.OpenError{Cause: courier.ErrForcedOpen}, forced)
	require.EqualError(t, &courier.OpenError{Cause: errTest}, forced+"; the call failed: the record's own error")
	b := courier.NewBreaker(courier.BreakerPolicy{})
	permit, err := b.Acquire(t.Context())
	require.NoError(t, err)
	b.ForceOpen()
	require.EqualError(t, b.Report(t.Context(), permit, errTest), forced+"; the call failed: the record's own error")
}

// A batch error that lists nothing is an error all the same where it is one record's.
func TestErrors_ABatchErrorThatListsNothing(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		c, run := with(courier.ProcessFunc(func(context.Context, int) error { return (*courier.BatchError)(nil) }), numbers(1))
		run(time.Second)
		require.ErrorContains(t, c.Stats().LastError, "courier: user code returned an error that cannot be used: a *courier.BatchError that is a nil pointer: return nil itself")
	})
	require.EqualError(t, new(courier.BatchError), "courier: user code returned a BatchError that lists no record: return ErrorOrNil()")
}

// lateQueue is a queue that answers when its context ends.
type lateQueue struct {
	*courier.MemoryDLQ[int]
	err error // nil is that of the context
}

func (q lateQueue) Send(ctx context.Context, _ courier.DeadLetter[int]) error {
	<-ctx.Done()
	if q.err != nil {
		return q.err
	}
	return ctx.Err()
}

func TestErrors_AQueueThatDoesNotAnswer(t *testing.T) {
	for text, driver := range map[string]error{
		"(the queue did not answer within 2s)":         nil,
		"(the queue did not answer within 2s: EOF)":    io.EOF,
		"(the queue did not answer within 2s), which ": fmt.Errorf("driver: %w", context.DeadlineExceeded),
	} {
		t.Run(text, func(t *testing.T) {
			inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
				var log bytes.Buffer
				a := courier.NewDLQApplier(courier.WithRetry(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) })), courier.DLQ[int](lateQueue{err: driver}), courier.DLQPolicy[int]{})
				c, run := with(a, numbers(1), courier.WithLogger(timeless(&log)), courier.WithDrainTimeout(2*time.Second))
				run(3 * time.Second)
				require.Contains(t, log.String(), "courier: the dead letter queue did not take a record "+text)
				require.ErrorIs(t, c.Stats().LastError, context.DeadlineExceeded)
			})
		})
	}
}

// An error inside another one of Courier's does not repeat the prefix.
func TestErrors_ThePrefixIsThereOnce(t *testing.T) {
	inside := &courier.DecodeError{Err: courier.ErrDLQFull}
	require.EqualError(t, inside, "courier: a record cannot be decoded: the dead letter queue is full")
	for text, err := range map[string]error{
		"courier: gave up after 1 attempt (permanent): <>; <>":                                                   &courier.RetryError{Attempts: 1, Reason: courier.ReasonPermanent, Last: inside, Cause: inside},
		"courier: the dead letter queue did not take a record (<>), which stays pending; the record's error: <>": &courier.ParkError{Err: inside, Store: inside},
		"courier: the attempt did not end within its timeout of 1s: <>":                                          &courier.AttemptTimeoutError{Timeout: time.Second, Err: inside},
		"courier: 2 records were applied but not marked, and will be applied again: <>":                          &courier.MarkError{Records: 2, Err: inside},
		"courier: the redrive stopped before its end: <>":                                                        &courier.RedriveError{Err: inside},
		"courier: 1 of the fan-out's branches failed: branch a: <>":                                              &courier.FanOutError{Failures: []courier.BranchFailure{{Branch: "a", Err: inside}}},
		"courier: 1 records ended neither applied nor parked, and the source takes none back; first error: <>":   &courier.UnsettledError[int]{Records: []int{1}, Err: inside},
		"courier: breaker open, next probe at 2026-01-01T00:00:00Z; opened by: <>":                               &courier.OpenError{Until: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Cause: inside},
		"courier: the breaker was forced open, until Reset or ForceClosed is called; the call failed: <>":        &courier.OpenError{Cause: inside},
	} {
		text = strings.ReplaceAll(text, "<>", "a record cannot be decoded: the dead letter queue is full")
		require.EqualError(t, err, text)
	}
	require.EqualError(t, &courier.RetryError{Attempts: 1, Reason: courier.ReasonPermanent}, "courier: gave up after 1 attempt (permanent): <nil>")
}
