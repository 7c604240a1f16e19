package courier_test

// What hostile or unlucky user code does to the contract: errors that cannot be
// looked into, calls that hang at the wrong moment, sources that do not do as
// they are told. Each was found by attack or by chance.

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// The log names the record, and shows where a panic came from.
func TestLog_NamesTheRecord(t *testing.T) {
	var logged strings.Builder
	source := newShelf(name("a"), name("b"))
	err := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(_ context.Context, n name) error {
		if n == "b" {
			panic("boom")
		}
		return nil
	}), courier.WithLogger(textLogger(&logged))).RunOnce(t.Context())
	require.ErrorIs(t, err, courier.ErrPanic)
	require.Contains(t, logged.String(), `record="order b"`)
	require.Contains(t, logged.String(), "hazards_test.go")

	logged.Reset()
	synctest.Test(t, func(t *testing.T) {
		stop := start(t, courier.NewPollingCoordinator(newShelf(1, 2), courier.ProcessFunc(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}), courier.WithLogger(textLogger(&logged))))
		synctest.Wait()
		require.NoError(t, stop())
	})
	require.Contains(t, logged.String(), "the drain timeout cut the work short")
}

type name string

func (n name) String() string { return "order " + string(n) }
