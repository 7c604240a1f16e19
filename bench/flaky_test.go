package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/byhand"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// What a record costs on average where one attempt of ten fails and is made
// again. Nobody sleeps before it: that would be all there is to measure.

var errFlaky = errors.New("did not work this time")

// flaky fails one of each ten attempts, a random one. So no more than two in a
// row fail, and no breaker opens. It is for one worker.
func flaky() func(context.Context, int) error {
	const attempts = 10_000
	random := rand.New(rand.NewPCG(1, 2)) // the same failures in every run
	fails := make([]bool, attempts)
	for i := 0; i < attempts; i += 10 {
		fails[i+random.IntN(10)] = true
	}
	next := 0
	return func(context.Context, int) error {
		if next++; next == attempts {
			next = 0
		}
		if fails[next] {
			return errFlaky
		}
		return nil
	}
}

// instant is a clock for which all waiting is over at once.
type instant struct{ over chan time.Time }

func newInstant() instant {
	c := instant{make(chan time.Time)}
	close(c.over)
	return c
}

func (instant) Now() time.Time                         { return time.Time{} }
func (c instant) After(time.Duration) <-chan time.Time { return c.over }

func BenchmarkFlaky_HandWrittenRetry(b *testing.B) {
	in, process := records(batch), byhand.Retry(flaky())
	meter.Records(b, batch, func(batches int) { byhand.Pass(b.Context(), batches, in, process) })
}

func BenchmarkFlaky_CourierRetry(b *testing.B) {
	poll(b, records(batch), courier.NewRetryableApplier(courier.ProcessFunc(flaky()), courier.RetryPolicy{Clock: newInstant()}))
}

func BenchmarkFlaky_HandWritten(b *testing.B) {
	in := records(batch)
	h := &byhand.RetryBreaker{Process: flaky(), Sleep: func(time.Duration) {}}
	meter.Records(b, batch, func(batches int) { byhand.Pass(b.Context(), batches, in, h.Apply) })
}

func BenchmarkFlaky_CourierResilient(b *testing.B) {
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(flaky()), &courier.ResilientConfig[int]{Clock: newInstant()})
	poll(b, records(batch), applier)
}
