package courier_test

import (
	"flag"
	"testing"

	"github.com/benbjohnson/clock"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier"
)

func TestMain(m *testing.M) {
	if raceEnabled {
		if err := flag.Set("rapid.checks", "25"); err != nil { // unless the command line says more
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// few returns the values of a table, and under the race detector the first and the last
// one: all takes ten times as long there, and the detector looks for something else.
func few[T any](values ...T) []T {
	if raceEnabled && len(values) > 2 {
		return []T{values[0], values[len(values)-1]}
	}
	return values
}

// last returns the values of a table whose rows take seconds each, and under the race
// detector only the last one.
func last[T any](values ...T) []T {
	if raceEnabled {
		return values[len(values)-1:]
	}
	return values
}

// Both of benbjohnson's clocks are a Clock without an adapter.
var (
	_ courier.Clock = clock.New()
	_ courier.Clock = clock.NewMock()
)
