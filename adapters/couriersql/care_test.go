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

func TestStatus(t *testing.T) { inEach(t, testStatus) }

func testStatus(t *testing.T, newOutbox maker) {
	clock := &fixed{start}
	o := newOutbox(t, WithClock(clock), WithTable("events"))
	status, err := New(o.db, o.dialect).Status(t.Context())
	require.NoError(t, err)
	require.Zero(t, status, "there is another outbox")
	clock.now = start.Add(time.Minute)
	write(t, o, named("a", "b")...)
	s := o.Source()
	require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), take(t, s, 1)...)))
	require.NoError(t, o.DLQ().Send(t.Context(), letter("c", nil)))
	clock.now = start.Add(2 * time.Minute)
	makeDueIn(t, o, "events")
	status, err = o.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, Status{
		Version: SchemaVersion(o.Dialect()), Pending: 2, Due: 2, Oldest: time.Minute, Dead: 1,
		Failing: []Failing{{"a", 1, "boom"}},
	}, status)
	execute(t, o.db, `DROP TABLE courier_migrations`)
	status, err = o.Status(t.Context())
	require.NoError(t, err)
	require.Zero(t, status)
	_, err = New(nil, SQLite).Status(t.Context())
	require.ErrorIs(t, err, courier.ErrConfig)
}

func TestRequeue(t *testing.T) {
	for name, opts := range keeping {
		t.Run(name, func(t *testing.T) { inEach(t, func(t *testing.T, newOutbox maker) { testRequeue(t, newOutbox, opts) }) })
	}
}

func testRequeue(t *testing.T, newOutbox maker, opts []Option) {
	o := newOutbox(t, opts...)
	write(t, o, Message{ID: "a", Topic: "t", Key: "k", Payload: []byte("x"), Headers: map[string]string{"h": "1"}}, Message{ID: "b", Topic: "t"}, Message{ID: "c", Topic: "t"})
	s := o.Source()
	before := take(t, s, 10)
	for _, row := range before {
		require.NoError(t, o.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: row, Error: errors.New("boom"), FailedAt: start}))
	}
	require.NoError(t, s.Mark(t.Context(), before[:2])) // the mark of c was lost
	require.NoError(t, s.Release(t.Context(), before[2:], 0))
	letters, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	n, err := o.DLQ().Requeue(t.Context(), letters[2].ID, "9.9", "nonsense", letters[0].ID)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = o.DLQ().Requeue(t.Context(), letters[0].ID)
	require.NoError(t, err)
	require.Zero(t, n, "it is gone")
	n, err = o.DLQ().Requeue(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)

	after := fetch(t, o, 10)
	require.ElementsMatch(t, []string{"a", "c"}, idsOf(after))
	for _, row := range after {
		if row.ID == "a" {
			row.Seq = before[0].Seq
			require.Equal(t, before[0], row)
		}
	}
	left, err := o.DLQ().Count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, left)
}
