package couriersql

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// random is a text that does not compress.
func random(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return base64.StdEncoding.EncodeToString(b)[:bytes]
}

// What Write takes, every later statement takes: texts of all lengths that are
// allowed come to be failed, parked, looked for, put back and marked.
func TestWhatWriteTakesEveryLaterStatementTakes(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			var messages []Message
			for _, n := range []int{1, 2000, 2705, 10_000, 100_000} {
				messages = append(messages, Message{ID: random(min(n, maxID)), Topic: random(n), Key: random(n), Payload: []byte{1},
					Headers: map[string]string{random(n): random(n)}, Trace: map[string]string{random(n): random(n)}})
			}
			write(t, o, messages...)
			s := o.Source()
			rows := take(t, s, 10)
			require.Len(t, rows, len(messages))
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New(random(100_000)), rows...)))
			for _, row := range rows {
				require.Equal(t, 1, failures(t, o, row.ID))
			}
			makeDue(t, o)

			rows = take(t, s, 10)
			var ids, keys []string
			for i, row := range rows {
				l := letter(row.ID, errors.New(random(100_000)))
				l.Record, l.Key, l.Branch = row, row.Key, []string{"", random(500)}[i%2]
				require.NoError(t, s.DLQ().Send(t.Context(), l))
				if l.Branch == "" {
					keys = append(keys, row.Key)
				}
			}
			require.NoError(t, s.Mark(t.Context(), rows))
			found, err := o.DLQ().ParkedKeys(t.Context(), "", append(keys, "of nobody"))
			require.NoError(t, err)
			require.ElementsMatch(t, keys, found)
			letters, err := o.DLQ().List(t.Context(), "", 10)
			require.NoError(t, err)
			require.Len(t, letters, len(messages))
			for _, l := range letters {
				if l.Branch == "" {
					ids = append(ids, l.ID)
				}
			}
			requeued, err := o.Requeue(t.Context(), ids...)
			require.NoError(t, err)
			require.Equal(t, ids, requeued)
			require.NoError(t, s.Mark(t.Context(), take(t, s, 10)))
			require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
		})
	}
}

// A row whose failure the database refuses to note keeps that of no other row from
// being noted, and is to be had again.
func TestAFailureThatCannotBeNotedUndoesNoOther(t *testing.T) {
	for name, newOutbox := range ways() {
		if strings.Contains(name, "sqlite") || name == "shared" {
			continue // SQLite adds no constraint to a table
		}
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			noted := "courier_outbox"
			if o.dialect == MySQL {
				noted = "courier_outbox_courier"
				execute(t, o.db, `ALTER TABLE courier_outbox_courier ADD CONSTRAINT violates CHECK (key2 NOT LIKE 'bad%')`)
			} else {
				execute(t, o.db, `ALTER TABLE courier_outbox ADD CONSTRAINT violates CHECK (attempts = 0 OR id NOT LIKE 'bad%')`)
			}
			write(t, o, named("a", "bad", "b", "c", "bad too", "d", "e")...)
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 10)
			l := letter("e", errors.New("poison"))
			l.Record = rows[6]
			require.NoError(t, s.DLQ().Send(t.Context(), l))
			err := s.Fail(t.Context(), failedWith(errors.New("boom"), rows[:5]...))
			require.ErrorContains(t, err, "noting the failure of 5 rows of courier_outbox (to be tried again)")
			require.ErrorContains(t, err, "violates")
			require.NoError(t, s.Mark(t.Context(), rows[5:]))
			require.Equal(t, 3, count(t, o.db, `SELECT count(*) FROM `+noted+` WHERE attempts = 1 AND last_error = 'boom'`))
			for _, id := range []string{"bad", "bad too"} {
				require.Zero(t, failures(t, o, id))
			}
			require.Equal(t, []string{"e.1"}, lettersOf(t, o))
			if o.lease == 0 {
				require.Equal(t, []string{"bad", "bad too"}, idsOf(take(t, s, 10)))
			}
		})
	}
}

// An error's text that the database's encoding lacks a character for is noted with
// that character escaped.
func TestAFailureWhoseTextTheDatabaseCannotHold(t *testing.T) {
	admin := openPostgres(t, pgtest.Schema(t))
	execute(t, admin, `CREATE DATABASE euc TEMPLATE template0 ENCODING 'EUC_JP' LC_COLLATE 'C' LC_CTYPE 'C'`)
	db, err := sql.Open("pgx", pgtest.Schema(t)+" dbname=euc search_path=public")
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, db.Close())
		_, err := admin.ExecContext(context.Background(), `DROP DATABASE euc`)
		require.NoError(t, err)
	})
	o := New(db, Postgres)
	require.NoError(t, o.Migrate(t.Context()))
	write(t, o, named("a", "b")...)
	s := o.Source()
	rows := take(t, s, 10)
	require.NoError(t, s.Fail(t.Context(), append(failedWith(errors.New("boom 🙂"), rows[0]), failedWith(errors.New("boom"), rows[1])...)))
	for id, want := range map[string]string{"a": `"boom \U0001f642"`, "b": "boom"} {
		var text string
		require.NoError(t, db.QueryRowContext(t.Context(), `SELECT last_error FROM courier_outbox WHERE id = $1`, id).Scan(&text))
		require.Equal(t, want, text)
	}
	l := courier.DeadLetter[Row]{Record: rows[0], Error: errors.New("🙂")}
	require.ErrorContains(t, o.DLQ().Send(t.Context(), l), "ENCODING 'UTF8'")
	require.NoError(t, o.Close())
}

// A fetch ends with the row by which its bytes reach the bound, has one row at least,
// and says that there is more.
func TestAFetchIsBoundedInBytes(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, WithFetchBytes(1000))
			var want []string
			for i, size := range []int{100, 100, 900, 2000, 5000, 300, 300, 300, 300, 10} {
				id := string(rune('a' + i))
				want = append(want, id)
				write(t, o, Message{ID: id, Topic: "t", Payload: make([]byte, size-10), Headers: map[string]string{"n": "vv"}})
			}
			if o.dialect != MySQL { // where a row that failed has its place
				execute(t, o.db, `UPDATE courier_outbox SET attempts = 1 WHERE id = 'e'`)
			}
			s := o.Source()
			s.RenewEvery()
			var got []string
			for len(got) < len(want) {
				rows := take(t, s, 6)
				require.NotEmpty(t, rows)
				require.Less(t, bytesOf(rows[:len(rows)-1]), int64(1000)+5000) // the failed row is where its number is
				require.Equal(t, len(rows) < 6 && bytesOf(rows) >= 1000, s.More())
				require.NoError(t, s.Mark(t.Context(), rows))
				got = append(got, idsOf(rows)...)
			}
			if o.strict || o.dialect == SQLite && o.lease == 0 {
				require.Equal(t, want, got)
			}
			require.ElementsMatch(t, want, got)
			require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
		})
	}
	require.ErrorContains(t, New(open(t, t.TempDir()+"/test.db"), SQLite, WithFetchBytes(0)).Migrate(t.Context()), "WithFetchBytes of 0 makes no sense")
}

// A backlog of large messages goes at once, whatever the interval.
func TestALargeBacklogDoesNotWaitForTheInterval(t *testing.T) {
	for name, newOutbox := range ways() {
		for kind, run := range map[string]func(o *Outbox, l *ledger) interface{ Start(context.Context) error }{
			"polling": func(o *Outbox, l *ledger) interface{ Start(context.Context) error } {
				return courier.NewPollingCoordinator(o.Source(), l.applier(0), courier.WithInterval(time.Hour))
			},
			"prefetch": func(o *Outbox, l *ledger) interface{ Start(context.Context) error } {
				return courier.NewPollingCoordinator(o.Source(), l.applier(0), courier.WithInterval(time.Hour), courier.WithPrefetch(2))
			},
			"stream": func(o *Outbox, l *ledger) interface{ Start(context.Context) error } {
				return courier.NewStreamingCoordinator(o.Stream(time.Hour), l.applier(0))
			},
		} {
			if name == "locked" && kind == "stream" {
				continue
			}
			t.Run(name+"/"+kind, func(t *testing.T) {
				o := newOutbox(t, WithFetchBytes(1000), WithClock(nil))
				var ids []string
				for i := range 20 {
					ids = append(ids, fmt.Sprintf("/%d", i))
					write(t, o, Message{ID: ids[i], Topic: "t", Payload: make([]byte, 400)})
				}
				l := newLedger()
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- run(o, l).Start(ctx) }()
				require.Eventually(t, func() bool { return l.count() >= 20 }, 60*time.Second, time.Millisecond)
				stop()
				require.NoError(t, <-done)
				require.ElementsMatch(t, ids, l.deliveries)
			})
		}
	}
}

// What a bound leaves out of a fetch is free for others.
func TestWhatABoundLeavesOut(t *testing.T) {
	for name, h := range holds {
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, append(h.opts, WithFetchBytes(10))...)
			for _, id := range []string{"a", "b", "c"} {
				write(t, o, Message{ID: id, Topic: "t", Payload: make([]byte, 10)})
			}
			s, other := o.Source(), o.Source()
			rows := take(t, s, 10)
			require.Equal(t, []string{"a"}, idsOf(rows))
			require.Equal(t, []string{"b"}, idsOf(take(t, other, 10)))
			require.NoError(t, s.Mark(t.Context(), rows))
			require.Len(t, take(t, s, 10), 1)
		})
	}
}

// A row that is marked between a fetch and the reading of its large payload is not
// handed out: the fetch does not have it.
func TestALargeRowThatIsGone(t *testing.T) {
	o := newPostgres(t)
	write(t, o, Message{ID: "a", Topic: "t", Payload: []byte("large")}, Message{ID: "b", Topic: "t"})
	rows := []Row{{Seq: 1, ID: "a", Headers: "5"}, {Seq: 2, ID: "gone", Headers: "5"}, {Seq: 3, ID: "gone", Headers: "5"}, {Seq: 4, ID: "small", Payload: []byte{}}}
	conn, err := o.db.Conn(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	require.NoError(t, send(t.Context(), conn, o.leftOut(&rows)))
	require.Equal(t, []string{"a", "small"}, idsOf(rows))
	require.Equal(t, "large", string(rows[0].Payload))
	require.Empty(t, rows[0].Headers)
}

// A Write of any size is split into statements that the server takes, whatever the
// sizes of its messages.
func TestAWriteIsSplitByItsBytes(t *testing.T) {
	o := New(open(t, t.TempDir()+"/test.db"), SQLite)
	const mega = 1 << 20
	for _, test := range []struct{ sizes, want []int }{
		{nil, nil},
		{[]int{1}, []int{1}},
		{[]int{20 * mega, 20 * mega, 20 * mega}, []int{1, 1, 1}},
		{[]int{2 * mega, 2 * mega, 2 * mega, 1}, []int{2, 2}},
		{[]int{1, 100 * mega, 1, 1}, []int{2, 2}},
		{make([]int, 250), []int{100, 100, 50}},
	} {
		shared := make([]byte, 100*mega)
		var args []any
		for _, size := range test.sizes {
			args = append(args, "", "t", "", shared[:max(size-1, 0)], "", "", int64(0), nil)
		}
		var got []int
		for chunk := range o.chunks(args) {
			got = append(got, len(chunk)/columns)
		}
		require.Equal(t, test.want, got)
	}
}

// Larger messages than any driver reads again are refused, and large ones pass.
func TestLargeMessages(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 70 MB")
	}
	inEach(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		big := make([]byte, maxMessage)
		require.ErrorContains(t, tryWrite(t, o, Message{ID: "a", Topic: "t", Payload: big}), "as message 0 (ID \"a\") has 268435458 bytes, and at most 268435456 can be read again")
		var messages []Message
		for range 5 {
			messages = append(messages, Message{Topic: "t", Payload: big[:14<<20]})
		}
		write(t, o, messages...)
		s := o.Source()
		rows := take(t, s, 10)
		require.Len(t, rows, 5, "by the fifth the bytes reach the bound")
		require.NoError(t, s.Mark(t.Context(), rows))
	})
}
