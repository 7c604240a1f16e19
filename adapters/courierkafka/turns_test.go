package courierkafka

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// A call that wants to be alone waits for the others, and later ones wait for it.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turns
		var order []string
		enter := func(name string, alone bool) {
			if err := turns.enter(t.Context(), alone); err != nil {
				t.Error(err)
			}
			order = append(order, name)
		}
		enter("first", false)
		enter("second", false)
		go enter("alone", true)
		synctest.Wait()
		go enter("third", false)
		synctest.Wait()
		turns.leave()
		synctest.Wait()
		require.Equal(t, []string{"first", "second"}, order)
		turns.leave()
		synctest.Wait()
		require.Equal(t, []string{"first", "second", "alone"}, order)
		turns.leave()
		synctest.Wait()
		require.Equal(t, []string{"first", "second", "alone", "third"}, order)
	})
}

func TestTurnsOfAnEndedContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turns
		require.NoError(t, turns.enter(t.Context(), false))
		cause := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		failed := make(chan error, 1)
		go func() { failed <- turns.enter(ctx, true) }()
		synctest.Wait()
		entered := make(chan error, 1)
		go func() { entered <- turns.enter(t.Context(), false) }()
		synctest.Wait()
		cancel(cause)
		require.Equal(t, cause, <-failed)
		require.NoError(t, <-entered, "nobody wants to be alone any more")
		turns.leave()
		turns.leave()
		require.NoError(t, turns.enter(t.Context(), true))
		turns.leave()
	})
}
