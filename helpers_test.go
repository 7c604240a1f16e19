package courier_test

// Functions that the tests of several subjects share: they run coordinators, build stacks
// and read results.

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func failures(indices ...int) *courier.BatchError {
	var e courier.BatchError
	for _, i := range indices {
		e.Add(i, fmt.Errorf("record %d: %w", i, errTest))
	}
	return &e
}

// half keeps an open period exact.
func half() float64 { return 0.5 }

func byRest(n int) func(int) string { return func(r int) string { return fmt.Sprint(r % n) } }

// stream sends numbers 0…n-1 and closes.
func stream(n int) <-chan int {
	ch := make(chan int)
	go func() {
		defer close(ch)
		for i := range n {
			ch <- i
		}
	}()
	return ch
}

func nop[T any](context.Context, T) error { return nil }

// start runs a coordinator in the bubble and returns a function that stops it
// and returns Start's error.
func start(t interface {
	Helper()
	Context() context.Context
}, c interface{ Start(context.Context) error }) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Start(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

func withDLQ[T any](a courier.Applier[T]) (courier.Applier[T], *courier.MemoryDLQ[T]) {
	q := &courier.MemoryDLQ[T]{}
	return courier.NewDLQApplier(a, courier.DLQ[T](q), courier.DLQPolicy[T]{}), q
}

// both runs a test with a coordinator of either kind over a leasing source.
func both(t *testing.T, test func(t *testing.T, source *leasing[int], make func(applier courier.Applier[int], opts ...courier.Option) running)) {
	for name, polling := range map[string]bool{"polling": true, "streaming": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newLeasing[int]()
				source.wait = !polling
				test(t, source, func(applier courier.Applier[int], opts ...courier.Option) running {
					opts = append([]courier.Option{quiet}, opts...)
					if polling {
						return courier.NewPollingCoordinator(source, applier, opts...)
					}
					return courier.NewStreamingCoordinator(source, applier, opts...)
				})
			})
		})
	}
}

func numbers(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// stacks are the decorators around an applier, by name.
func stacks(apply courier.Applier[int]) map[string]courier.Applier[int] {
	retry := courier.WithRetry(apply)
	breaker := courier.WithCircuitBreaker(apply)
	dlq, _ := courier.WithDLQ(apply)
	resilient, _ := courier.ResilientApplier(apply, nil)
	return map[string]courier.Applier[int]{"plain": apply, "retry": retry, "breaker": breaker, "dlq": dlq, "resilient": resilient}
}

// countOf returns the number of letters in a queue.
func countOf(queue interface {
	Count(ctx context.Context) (int, error)
}) int {
	n, _ := queue.Count(context.Background())
	return n
}

// named makes required branches, called a, b, c, of appliers.
func named(appliers ...courier.Applier[int]) []courier.Branch[int] {
	branches := make([]courier.Branch[int], len(appliers))
	for i, a := range appliers {
		branches[i] = courier.Branch[int]{Name: string(rune('a' + i)), Applier: a}
	}
	return branches
}

// run starts a polling coordinator for a while.
func run(t *testing.T, source courier.Source[int], applier courier.Applier[int], d time.Duration) {
	t.Helper()
	stop := start(t, courier.NewPollingCoordinator(source, applier, quiet))
	time.Sleep(d)
	require.NoError(t, stop())
}

// timeless is a log without times.
func timeless(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// queueOf returns a queue that records of the given numbers were sent to.
func queueOf(records ...int) *courier.MemoryDLQ[int] {
	q := &courier.MemoryDLQ[int]{Capacity: max(1, len(records))}
	for _, r := range records {
		_ = q.Send(context.Background(), courier.DeadLetter[int]{Record: r, Error: errTest, Attempts: 5, FirstFailedAt: time.Unix(1, 0)})
	}
	return q
}

// recordsIn returns the records of a queue, in order.
func recordsIn(t *testing.T, q courier.DLQ[int]) []int {
	t.Helper()
	records := []int{}
	for letter, err := range courier.Letters(t.Context(), q) {
		require.NoError(t, err)
		records = append(records, letter.Record)
	}
	return records
}

func always(err error) courier.Applier[int] {
	return courier.ProcessFunc(func(context.Context, int) error { return err })
}

func asBatch(a courier.Applier[int]) courier.BatchApplier[int] {
	return a.(courier.BatchApplier[int])
}

// full returns a channel with numbers 0…n-1 in it, closed if asked.
func full(n int, closed bool) chan int {
	ch := make(chan int, n)
	for i := range n {
		ch <- i
	}
	if closed {
		close(ch)
	}
	return ch
}

// inShapes runs a test with a coordinator of each shape, in a bubble. run has it work
// for some time; that of RunOnce makes a pass.
func inShapes(t *testing.T, test func(t *testing.T, shape string, with func(applier courier.Applier[int], records []int, opts ...courier.Option) (c teller, run func(time.Duration)))) {
	for _, shape := range []string{"polling", "polling a plain source", "streaming", "streaming a channel", "RunOnce"} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test(t, shape, func(applier courier.Applier[int], records []int, opts ...courier.Option) (teller, func(time.Duration)) {
					opts = append([]courier.Option{quiet}, opts...)
					var r courierttest.Recorder[int]
					var source courier.Source[int] = newShelf(records...)
					switch shape {
					case "polling":
						source = newLeasing(records...)
					case "streaming":
						c := courier.NewStreamingCoordinator[int](r.StreamSource(records...), applier, opts...)
						return c, goesOn(t, c)
					case "streaming a channel":
						ch := make(chan int, len(records))
						for _, record := range records {
							ch <- record
						}
						c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, func(context.Context, []int) error { return nil }), applier, opts...)
						return c, goesOn(t, c)
					}
					c := courier.NewPollingCoordinator(source, applier, opts...)
					if shape == "RunOnce" {
						return c, func(time.Duration) { _ = c.RunOnce(t.Context()) }
					}
					return c, goesOn(t, c)
				})
			})
		})
	}
}

// goesOn lets a coordinator run at the first call, until the test ends.
func goesOn(t *testing.T, c running) func(time.Duration) {
	began := false
	return func(d time.Duration) {
		if !began {
			began = true
			stop := start(t, c)
			t.Cleanup(func() { _ = stop() })
		}
		time.Sleep(d)
		synctest.Wait()
	}
}

// choose returns one of two names of a subtest.
func choose(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// batched names a subtest by how records are applied.
func batched(batches bool) string { return choose(batches, "batches", "one by one") }

// coordinatorOf names a subtest by its coordinator.
func coordinatorOf(streaming bool) string { return choose(streaming, "streaming", "polling") }
