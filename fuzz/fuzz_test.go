// Package fuzz holds the fuzz targets of the core. Each is a property that must
// hold for any input; `make fuzz` gives every target the same time, and the
// seeds here run with the tests.
package fuzz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errFailed = errors.New("failed")

// FuzzRetryPolicy: any policy either is refused by a ConfigError that names a
// field of it, or makes exactly MaxAttempts calls with delays within MaxDelay.
func FuzzRetryPolicy(f *testing.F) {
	f.Add(0, int64(0), int64(0), 0.0, 0, int64(0), 0.5)
	f.Add(1000, int64(1), int64(math.MaxInt64), 2.0, 3, int64(0), 0.99)
	f.Add(3, int64(time.Second), int64(time.Minute), 1e300, 2, int64(math.MaxInt64), 0.0)
	f.Add(5, int64(-1), int64(-1), math.NaN(), -1, int64(-1), 0.1)
	f.Add(2, int64(time.Hour), int64(time.Second), math.Inf(1), 4, int64(5), 1.0)
	f.Fuzz(func(t *testing.T, attempts int, initial, longest int64, multiplier float64, jitter int, retryAfter int64, random float64) {
		if !(random >= 0 && random < 1) {
			t.Skip("not a value of the random source")
		}
		synctest.Test(t, func(t *testing.T) {
			calls, last := 0, time.Now()
			policy := courier.RetryPolicy{
				MaxAttempts: min(attempts, 200), InitialDelay: time.Duration(initial), MaxDelay: time.Duration(longest),
				Multiplier: multiplier, Jitter: courier.Jitter(jitter), Random: func() float64 { return random },
			}
			clock := &instant{now: last}
			policy.Clock = clock
			applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
				calls++
				return courier.RetryAfter(errFailed, time.Duration(retryAfter))
			}), policy)
			err := applier.Apply(t.Context(), 1)
			var bad *courier.ConfigError
			if errors.As(err, &bad) {
				if bad.Field == "" || bad.Problem == "" || calls > 0 {
					t.Fatalf("after %d calls: %v", calls, err)
				}
				return
			}
			want := policy.MaxAttempts
			if want == 0 {
				want = 5
			}
			if calls != want || !errors.Is(err, courier.ErrExhausted) {
				t.Fatalf("%d calls, want %d: %v", calls, want, err)
			}
			limit := policy.MaxDelay
			if limit == 0 {
				limit = max(30*time.Second, policy.InitialDelay)
			}
			for _, d := range clock.waits {
				if d < 0 || d > limit {
					t.Fatalf("a delay of %v, with a limit of %v", d, limit)
				}
			}
		})
	})
}

// instant is a clock on which every wait is over at once.
type instant struct {
	now   time.Time
	waits []time.Duration
}

func (c *instant) Now() time.Time { return c.now }

func (c *instant) After(d time.Duration) <-chan time.Time {
	c.waits = append(c.waits, d)
	ch := make(chan time.Time, 1)
	ch <- c.now
	return ch
}

// FuzzBreaker: a string of operations on a breaker that guards a sink. While it
// is open no call passes, and once the sink is well it closes again.
func FuzzBreaker(f *testing.F) {
	f.Add("fffff.ss", uint8(5))
	f.Add("ff.f.f.f.s", uint8(2))
	f.Add("fpcPsf..s", uint8(1))
	f.Fuzz(func(t *testing.T, ops string, threshold uint8) {
		if len(ops) > 500 {
			t.Skip("long enough")
		}
		synctest.Test(t, func(t *testing.T) {
			b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: int(threshold%8) + 1, Random: func() float64 { return 0.5 }})
			var do func() error
			called := false
			applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
				called = true
				return do()
			}), b)
			var until time.Time
			apply := func(ctx context.Context, fn func() error) (err error) {
				defer func() {
					if recover() != nil {
						err = courier.ErrPanic
					}
				}()
				do = fn
				return applier.Apply(ctx, 1)
			}
			for _, op := range ops {
				ctx, cancel := context.WithCancel(t.Context())
				called = false
				var err error
				switch op {
				case 's':
					err = apply(ctx, func() error { return nil })
				case 'f':
					err = apply(ctx, func() error { return errFailed })
				case 'P':
					err = apply(ctx, func() error { return courier.Permanent(errFailed) })
				case 'p':
					err = apply(ctx, func() error { panic(errFailed) })
				case 'c':
					err = apply(ctx, func() error { cancel(); return ctx.Err() })
				default:
					time.Sleep(time.Second)
				}
				cancel()
				if called && time.Now().Before(until) {
					t.Fatalf("a call passed %v before the end of the open period", time.Until(until))
				}
				var open *courier.OpenError
				if errors.As(err, &open) && b.State() == "open" {
					until = open.Until
				}
				if b.State() == "closed" {
					until = time.Time{}
				}
			}
			time.Sleep(2 * time.Minute)
			if err := apply(t.Context(), func() error { return nil }); err != nil || b.State() != "closed" {
				t.Fatalf("the sink is well and the breaker %s: %v", b.State(), err)
			}
		})
	})
}

// FuzzBatchError: whatever a batch applier says of its records, exactly those
// are marked that it did not list, or all of which it applied one by one.
func FuzzBatchError(f *testing.F) {
	f.Add(uint8(4), []byte{1, 3})
	f.Add(uint8(1), []byte{})
	f.Add(uint8(3), []byte{0, 0, 200})
	f.Fuzz(func(t *testing.T, n uint8, listed []byte) {
		size := int(n%50) + 1
		records := make([]int, size)
		for i := range records {
			records[i] = i
		}
		var list courier.BatchError
		believed := true
		failed := map[int]bool{}
		for _, i := range listed {
			index := int(int8(i))
			list.Add(index, fmt.Errorf("record %d: %w", index, errFailed))
			believed = believed && index >= 0 && index < size
			failed[index] = true
		}
		sink := &lister{list: &list}
		var marked []int
		err := courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{
			FetchFunc: func(context.Context) ([]int, error) { return records, nil },
			MarkFunc:  func(_ context.Context, r []int) error { marked = append(marked, r...); return nil },
		}, sink, courier.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))).RunOnce(t.Context())
		if !believed && size > 1 {
			failed = nil // each was applied on its own, and that went well
		}
		if !believed && size == 1 {
			failed = map[int]bool{0: true}
		}
		isFailed := 0
		for _, r := range records {
			if failed[r] {
				isFailed++
			}
		}
		if len(marked) != size-isFailed || (err != nil) != (isFailed > 0) {
			t.Fatalf("of %d records, %v listed, %v were marked: %v", size, listed, marked, err)
		}
		for _, r := range marked {
			if failed[r] {
				t.Fatalf("record %d was listed and marked", r)
			}
		}
	})
}

type lister struct{ list *courier.BatchError }

func (l *lister) Apply(context.Context, int) error { return nil }

func (l *lister) ApplyBatch(context.Context, []int) error { return l.list.ErrorOrNil() }
