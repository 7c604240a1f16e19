package courierttest

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recording is a TB that keeps what is reported to it.
type recording struct {
	t        *testing.T
	failures []string
	fatal    bool
}

func (r *recording) Helper()          {}
func (r *recording) Cleanup(f func()) { r.t.Cleanup(f) }
func (r *recording) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}
func (r *recording) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	r.fatal = true
	runtime.Goexit()
}

// reportsOf runs what reports to a TB, and returns what it reported. A Fatalf ends
// the function, not the test.
func reportsOf(t *testing.T, run func(tb TB)) *recording {
	r := &recording{t: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(r)
	}()
	<-done
	return r
}

const lease = time.Minute

// quiet is for failures that are on purpose.
var quiet = courier.WithLogger(slog.New(slog.DiscardHandler))

var (
	_ TB = (*testing.T)(nil)
	_ TB = (*testing.B)(nil)
	_ TB = (*testing.F)(nil)
	_ TB = (*rapid.T)(nil)
)

func numbers(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}
