// Package resilience measures what a record costs that succeeds at once, under
// Courier's decorators and under the libraries that one would use instead, beside
// the floor of a direct call through an interface.
package resilience

import (
	"context"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v6"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/sony/gobreaker/v2"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/byhand"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func process(context.Context, int) error { return nil }

func measure(b *testing.B, apply func(ctx context.Context, n int) error) {
	b.Helper()
	ctx := b.Context()
	meter.Records(b, 1, func(calls int) {
		for range calls {
			if err := apply(ctx, 1); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSuccess_Floor(b *testing.B) {
	measure(b, courier.ProcessFunc(process).Apply)
}

func BenchmarkSuccess_HandWritten(b *testing.B) {
	measure(b, (&byhand.RetryBreaker{Process: process, Sleep: time.Sleep}).Apply)
}

func BenchmarkSuccess_CourierRetry(b *testing.B) {
	measure(b, courier.WithRetry(courier.ProcessFunc(process)).Apply)
}

func BenchmarkSuccess_CourierBreaker(b *testing.B) {
	measure(b, courier.WithCircuitBreaker(courier.ProcessFunc(process)).Apply)
}

func BenchmarkSuccess_CourierRetryBreaker(b *testing.B) {
	measure(b, courier.WithRetry(courier.WithCircuitBreaker(courier.ProcessFunc(process))).Apply)
}

func BenchmarkSuccess_CourierResilient(b *testing.B) {
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(process), nil)
	measure(b, applier.Apply)
}

func BenchmarkSuccess_FailsafeRetryBreaker(b *testing.B) {
	retry := retrypolicy.NewBuilder[any]().WithMaxAttempts(5).WithBackoff(100*time.Millisecond, 30*time.Second).Build()
	breaker := circuitbreaker.NewBuilder[any]().WithFailureThreshold(5).WithDelay(5 * time.Second).Build()
	executor := failsafe.With[any](retry, breaker)
	measure(b, func(ctx context.Context, n int) error {
		return executor.WithContext(ctx).RunWithExecution(func(e failsafe.Execution[any]) error { return process(e.Context(), n) })
	})
}

func BenchmarkSuccess_BackoffGobreaker(b *testing.B) {
	breaker := gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{Timeout: 5 * time.Second})
	measure(b, func(ctx context.Context, n int) error {
		_, err := backoff.Retry(ctx, func() (struct{}, error) {
			return breaker.Execute(func() (struct{}, error) { return struct{}{}, process(ctx, n) })
		}, backoff.WithMaxTries(5))
		return err
	})
}
