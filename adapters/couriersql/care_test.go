package couriersql

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func TestLagCountsWhatIsDue(t *testing.T) { inEach(t, testLagCountsWhatIsDue) }

func testLagCountsWhatIsDue(t *testing.T, newOutbox maker) {
	clock := &fixed{start}
	o := newOutbox(t, WithClock(clock), WithLease(time.Hour), WithKeep())
	lag := func() courier.Lag {
		lag, err := o.Source().Lag(t.Context())
		require.NoError(t, err)
		return lag
	}
	require.Zero(t, lag())
	write(t, o, named("a", "b", "c")...)
	clock.now = start.Add(time.Minute)
	write(t, o, named("d")...)
	require.Equal(t, courier.Lag{Pending: 4, Oldest: time.Minute}, lag())
	s := o.Source()
	rows := take(t, s, 3)
	require.Equal(t, courier.Lag{Pending: 1}, lag(), "what is leased is not due")
	require.NoError(t, s.Mark(t.Context(), rows[:1]))
	require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[1])))
	require.Equal(t, courier.Lag{Pending: 1}, lag(), "nor what waits for a retry")
	require.NoError(t, s.Release(t.Context(), rows[2:], 0))
	require.Equal(t, courier.Lag{Pending: 2, Oldest: time.Minute}, lag())
	n, err := o.Pending(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, n)

	clock.now = start.Add(-time.Hour) // a writer's clock is ahead
	require.Zero(t, lag().Oldest)
}

func TestPrune(t *testing.T) { inEach(t, testPrune) }

func testPrune(t *testing.T, newOutbox maker) {
	clock := &fixed{start}
	o := newOutbox(t, WithKeep(), WithClock(clock))
	var ids []string
	for i := range 2*pruneBatch + 10 {
		ids = append(ids, fmt.Sprint(i))
	}
	write(t, o, named(ids...)...)
	s := o.Source()
	require.NoError(t, s.Mark(t.Context(), take(t, s, len(ids))))
	clock.now = start.Add(time.Hour)
	write(t, o, named("new", "pending")...)
	require.NoError(t, s.Mark(t.Context(), take(t, s, 1)))

	n, err := o.Prunable(t.Context(), clock.now)
	require.NoError(t, err)
	require.Equal(t, len(ids), n)
	n, err = o.Prune(t.Context(), clock.now)
	require.NoError(t, err)
	require.Equal(t, len(ids), n)
	require.Equal(t, 2, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
	n, err = o.Prune(t.Context(), clock.now)
	require.NoError(t, err)
	require.Zero(t, n)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = o.Prune(ctx, clock.now)
	require.ErrorIs(t, err, context.Canceled)
	bad := New(nil, SQLite)
	_, err = bad.Prune(t.Context(), clock.now)
	require.ErrorIs(t, err, courier.ErrConfig)
	_, err = bad.Lag(t.Context())
	require.ErrorIs(t, err, courier.ErrConfig)
}
