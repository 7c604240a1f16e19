package courier_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// With marks in order, what was applied behind a record that is handed back cannot
// be marked, and Start says so.
func TestD1_OrderedMarksThatAreHeldUpAtTheEndAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked []int
		source := courier.NewChannelSource(full(3, false), func(_ context.Context, r []int) error { marked = append(marked, r...); return nil })
		stop := start(t, courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 0 {
				return errTest
			}
			return nil
		}), courier.WithOrderedMarks(), quiet))
		time.Sleep(time.Minute)
		err := stop()
		var left *courier.UnsettledError[int]
		var unmarked *courier.MarkError
		require.ErrorAs(t, err, &left)
		n := len(left.Records) + len(marked)
		if errors.As(err, &unmarked) {
			n += unmarked.Records
		}
		require.Equal(t, 3, n, "each of three records is marked, handed back or told to be unmarked: %v", err)
	})
}
