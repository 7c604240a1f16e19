package couriersql

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func TestTheSizesOfGroups(t *testing.T) {
	for _, c := range []struct{ limit, crashes, want int }{
		{1000, 1, 100}, {1000, 2, 10}, {1000, 3, 1}, {1000, aloneFrom, 1}, {100, 1, 10}, {100, 2, 1}, {20, 1, 2}, {5, 1, 1}, {1, 1, 1},
	} {
		require.Equal(t, c.want, groupSize(c.limit, c.crashes), c)
	}
	require.Equal(t, aloneFrom+3, mostCrashes(0))
	require.Equal(t, aloneFrom+1, mostCrashes(1))
	require.Greater(t, mostCrashes(-1), 1<<30)
}

// eachLease runs a test on an outbox with a lease, in each database.
func eachLease(t *testing.T, test func(t *testing.T, newOutbox maker)) {
	inEachOfRows(t, func(t *testing.T, newOutbox maker) {
		t.Parallel()
		test(t, func(t *testing.T, opts ...Option) *Outbox {
			return newOutbox(t, append([]Option{WithLease(time.Minute), WithLogger(slog.New(slog.DiscardHandler))}, opts...)...)
		})
	})
}

// expire ends the leases of rows.
func expire(t *testing.T, o *Outbox) {
	t.Helper()
	now := o.now()
	if o.dialect == Postgres {
		now = time.Now()
	}
	execute(t, o.db, `UPDATE courier_outbox SET available_at = $1 WHERE owner <> ''`, o.grammar.time(now.Add(-time.Millisecond).UnixMicro()))
}

// relaySource is a source whose coordinator runs.
func relaySource(o *Outbox) *Source {
	s := o.Source()
	s.RenewEvery()
	return s
}

func messages(n int) (list []Message) {
	for i := range n {
		list = append(list, Message{ID: fmt.Sprintf("%03d", i), Topic: "t"})
	}
	return list
}

func crashesOf(t *testing.T, o *Outbox) int {
	t.Helper()
	return count(t, o.db, `SELECT coalesce(max(crashes), 0) FROM courier_outbox`)
}

// outlive has relays, one after the other, deliver rows until there are none, and die of some.
// It returns what was in hand at each death.
func outlive(t *testing.T, o *Outbox, kills ...string) (delivered []string, deaths [][]string) {
	t.Helper()
	for range 1000 {
		s, died := relaySource(o), false
		for range 1000 {
			rows := take(t, s, 100)
			if len(rows) == 0 {
				break
			}
			if slices.ContainsFunc(rows, func(r Row) bool { return slices.Contains(kills, r.ID) }) {
				died, deaths = true, append(deaths, idsOf(rows))
				break
			}
			require.NoError(t, s.Mark(t.Context(), rows))
			delivered = append(delivered, idsOf(rows)...)
		}
		if !died {
			return delivered, deaths
		}
		expire(t, o)
	}
	require.Fail(t, "there is no end of it")
	return nil, nil
}

func TestAMessageThatKillsItsProcess(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		for keep, opts := range keeping {
			var log bytes.Buffer
			o := newOutbox(t, append(opts, WithLogger(slog.New(slog.NewTextHandler(&log, nil))))...)
			write(t, o, messages(250)...)
			delivered, deaths := outlive(t, o, "057")
			require.Len(t, delivered, 249, keep)
			require.NotContains(t, delivered, "057")
			var sizes []int
			for _, ids := range deaths {
				sizes = append(sizes, len(ids))
			}
			require.Equal(t, []int{100, 10, 1, 1, 1}, sizes, keep)

			letters, err := o.DLQ().Receive(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			letter := letters[0]
			require.Equal(t, "057", letter.Record.ID)
			require.Equal(t, courier.ReasonCrashed, letter.Reason)
			require.Equal(t, DefaultMaxCrashes, letter.Attempts)
			require.ErrorContains(t, letter.Error, ErrCrashed.Error()+" (3 times)")
			require.Contains(t, log.String(), "a message is parked, as each relay that had it in hand, alone, died")
			require.Contains(t, log.String(), "message=057 crashes=3")
			pending, err := o.Pending(t.Context())
			require.NoError(t, err)
			require.Zero(t, pending)

			// Who requeues it begins anew.
			_, err = o.Requeue(t.Context(), letter.ID)
			require.NoError(t, err)
			require.Zero(t, count(t, o.db, `SELECT max(crashes) FROM courier_outbox WHERE processed_at IS NULL`))
			require.Equal(t, []string{"057"}, idsOf(take(t, relaySource(o), 100)))
		}
	})
}

func TestSeveralMessagesThatKillTheirProcess(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t, WithMaxCrashes(1))
		write(t, o, messages(120)...)
		kills := []string{"001", "002", "119"}
		delivered, deaths := outlive(t, o, kills...)
		require.Len(t, delivered, 117)
		require.LessOrEqual(t, len(deaths), 3*3)
		letters, err := o.DLQ().Receive(t.Context(), 10)
		require.NoError(t, err)
		var parked []string
		for _, letter := range letters {
			parked = append(parked, letter.Record.ID)
		}
		require.ElementsMatch(t, kills, parked)
	})
}

// Whatever returns has survived.
func TestWhatClearsCrashes(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t, WithKeep())
		write(t, o, named("a", "b", "c")...)
		take(t, relaySource(o), 10)
		expire(t, o)
		s := relaySource(o)
		for _, settle := range []func(rows []Row) error{
			func(rows []Row) error { return s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)) },
			func(rows []Row) error { return s.Mark(t.Context(), rows) },
			func(rows []Row) error { return s.Release(t.Context(), rows, 0) },
		} {
			rows := take(t, s, 10)
			require.Len(t, rows, 1, "alone")
			crashes := `SELECT crashes FROM courier_outbox WHERE id = '` + rows[0].ID + `'`
			require.Equal(t, aloneFrom, count(t, o.db, crashes))
			require.NoError(t, settle(rows))
			require.Zero(t, count(t, o.db, crashes))
		}
		require.Zero(t, crashesOf(t, o))
		require.Equal(t, []string{"c"}, idsOf(take(t, s, 10)), "no suspect any more")
		require.Zero(t, crashesOf(t, o))
	})
}

// A group and other rows are not in hand together, and take turns.
func TestSuspectsAreAlone(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		write(t, o, messages(20)...)
		take(t, relaySource(o), 20)
		expire(t, o)
		write(t, o, named("x0", "x1", "x2", "x3")...)
		s := relaySource(o)
		l := s.holder.(*leased)
		try := func() []Row { // Fetch would wait
			rows, err := l.fetch(t.Context(), 20, 0)
			require.NoError(t, err)
			return rows
		}
		first := take(t, s, 1)
		require.Equal(t, []string{"x0"}, idsOf(first), "20 crashes are counted on the way")
		require.True(t, s.More())
		require.Empty(t, try(), "the turn of suspects, for which it is too early")
		require.False(t, s.More())
		require.NoError(t, s.Mark(t.Context(), first))
		group := try()
		require.Equal(t, []string{"000", "001"}, idsOf(group))
		require.True(t, s.More())
		require.Empty(t, try(), "beside a group")
		require.NoError(t, s.Mark(t.Context(), group[:1]))
		require.Empty(t, try(), "beside the rest of a group")
		require.NoError(t, s.Release(t.Context(), group[1:], 0))
		require.Equal(t, []string{"001", "x1", "x2", "x3"}, idsOf(try()), "the turn of others")

		// Records that stay in hand hold up the others for a second, and no longer.
		require.Empty(t, try())
		l.apart.waits = time.Now().Add(-apartFor)
		group = try()
		require.Equal(t, []string{"002", "003"}, idsOf(group))
		require.Empty(t, try())
		write(t, o, named("y0")...)
		l.apart.waits = time.Now().Add(-apartFor)
		require.Equal(t, []string{"y0"}, idsOf(try()))

		// One that is handed out beside others is not alone.
		require.Empty(t, try())
		l.apart.waits = time.Now().Add(-apartFor)
		rows, err := l.fetch(t.Context(), 10, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"004"}, idsOf(rows))
		require.Equal(t, 1, crashesOf(t, o))
	})
}

// Fetch waits for what is in hand, and not for long.
func TestAFetchWaitsForSuspects(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		write(t, o, messages(20)...)
		take(t, relaySource(o), 20)
		expire(t, o)
		s := relaySource(o)
		group := take(t, s, 20)
		require.Len(t, group, 2)
		done := make(chan []Row)
		go func() {
			rows, err := s.Fetch(t.Context(), 20)
			if err != nil {
				t.Error(err)
			}
			done <- rows
		}()
		for !s.holder.(*leased).apart.waiting() {
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, s.Mark(t.Context(), group))
		require.Equal(t, []string{"002", "003"}, idsOf(<-done))
		began := time.Now()
		require.Equal(t, []string{"004", "005"}, idsOf(take(t, s, 20)), "beside the group that is not settled, in the end")
		require.GreaterOrEqual(t, time.Since(began), apartFor/2)
		require.Equal(t, 1, count(t, o.db, `SELECT max(crashes) FROM courier_outbox`))
	})
}

// A relay that lives is no crash, however long it cannot reach the database.
func TestAnOutageIsNoCrash(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		write(t, o, messages(10)...)
		s, other := relaySource(o), relaySource(o)
		for range 5 { // its own claims have run out, which nobody else has taken
			rows := take(t, s, 10)
			require.Len(t, rows, 10)
			expire(t, o)
		}
		require.Zero(t, crashesOf(t, o))

		away := func() {
			execute(t, o.db, `ALTER TABLE courier_outbox RENAME TO away`)
			_, err := other.Fetch(t.Context(), 10)
			require.Error(t, err)
			execute(t, o.db, `ALTER TABLE away RENAME TO courier_outbox`)
		}
		take(t, s, 10)
		away()
		require.Empty(t, take(t, other, 10), "it reaches the database again, before the leases are over")
		expire(t, o)
		require.Len(t, take(t, other, 10), 10, "the other relay did not reach the database either")
		require.Zero(t, crashesOf(t, o))

		// It counts those that began after that.
		l := other.holder.(*leased)
		l.apart.reached = time.Now().Add(-2 * time.Minute)
		expire(t, o)
		require.Len(t, take(t, relaySource(o), 10), 1, "a crash, to one that never met the database away")
		require.Equal(t, aloneFrom, crashesOf(t, o))
		expire(t, o)
		take(t, other, 10)
		require.Equal(t, aloneFrom+1, crashesOf(t, o))
	})
}

func TestCrashesAreNotCounted(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t, WithMaxCrashes(-1))
		write(t, o, messages(10)...)
		for range 5 {
			require.Len(t, take(t, relaySource(o), 10), 10)
			expire(t, o)
		}
		require.Zero(t, crashesOf(t, o))
	})
	o := newOutbox(t)
	require.ErrorContains(t, New(o.db, SQLite, WithMaxCrashes(2)).Source().Validate(), "WithMaxCrashes needs WithLease")
}

// A letter that the queue refuses leaves its row pending, and holds up no other.
func TestAMessageThatCannotBeParked(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		var log bytes.Buffer
		o := newOutbox(t, WithMaxCrashes(1), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		write(t, o, messages(30)...)
		execute(t, o.db, `ALTER TABLE courier_outbox_dlq RENAME TO away`)
		delivered, _ := outlive(t, o, "003", "005")
		require.Len(t, delivered, 28)
		require.Contains(t, log.String(), "could not be parked")
		execute(t, o.db, `ALTER TABLE away RENAME TO courier_outbox_dlq`)
		require.Empty(t, take(t, relaySource(o), 10))
		n, err := o.DLQ().Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, n)
	})
}

// Row locks end with their session, and so does the lead: the next relay cannot tell that one
// died with the rows in hand.
func TestLocksLeaveNoTraceOfACrash(t *testing.T) {
	for name, opts := range map[string][]Option{"locked": nil, "elected": {WithStrictOrder()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newPostgres(t, append(opts, WithLogger(slog.New(slog.DiscardHandler)))...)
			write(t, o, messages(20)...)
			for range 5 {
				s := relaySource(o)
				require.Eventually(t, func() bool { return len(take(t, s, 20)) == 20 }, 10*time.Second, time.Millisecond, "all of them, again")
				require.NoError(t, o.Close()) // ends the sessions
			}
			require.Zero(t, crashesOf(t, o))
		})
	}
}

// A relay that is killed with a thousand healthy rows in hand: they are delivered in some
// tens of fetches, which take no interval.
func TestAKilledRelayCostsNoInterval(t *testing.T) {
	eachLease(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t, WithClock(nil))
		write(t, o, messages(1000)...)
		require.Len(t, take(t, relaySource(o), 1000), 1000)
		execute(t, o.db, `UPDATE courier_outbox SET available_at = $1`, o.grammar.time(time.Now().UnixMicro()))
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		left, fetches := 1000, 0
		began := time.Now()
		err := courier.NewPollingCoordinator(o.Source(), courier.ProcessFunc(func(context.Context, Row) error {
			if left--; left == 0 {
				stop()
			}
			return nil
		}), courier.WithBatchSize(1000), courier.WithInterval(time.Hour), courier.WithLogger(slog.New(slog.DiscardHandler)),
			courier.WithObserver(courier.Observer{Fetched: func(context.Context, courier.FetchEvent) { fetches++ }})).Start(ctx)
		require.NoError(t, err)
		require.Zero(t, left)
		require.LessOrEqual(t, fetches, 13)
		t.Logf("%d rows in %d fetches and %v", 1000, fetches, time.Since(began))
	})
}
