package courier_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/erfanmomeniii/courier"
)

func ExampleResilientApplier() {
	ship := courier.ProcessFunc(func(_ context.Context, order int) error {
		if order < 0 {
			return courier.Permanent(errors.New("negative order")) // no retry helps: park it
		}
		return nil
	})
	applier, dlq := courier.ResilientApplier(ship, &courier.ResilientConfig[int]{
		Retry:   courier.RetryPolicy{MaxAttempts: 8, InitialDelay: 50 * time.Millisecond},
		Breaker: courier.BreakerPolicy{OpenFor: time.Second},
	})
	ctx := context.Background()
	fmt.Println(applier.Apply(ctx, 1), applier.Apply(ctx, -1)) // parked is settled

	parked, _ := dlq.Receive(ctx, 100)
	for _, letter := range parked {
		fmt.Println(letter.Record, letter.Reason, letter.Attempts)
	}
	// Output:
	// <nil> <nil>
	// -1 permanent 1
}

// A webhook host that is down makes its own deliveries wait, and no others.
func ExampleNewKeyedCircuitBreakerApplier() {
	type delivery struct{ host, body string }
	post := courier.ProcessFunc(func(_ context.Context, d delivery) error {
		if d.host == "dead.example" {
			return errors.New("connection refused")
		}
		return nil
	})
	keyed := courier.NewKeyedCircuitBreakerApplier(post, func(d delivery) string { return d.host }, courier.BreakerPolicy{FailureThreshold: 2})
	ctx := context.Background()
	for range 3 {
		err := keyed.Apply(ctx, delivery{"dead.example", "hello"})
		fmt.Println(keyed.State("dead.example"), errors.Is(err, courier.ErrOpen))
	}
	fmt.Println(keyed.Apply(ctx, delivery{"well.example", "hello"}))
	// Output:
	// closed false
	// open true
	// open true
	// <nil>
}

// With a retry and a dead letter queue around it, in the right order.
func ExampleResilientConfig_breakerKey() {
	type delivery struct{ tenant, body string }
	post := courier.ProcessFunc(func(context.Context, delivery) error { return nil })
	applier, _ := courier.ResilientApplier(post, &courier.ResilientConfig[delivery]{
		BreakerKey: func(d delivery) string { return d.tenant },
		Breaker:    courier.BreakerPolicy{Name: "webhooks", MaxKeys: 5000},
	})
	fmt.Println(applier.Apply(context.Background(), delivery{"acme", "hello"}))
	// Output: <nil>
}

// throttled waits for a token before each call, as with a rate.Limiter of
// golang.org/x/time, whose Wait goes in the place of the select.
type throttled struct {
	courier.Applier[string]
	tokens <-chan struct{}
}

func (t throttled) Apply(ctx context.Context, record string) error {
	select {
	case <-t.tokens:
		return t.Applier.Apply(ctx, record)
	case <-ctx.Done():
		return ctx.Err() // which counts no attempt
	}
}

// Unwrap shows what is inside, here for the order of the decorators to be checked.
func (t throttled) Unwrap() courier.Applier[string] { return t.Applier }

// A rate limit charges every attempt.
func ExampleResilientConfig_rateLimit() {
	tokens := make(chan struct{}, 10) // one for each call
	for range cap(tokens) {
		tokens <- struct{}{}
	}
	calls := 0
	ship := courier.ProcessFunc(func(context.Context, string) error {
		if calls++; calls < 3 {
			return errors.New("busy")
		}
		return nil
	})
	applier, _ := courier.ResilientApplier(ship, &courier.ResilientConfig[string]{
		Retry: courier.RetryPolicy{InitialDelay: time.Millisecond},
		AroundBreaker: func(breaker courier.Applier[string]) courier.Applier[string] {
			return throttled{breaker, tokens}
		},
	})
	fmt.Println(applier.Apply(context.Background(), "order 7"), calls, "calls,", len(tokens), "tokens left")
	// Output: <nil> 3 calls, 7 tokens left
}

func ExampleWithRetry() {
	calls := 0
	applier := courier.WithRetry(courier.ProcessFunc(func(context.Context, string) error {
		if calls++; calls == 1 {
			return courier.RetryAfter(errors.New("busy"), time.Millisecond)
		}
		return nil
	}))
	fmt.Println(applier.Apply(context.Background(), "record"), calls)
	// Output: <nil> 2
}

func ExampleNewRetryableApplier() {
	applier := courier.NewRetryableApplier(
		courier.ProcessFunc(func(context.Context, string) error { return errors.New("no route") }),
		courier.RetryPolicy{MaxAttempts: 3, InitialDelay: time.Millisecond, MaxDelay: time.Second, Multiplier: 2},
	)
	err := applier.Apply(context.Background(), "record")
	var gaveUp *courier.RetryError
	fmt.Println(errors.As(err, &gaveUp), gaveUp.Attempts, gaveUp.Reason, gaveUp.Last)
	// Output: true 3 exhausted no route
}

func ExampleWithCircuitBreaker() {
	calls := 0
	applier := courier.WithCircuitBreaker(courier.ProcessFunc(func(context.Context, int) error {
		calls++
		return errors.New("connection refused")
	}))
	var err error
	for range 100 {
		err = applier.Apply(context.Background(), 1)
	}
	var open *courier.OpenError
	fmt.Println(calls, errors.As(err, &open), open.Cause)
	// Output: 5 true connection refused
}

func ExampleNewCircuitBreakerApplier() {
	broker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 3}) // one for each destination
	down := func(context.Context, int) error { return errors.New("connection refused") }
	orders := courier.NewCircuitBreakerApplier(courier.ProcessFunc(down), broker)
	refunds := courier.NewCircuitBreakerApplier(courier.ProcessFunc(down), broker)
	for range 3 {
		_ = orders.Apply(context.Background(), 1)
	}
	err := refunds.Apply(context.Background(), 1)
	fmt.Println(broker.State(), errors.Is(err, courier.ErrOpen))
	// Output: open true
}

// A breaker around calls that are none of an applier, such as the requests of a source.
func ExampleBreaker_Acquire() {
	api := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2})
	request := func() error { return errors.New("connection refused") }
	get := func(ctx context.Context) error {
		permit, err := api.Acquire(ctx)
		if err != nil {
			return err // an *OpenError: the API was not called
		}
		return api.Report(ctx, permit, request())
	}
	for range 3 {
		fmt.Println(errors.Is(get(context.Background()), courier.ErrOpen), api.State())
	}
	// Output:
	// false closed
	// true open
	// true open
}

func ExampleNewDecodingApplier() {
	type row struct {
		id   int
		body string
	}
	store := courier.ProcessFunc(func(_ context.Context, n int) error {
		fmt.Println("stored", n)
		return nil
	})
	// The source keeps its rows, which have the key to mark; the applier has
	// what they mean; the dead letter queue has what could not be read.
	applier, dlq := courier.WithDLQ(courier.NewDecodingApplier(store, func(r row) (int, error) { return strconv.Atoi(r.body) }))
	ctx := context.Background()
	_ = applier.Apply(ctx, row{1, "42"})
	_ = applier.Apply(ctx, row{2, "forty-two"})
	parked, _ := dlq.Receive(ctx, 100)
	fmt.Println(parked[0].Record, errors.Is(parked[0].Error, courier.ErrDecode))
	// Output:
	// stored 42
	// {2 forty-two} true
}

func ExampleSkip() {
	err := courier.RunOnce(context.Background(),
		func(context.Context) ([]string, error) { return []string{"new", "seen"}, nil },
		func(_ context.Context, record string) error {
			if record == "seen" {
				return courier.Skip(errors.New("seen before"))
			}
			return nil
		},
		func(_ context.Context, done []string) error { fmt.Println("marked", done); return nil })
	fmt.Println(err)
	// Output:
	// marked [new seen]
	// <nil>
}

// bulk inserts many rows at once and tells which were refused.
type bulk struct{}

func (b bulk) Apply(ctx context.Context, n int) error {
	err := b.ApplyBatch(ctx, []int{n})
	var list *courier.BatchError
	if errors.As(err, &list) {
		return list.Failures[0].Err
	}
	return err
}

func (bulk) ApplyBatch(_ context.Context, numbers []int) error {
	var failed courier.BatchError
	for i, n := range numbers {
		if n%2 == 1 {
			failed.Add(i, courier.Permanent(fmt.Errorf("%d is odd", n)))
		}
	}
	return failed.ErrorOrNil()
}

// appendOnly is a destination that keeps the order of records, also inside a call.
type appendOnly struct{}

func (a appendOnly) Apply(ctx context.Context, line string) error {
	if line == "" {
		return courier.Permanent(errors.New("an empty line"))
	}
	return nil
}

func (a appendOnly) ApplyBatch(ctx context.Context, lines []string) error {
	fmt.Printf("append %q\n", lines)
	var failed courier.BatchError
	for i, line := range lines {
		if err := a.Apply(ctx, line); err != nil {
			failed.Add(i, err)
			for behind := i + 1; behind < len(lines); behind++ {
				failed.Add(behind, courier.ErrBehindFailed)
			}
			break
		}
	}
	return failed.ErrorOrNil()
}

func (appendOnly) OrderedBatches() bool { return true }

func ExampleOrderedBatcher() {
	applier, _ := courier.WithDLQ[string](appendOnly{})
	source := courier.BatchSourceFunc[string]{
		FetchFunc: func(context.Context) ([]string, error) { return []string{"a1", "a2", "b1", "", "a3", "b2"}, nil },
		MarkFunc:  func(_ context.Context, done []string) error { fmt.Printf("marked %q\n", done); return nil },
	}
	key := func(line string) string { return line[:min(1, len(line))] }
	_ = courier.NewPollingCoordinator(source, applier, courier.WithOrderKey(key)).RunOnce(context.Background())
	// Output:
	// append ["a1" "a2" "b1" "" "a3" "b2"]
	// append ["a3" "b2"]
	// marked ["a1" "a2" "b1" "" "a3" "b2"]
}

func ExampleBatchApplier() {
	applier, dlq := courier.ResilientApplier(bulk{}, nil)
	source := courier.BatchSourceFunc[int]{
		FetchFunc: func(context.Context) ([]int, error) { return []int{2, 3, 4}, nil },
		MarkFunc:  func(_ context.Context, done []int) error { fmt.Println("marked", done); return nil },
	}
	_ = courier.NewPollingCoordinator(source, applier).RunOnce(context.Background())
	parked, _ := dlq.Receive(context.Background(), 100)
	fmt.Println("parked", parked[0].Record)
	// Output:
	// marked [2 3 4]
	// parked 3
}

// An error of one's own joins the class that leaves a record pending and
// counts nothing against it by a method.
func ExampleClassify() {
	ctx := context.Background()
	fmt.Println(courier.Classify(ctx, errors.New("connection refused")))
	fmt.Println(courier.Classify(ctx, fmt.Errorf("order 7: %w", courier.Permanent(errors.New("no such customer")))))
	fmt.Println(courier.Classify(ctx, rateLimited{}))
	// Output:
	// retryable
	// permanent
	// not attempted
}

// A destination that says until when it is busy costs no attempt, and holds up no
// other record.
func ExampleLater() {
	opensAt := time.Now().Add(50 * time.Millisecond)
	orders := []string{"coffee", "books", "tea"}
	deliver := func(_ context.Context, order string) error {
		if wait := time.Until(opensAt); order == "coffee" && wait > 0 {
			return courier.Later(errors.New("the café is closed"), wait)
		}
		fmt.Println(order)
		return nil
	}
	fetch := func(context.Context) ([]string, error) { return orders, nil }
	mark := func(context.Context, []string) error { return nil }
	fmt.Println(courier.RunOnce(context.Background(), fetch, deliver, mark))
	// Output:
	// books
	// tea
	// coffee
	// <nil>
}

func ExampleBatchProcessFunc() {
	insert := courier.BatchProcessFunc(func(_ context.Context, orders []string) error {
		fmt.Println("inserted", orders) // one statement
		return nil
	})
	source := courier.BatchSourceFunc[string]{
		FetchFunc: func(context.Context) ([]string, error) { return []string{"order 1", "order 2"}, nil },
		MarkFunc:  func(context.Context, []string) error { return nil },
	}
	fmt.Println(courier.NewPollingCoordinator(source, courier.Applier[string](insert)).RunOnce(context.Background()))
	// Output:
	// inserted [order 1 order 2]
	// <nil>
}
