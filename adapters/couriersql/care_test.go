package couriersql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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

// A message that is parked while it counts is not counted twice.
func TestStatusIsOfOneMoment(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a")...)
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `LOCK TABLE courier_outbox_dlq`)
	require.NoError(t, err)
	var status Status
	asked := make(chan error, 1)
	go func() {
		var err error
		status, err = o.Status(t.Context())
		asked <- err
	}()
	require.Eventually(t, func() bool {
		return count(t, o.db, `SELECT count(*) FROM pg_locks WHERE relation = 'courier_outbox_dlq'::regclass AND NOT granted`) == 1
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, o.send(t.Context(), tx, letter("a", nil)))
	_, err = tx.ExecContext(t.Context(), `DELETE FROM courier_outbox`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit())
	require.NoError(t, <-asked)
	require.Equal(t, 1, status.Pending)
	require.Zero(t, status.Dead)
}

// In SQLite, to ask for the status is not to wait for the writer.
func TestStatusBesideAWriter(t *testing.T) {
	o := newOutbox(t)
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, o.Write(t.Context(), tx, named("a")...))
	status, err := o.Status(t.Context())
	require.NoError(t, err)
	require.Zero(t, status.Pending)
	require.NoError(t, tx.Rollback())
}

func TestRequeue(t *testing.T) {
	for name, opts := range keeping {
		t.Run(name, func(t *testing.T) { inEach(t, func(t *testing.T, newOutbox maker) { testRequeue(t, newOutbox, opts) }) })
	}
}

func testRequeue(t *testing.T, newOutbox maker, opts []Option) {
	clock := &fixed{start}
	o := newOutbox(t, append(opts, WithClock(clock), WithBackoff(time.Hour, time.Hour))...)
	write(t, o, Message{ID: "a", Topic: "t", Key: "k", Payload: []byte("x"), Headers: map[string]string{"h": "1"}}, Message{ID: "b", Topic: "t"}, Message{ID: "c", Topic: "t"})
	s := o.Source()
	before := take(t, s, 10)
	for _, row := range before {
		require.NoError(t, o.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: row, Error: errors.New("boom"), FailedAt: start}))
	}
	require.NoError(t, s.Mark(t.Context(), before[:2])) // the mark of c was lost, and its delivery failed again
	require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), before[2])))
	letters, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	requeue := func(ids ...string) []string {
		requeued, err := o.Requeue(t.Context(), ids...)
		require.NoError(t, err)
		return requeued
	}
	clock.now = start.Add(time.Hour)
	a, c := letters[0].ID, letters[2].ID
	require.Equal(t, []string{c, a}, requeue(c, "9.9", "nonsense", a, c))
	require.Empty(t, requeue(a), "it is gone")
	require.Empty(t, requeue())

	clock.now = start.Add(time.Hour + time.Minute)
	status, err := o.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, Status{Version: SchemaVersion(o.dialect), Pending: 2, Due: 2, Oldest: time.Minute, Dead: 1}, status, "their age and their attempts begin anew")
	if o.dialect != MySQL { // where they are noted elsewhere
		execute(t, o.db, `UPDATE courier_outbox SET attempts = 1 WHERE processed_at IS NULL`)
	}
	lag, err := o.Lag(t.Context())
	require.NoError(t, err)
	require.Equal(t, courier.Lag{Pending: 2, Oldest: time.Minute}, lag, "also once they fail again")
	if o.dialect != MySQL {
		execute(t, o.db, `UPDATE courier_outbox SET attempts = 0 WHERE processed_at IS NULL`)
	}
	after := fetch(t, o, 10)
	require.Equal(t, []string{"a", "c"}, idsOf(after), "in the order of the letters")
	for i, row := range after {
		was := before[2*i]
		require.Greater(t, row.Seq, before[2].Seq, "they are other rows")
		row.Seq, row.claim, was.claim = was.Seq, 0, 0
		require.Equal(t, was, row)
	}
}

// A row that was put back is another one to the marks of the one before: one that
// comes late, or again as its answer was lost, takes nothing that nobody applied.
func TestALateMarkTakesNoRequeuedRow(t *testing.T) {
	for name, marked := range map[string]bool{"late": false, "again": true} {
		t.Run(name, func(t *testing.T) {
			inEachWay(t, func(t *testing.T, o *Outbox) {
				write(t, o, named("a")...)
				s := o.Source()
				s.RenewEvery()
				rows := take(t, s, 10)
				require.NoError(t, o.DLQ().Send(t.Context(), letterFor(rows[0])))
				if marked {
					require.NoError(t, s.Mark(t.Context(), rows))
				}
				requeued, err := o.Requeue(t.Context(), idAt("1.1"))
				require.NoError(t, err)
				require.NoError(t, s.Mark(t.Context(), rows))
				if isLocked(s) && !marked { // and so the row was the relay's
					require.Empty(t, requeued)
					require.Empty(t, pendingOf(t, o))
					require.Equal(t, []string{"a.1"}, lettersOf(t, o))
					return
				}
				require.Equal(t, []string{idAt("1.1")}, requeued)
				require.Equal(t, []string{"a"}, pendingOf(t, o))
				require.Empty(t, lettersOf(t, o))
			})
		})
	}
}

// A row goes to all branches, and the letter of one is owed to that one alone.
func TestRequeueRefusesTheLetterOfABranch(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t, WithKeep())
		write(t, o, named("a", "b")...)
		s := o.Source()
		rows := take(t, s, 10)
		var ids []string
		for i, branch := range []string{"", "search", "mail", ""} {
			l := letterFor(rows[i/2])
			l.Branch = branch
			require.NoError(t, o.DLQ().Send(t.Context(), l))
			ids = append(ids, idAt(fmt.Sprintf("%d.1", i+1)))
		}
		require.NoError(t, s.Mark(t.Context(), rows))
		all := lettersOf(t, o)
		_, err := o.Requeue(t.Context(), ids...)
		require.ErrorIs(t, err, ErrOfBranch)
		require.EqualError(t, err, `couriersql: putting 4 dead letters of courier_outbox_dlq back into courier_outbox (none was): the letter `+ids[1]+` is of the branch "search": `+ErrOfBranch.Error())
		require.Equal(t, all, lettersOf(t, o))
		require.Empty(t, pendingOf(t, o))

		requeued, err := o.Requeue(t.Context(), ids[0], ids[3])
		require.NoError(t, err)
		require.Equal(t, []string{ids[0], ids[3]}, requeued)
		require.Equal(t, []string{"a.1", "b.1"}, lettersOf(t, o), "of the branches")
		require.Equal(t, []string{"a", "b"}, pendingOf(t, o))
	})
}

// The letters of a parked key are put back together: those that are left would have the
// others parked again, behind them.
func TestRequeueRefusesSomeOfTheLettersOfAKey(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		write(t, o, named("a", "b", "c", "d")...)
		s := o.Source()
		rows := take(t, s, 10)
		ofBranch := letterFor(rows[0])
		ofBranch.Key, ofBranch.Branch = "customer 1", "search" // which has a key and order of its own
		require.NoError(t, o.DLQ().Send(t.Context(), ofBranch))
		var ids []string
		for i, key := range []string{"customer 1", "customer 1", "customer 2", ""} {
			l := letterFor(rows[i])
			l.Key = key
			if i == 1 {
				l.Reason = courier.ReasonKeyParked
			}
			require.NoError(t, o.DLQ().Send(t.Context(), l))
			ids = append(ids, idAt(fmt.Sprintf("%d.1", i+2)))
		}
		require.NoError(t, s.Mark(t.Context(), rows))
		all := lettersOf(t, o)
		for _, one := range ids[:2] {
			_, err := o.Requeue(t.Context(), one, ids[2], ids[3])
			require.ErrorIs(t, err, ErrOfKey)
			require.ErrorContains(t, err, `1 of the 2 letters of the key "customer 1": `)
			require.Equal(t, all, lettersOf(t, o))
			require.Empty(t, pendingOf(t, o))
		}
		requeued, err := o.Requeue(t.Context(), ids[1], ids[0], ids[3])
		require.NoError(t, err)
		require.Equal(t, []string{ids[1], ids[0], ids[3]}, requeued)
		require.Equal(t, []string{"a.1", "c.1"}, lettersOf(t, o))
		require.Equal(t, []string{"a", "b", "d"}, pendingOf(t, o), "in their order")
	})
}

// Letters of a key are not put back without the one in the middle, whose row a relay has
// locked: the relay would park the last behind it, and deliver the first.
func TestRequeueRefusesAKeyOfWhichARowIsLocked(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a", "b", "c", "d")...)
	var ids []string
	for i, row := range fetch(t, o, 10) {
		l := letterFor(row)
		if l.Key = "customer 1"; row.ID == "d" {
			l.Key = "customer 2"
		}
		require.NoError(t, o.DLQ().Send(t.Context(), l))
		ids = append(ids, idAt(fmt.Sprintf("%d.1", i+1)))
	}
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SELECT FROM courier_outbox WHERE id IN ('b', 'd') FOR UPDATE`)
	require.NoError(t, err)
	_, err = o.Requeue(t.Context(), ids...)
	require.ErrorIs(t, err, ErrOfKey)
	require.ErrorContains(t, err, `2 of the 3 letters of the key "customer 1": `)
	require.Len(t, lettersOf(t, o), 4)
	requeued, err := o.Requeue(t.Context(), ids[3])
	require.NoError(t, err)
	require.Empty(t, requeued, "all of a key are passed over")
	require.NoError(t, tx.Rollback())
	requeued, err = o.Requeue(t.Context(), ids...)
	require.NoError(t, err)
	require.Equal(t, ids, requeued)
	require.Equal(t, []string{"a", "b", "c", "d"}, pendingOf(t, o))
}

// Of several operators who put the same letters back, each letter has one.
func TestRequeueAtOnce(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		var ids []string
		for i := range 20 {
			l := letter(fmt.Sprint(i), errors.New("boom"))
			l.Record.Seq = int64(i)
			require.NoError(t, o.DLQ().Send(t.Context(), l))
			ids = append(ids, idAt(fmt.Sprintf("%d.1", i+1)))
		}
		requeued := make([][]string, 4)
		errs := make([]error, len(requeued))
		var all sync.WaitGroup
		for i := range requeued {
			all.Go(func() { requeued[i], errs[i] = o.Requeue(t.Context(), ids...) })
		}
		all.Wait()
		require.NoError(t, errors.Join(errs...))
		require.ElementsMatch(t, ids, slices.Concat(requeued...))
		require.Len(t, pendingOf(t, o), len(ids))
		require.Empty(t, lettersOf(t, o))
	})
}
