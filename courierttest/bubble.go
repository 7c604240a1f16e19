package courierttest

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/benbjohnson/clock"
)

// Bubble runs a test in a bubble of testing/synctest, in which time passes only when
// every goroutine waits, and then instantly. Real input and output, such as a database,
// do not belong there. When the test and its cleanups have ended, no goroutine may be
// left, see [AssertNoGoroutines].
func Bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	leaked := false
	defer func() {
		if leaked { // said already; what is left can never end
			_ = recover()
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() {
			if left := goroutinesLeft(); len(left) > 0 {
				leaked = true
				t.Errorf("the test has ended, and %s", describeGoroutines(left))
			}
		})
		test(t)
	})
}

// Starter is a coordinator of either kind.
type Starter interface {
	Start(ctx context.Context) error
}

// Running is a coordinator that was started by [Start].
type Running struct {
	cancel context.CancelFunc
	ended  chan struct{}
	err    error
}

// Start runs a coordinator on a new goroutine, until Stop is called or the test ends.
func Start(tb TB, coordinator Starter) *Running {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &Running{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = coordinator.Start(ctx)
	}()
	tb.Cleanup(func() { _ = r.Stop() })
	return r
}

// Stop ends the coordinator's context, waits until Start has returned, and
// returns its error. Further calls return the same.
func (r *Running) Stop() error {
	r.cancel()
	<-r.ended
	return r.err
}

// Ended returns a channel that is closed when Start has returned, stopped or not.
func (r *Running) Ended() <-chan struct{} { return r.ended }

// RunFor runs a coordinator in a bubble for the given virtual time, stops it, and waits
// for its end. An error of Start fails the test. If the coordinator ends by itself,
// RunFor returns then.
func RunFor(tb TB, coordinator Starter, d time.Duration) {
	tb.Helper()
	if !settle() {
		tb.Fatalf("RunFor runs in the time of a bubble: call it inside courierttest.Bubble")
		return
	}
	r := Start(tb, coordinator)
	select {
	case <-clock.New().After(d):
	case <-r.Ended():
	}
	if err := r.Stop(); err != nil {
		tb.Errorf("Start returned an error: %v", err)
	}
}

// AssertNoGoroutines reports leftover goroutines: in a bubble all its other goroutines,
// elsewhere those that run code of this module, including those of parallel tests. Call
// it when everything that was started has been stopped.
func AssertNoGoroutines(tb TB) {
	tb.Helper()
	if left := goroutinesLeft(); len(left) > 0 {
		tb.Errorf("%s", describeGoroutines(left))
	}
}

func describeGoroutines(left []string) string {
	return fmt.Sprintf("%d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
}

// goroutinesLeft returns the stacks of goroutines that should have ended. One
// that is about to end is given the chance to.
func goroutinesLeft() (left []string) {
	bubbled := settle()
	for range 100 {
		if left = lookForGoroutines(bubbled); len(left) == 0 || bubbled {
			return left
		}
		for range 100 {
			runtime.Gosched()
		}
	}
	return left
}

func lookForGoroutines(bubbled bool) (left []string) {
	all := strings.Split(stacks(), "\n\n")
	bubble := bubbleOf(all[0])
	for _, stack := range all[1:] {
		switch {
		case bubbled && bubbleOf(stack) != bubble:
		case strings.Contains(stack, "\ntesting/synctest.") || strings.Contains(stack, "\ntesting.tRunner("):
		case bubbled || strings.Contains(stack, "\ngithub.com/erfanmomeniii/courier"):
			left = append(left, stack)
		}
	}
	return left
}

// bubbleOf returns what the head of a stack says of the goroutine's bubble, such
// as in: goroutine 7 [chan receive (durable), synctest bubble 3].
func bubbleOf(stack string) string {
	head, _, _ := strings.Cut(stack, "]")
	_, bubble, _ := strings.Cut(head, "synctest bubble ")
	bubble, _, _ = strings.Cut(bubble, ",")
	return bubble
}

// stacks returns those of all goroutines, that of the caller first.
func stacks() string {
	for buf := make([]byte, 1<<16); ; buf = make([]byte, 2*len(buf)) {
		if n := runtime.Stack(buf, true); n < len(buf) {
			return strings.TrimSpace(string(buf[:n]))
		}
	}
}
