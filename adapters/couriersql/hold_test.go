package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

type hold struct {
	newOutbox maker
	opts      []Option
}

// holds are the ways to hold rows that several relays may use at once.
var holds = map[string]hold{
	"locked":          {newPostgres, nil},
	"postgres leased": {newPostgres, []Option{WithLease(time.Minute)}},
	"sqlite leased":   {newOutbox, []Option{WithLease(time.Minute)}},
	"mysql":           {newMySQL, []Option{WithLease(time.Minute)}},
}

// ways are all ways to hold rows.
func ways() map[string]func(t *testing.T, opts ...Option) *Outbox {
	all := map[string]func(t *testing.T, opts ...Option) *Outbox{
		"shared":       func(t *testing.T, opts ...Option) *Outbox { return newOutbox(t, opts...) },
		"elected":      func(t *testing.T, opts ...Option) *Outbox { return newPostgres(t, append(opts, WithStrictOrder())...) },
		"mysql strict": func(t *testing.T, opts ...Option) *Outbox { return newMySQL(t, append(opts, WithStrictOrder())...) },
	}
	for name, h := range holds {
		all[name] = func(t *testing.T, opts ...Option) *Outbox { return h.newOutbox(t, append(opts, h.opts...)...) }
	}
	return all
}

// inEachOfRows, waysOfRows and holdsOfRows leave MySQL out, in which failures, leases and the
// like are in tables of their own, no trigger undoes a statement without an error, crashes are
// not counted, and the outbox has its first version.
func inEachOfRows(t *testing.T, test func(t *testing.T, newOutbox maker)) {
	for name, newOutbox := range makers {
		if name != "mysql" {
			t.Run(name, func(t *testing.T) { test(t, newOutbox) })
		}
	}
}

func waysOfRows() map[string]func(t *testing.T, opts ...Option) *Outbox {
	all := ways()
	maps.DeleteFunc(all, func(name string, _ func(*testing.T, ...Option) *Outbox) bool { return strings.Contains(name, "mysql") })
	return all
}

func holdsOfRows() map[string]hold {
	all := maps.Clone(holds)
	delete(all, "mysql")
	return all
}

func take(t *testing.T, s *Source, limit int) []Row {
	t.Helper()
	rows, err := s.Fetch(t.Context(), limit)
	require.NoError(t, err)
	return rows
}

func failedWith(err error, rows ...Row) (list []courier.FailedRecord[Row]) {
	for _, row := range rows {
		list = append(list, courier.FailedRecord[Row]{Record: row, Error: err})
	}
	return list
}

func TestSeveralSourcesShareTheRows(t *testing.T) {
	for name, h := range holds {
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, h.opts...)
			write(t, o, named("a", "b", "c", "d", "e")...)
			first, second := o.Source(), o.Source()
			mine, others := take(t, first, 2), take(t, second, 2)
			require.Equal(t, []string{"a", "b"}, idsOf(mine))
			require.Equal(t, []string{"c", "d"}, idsOf(others))
			require.NoError(t, first.Mark(t.Context(), mine))
			require.Equal(t, []string{"e"}, idsOf(take(t, first, 2)))
			require.NoError(t, second.Mark(t.Context(), others))
			require.Empty(t, take(t, second, 2))
			require.Equal(t, 1, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
		})
	}
}

func TestABatchThatIsSettledInParts(t *testing.T) {
	for name, newOutbox := range ways() {
		for keep, opts := range keeping {
			t.Run(name+" "+keep, func(t *testing.T) {
				o := newOutbox(t, opts...)
				write(t, o, named("a", "b", "c", "d")...)
				s := o.Source()
				rows := take(t, s, 10)
				require.Len(t, rows, 4)
				require.NoError(t, s.Mark(t.Context(), rows[1:2]))
				require.NoError(t, s.Mark(t.Context(), rows[1:2]), "again")
				require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[2])))
				require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[2])), "again")
				require.NoError(t, s.Release(t.Context(), []Row{rows[0], rows[3]}, time.Hour))
				require.NoError(t, s.Release(t.Context(), []Row{rows[0], rows[3]}, time.Hour), "again")
				left := take(t, o.Source(), 10)
				if name == "elected" {
					require.Empty(t, left)
					left = take(t, s, 10)
				}
				require.Equal(t, []string{"a", "d"}, idsOf(left))
				require.Equal(t, 1, failures(t, o, "c"))
				require.Zero(t, left[0].Attempts)
			})
		}
	}
}

// What a mark leaves in the batch of a coordinator is not free until it is failed
// or released: else its failure could not be noted.
func TestWhatAMarkLeavesIsNotFree(t *testing.T) {
	for name, h := range holds {
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, h.opts...)
			write(t, o, named("a", "b", "c")...)
			s, other := o.Source(), o.Source()
			s.RenewEvery()
			other.RenewEvery()
			rows := take(t, s, 10)
			require.NoError(t, s.Mark(t.Context(), rows[:1]))
			require.Empty(t, take(t, other, 10))
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[1])))
			require.NoError(t, s.Release(t.Context(), rows[2:], 0))
			require.Equal(t, []string{"c"}, idsOf(take(t, other, 10)))
			require.Equal(t, 1, failures(t, o, "b"))
		})
	}
}

// A row that waits in hand behind a mark is kept from others for as long as it is
// renewed; one that others may have had is lost.
func TestWhatAMarkLeavesIsRenewed(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a", "b", "c", "d")...)
	s, other := o.Source(), o.Source()
	s.RenewEvery()
	other.RenewEvery()
	rows := take(t, s, 10)
	require.NoError(t, s.Mark(t.Context(), rows[:1]))
	l := s.holder.(*locked)
	for range 3 { // as if most of the time had passed, each time
		execute(t, o.db, `UPDATE courier_outbox SET available_at = now() + interval '1 second'`)
		for key, until := range l.left {
			l.left[key] = until.Add(time.Second - leftover)
		}
		require.NoError(t, s.Renew(t.Context(), rows[1:]))
	}
	require.Equal(t, 3, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE available_at > now() + interval '5 seconds'`))
	require.Empty(t, take(t, other, 10))
	require.NoError(t, s.Mark(t.Context(), rows[1:2]))
	makeDue(t, o)
	require.Equal(t, []string{"c", "d"}, idsOf(take(t, other, 10)))
	require.Equal(t, []int{0, 1}, lostIndices(s.Renew(t.Context(), rows[2:])))
	require.NoError(t, other.Release(t.Context(), rows[2:], 0))
	require.Equal(t, []int{0, 1}, lostIndices(s.Renew(t.Context(), rows[2:])), "they were free for a while")
}

func lostIndices(err error) (lost []int) {
	var list *courier.BatchError
	if errors.As(err, &list) {
		for _, f := range list.Failures {
			lost = append(lost, f.Index)
		}
	}
	return lost
}

// Batches of which every row waits in hand do not take a connection each.
func TestBatchesThatWaitAsAWhole(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a", "b", "c", "d", "e", "f")...)
	s, other := o.Source(), o.Source()
	s.RenewEvery()
	other.RenewEvery()
	var rows []Row
	for range 6 {
		rows = append(rows, take(t, s, 1)...)
	}
	require.Equal(t, []string{"a", "b", "c", "d", "e", "f"}, idsOf(rows))
	require.LessOrEqual(t, o.db.Stats().InUse, 3)
	require.Empty(t, take(t, other, 10))
	require.NoError(t, s.Renew(t.Context(), rows))
	require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[0])))
	require.Equal(t, 1, count(t, o.db, `SELECT attempts FROM courier_outbox WHERE id = 'a'`))
	require.NoError(t, s.Release(t.Context(), rows[1:2], 0))
	require.NoError(t, s.Mark(t.Context(), rows[2:]))
	require.Equal(t, []string{"b"}, idsOf(take(t, other, 10)))
}

// Waiting batches leave the relay a connection to settle their rows, also in the smallest
// pool that is allowed.
func TestBatchesThatWaitInASmallPool(t *testing.T) {
	for name, settle := range map[string]func(t *testing.T, s *Source, rows []Row) error{
		"mark":    func(t *testing.T, s *Source, rows []Row) error { return s.Mark(t.Context(), rows) },
		"release": func(t *testing.T, s *Source, rows []Row) error { return s.Release(t.Context(), rows, 0) },
		"renew":   func(t *testing.T, s *Source, rows []Row) error { return s.Renew(t.Context(), rows) },
		"park":    func(t *testing.T, s *Source, rows []Row) error { return s.DLQ().Send(t.Context(), letterFor(rows[0])) },
		"fail": func(t *testing.T, s *Source, rows []Row) error {
			return s.Fail(t.Context(), failedWith(errors.New("boom"), rows...))
		},
	} {
		for connections, opts := range [][]Option{1: nil, 2: {WithWakeUp()}, 3: {WithWakeUp()}} {
			if connections == 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s by %d", name, connections), func(t *testing.T) {
				o := newPostgres(t, append(opts, WithQueryTimeout(10*time.Second))...)
				write(t, o, named("a", "b", "c", "d")...)
				o.db.SetMaxOpenConns(connections)
				s := o.Source()
				s.RenewEvery()
				if o.wakeUp {
					awaken(t, s.Wake())
				}
				var rows []Row
				for range 4 {
					rows = append(rows, take(t, s, 1)...)
				}
				require.Equal(t, []string{"a", "b", "c", "d"}, idsOf(rows))
				if connections == 3 { // of fewer it says that they are too few
					_, err := s.DLQ().ParkedKeys(t.Context(), "", []string{"k"})
					require.NoError(t, err)
				}
				require.NoError(t, settle(t, s, rows[:1]))
				require.NoError(t, s.Renew(t.Context(), rows[1:]), "the others are still in hand")
				require.NoError(t, s.Mark(t.Context(), rows))
				require.NoError(t, o.Close()) // which ends the wake-up too
				require.Empty(t, pendingOf(t, o))
			})
		}
	}
}

// A row's delay counts from the call that sets it, and not from the begin of the
// transaction that has the row locked.
func TestAWaitBeginsWithItsCall(t *testing.T) {
	for name, opts := range postgresHolds {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t, opts...)
			write(t, o, named("a", "b", "c")...)
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 10)
			at := func(text string) (at time.Time) {
				t.Helper()
				require.NoError(t, o.db.QueryRowContext(t.Context(), text).Scan(&at))
				return at
			}
			const now = `SELECT clock_timestamp()`
			began := at(now)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[0])))
			if name == "locked" {
				marks := at(now)
				require.NoError(t, s.Mark(t.Context(), rows[1:2]))
				require.WithinRange(t, at(`SELECT available_at FROM courier_outbox WHERE id = 'c'`), marks.Add(leftover), at(now).Add(leftover))
			}
			require.WithinRange(t, at(`SELECT available_at FROM courier_outbox WHERE id = 'a'`), began.Add(o.backoff.initial), at(now).Add(o.backoff.initial))
		})
	}
}

// The failures of a batch may be told before, or without, a mark.
func TestABatchThatFails(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			write(t, o, named("a", "b")...)
			s := o.Source()
			rows := take(t, s, 10)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom \x00\xff"), rows[0])))
			require.NoError(t, s.Release(t.Context(), rows[1:], 0))
			require.Equal(t, []string{"b"}, idsOf(take(t, s, 10)))
			require.Equal(t, 1, failures(t, o, "a"))
			noted := "courier_outbox"
			if o.dialect == MySQL {
				noted = "courier_outbox_courier"
			}
			var text string
			require.NoError(t, o.db.QueryRowContext(t.Context(), `SELECT last_error FROM `+noted+` WHERE attempts > 0`).Scan(&text))
			require.Equal(t, "boom \uFFFD\uFFFD", text)
		})
	}
}

// makeDue makes rows due that wait.
func makeDue(t *testing.T, o *Outbox) { makeDueIn(t, o, "courier_outbox") }

func makeDueIn(t *testing.T, o *Outbox, table string) {
	t.Helper()
	if o.dialect == MySQL {
		execute(t, o.db, `UPDATE `+table+`_courier_batches SET until = 0`)
		table += "_courier"
	}
	execute(t, o.db, `UPDATE `+table+` SET available_at = $1`, o.grammar.time(0))
}

func TestARowThatFailedComesBackWithItsAttempts(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			write(t, o, named("a")...)
			s := o.Source()
			for i := range 3 {
				rows := take(t, s, 10)
				require.Len(t, rows, 1)
				require.Equal(t, i, rows[0].Attempts)
				require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)))
				require.Empty(t, take(t, s, 10), "it waits")
				makeDue(t, o)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{time.Second, 5 * time.Minute}
	for failures, want := range map[int]time.Duration{
		0: time.Second, 1: 2 * time.Second, 7: 128 * time.Second, 8: 256 * time.Second, 9: 5 * time.Minute, 1 << 40: 5 * time.Minute,
	} {
		require.Equal(t, want, b.delay(failures))
	}
	o := newOutbox(t, WithBackoff(time.Minute, time.Hour))
	write(t, o, named("a", "b")...)
	rows := take(t, o.Source(), 10)
	failed := failedWith(errors.New("boom"), rows...)
	failed[1].After = 2 * time.Hour
	require.NoError(t, o.Source().Fail(t.Context(), failed))
	at := func(id string) time.Time {
		return time.UnixMicro(int64(count(t, o.db, `SELECT available_at FROM courier_outbox WHERE id = '`+id+`'`))).UTC()
	}
	require.Equal(t, start.Add(time.Minute), at("a"))
	require.Equal(t, start.Add(2*time.Hour), at("b"))
}

// Where the order is strict, later rows of a key wait for one that failed.
func TestAKeyWaitsForItsRetry(t *testing.T) {
	for _, name := range []string{"shared", "elected", "mysql strict"} {
		t.Run(name, func(t *testing.T) {
			o := ways()[name](t)
			write(t, o, Message{ID: "k1", Topic: "t", Key: "k"}, Message{ID: "none", Topic: "t"},
				Message{ID: "k2", Topic: "t", Key: "k"}, Message{ID: "l1", Topic: "t", Key: "l"}, Message{ID: "none2", Topic: "t"})
			s := o.Source()
			rows := take(t, s, 2)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)))
			require.Equal(t, []string{"l1", "none2"}, idsOf(take(t, s, 10)))
			makeDue(t, o)
			require.Equal(t, []string{"k1", "none", "k2", "l1", "none2"}, idsOf(take(t, s, 10)))
		})
	}
}

// A stale owner can neither mark nor fail nor renew nor release.
func TestALeaseThatWasTaken(t *testing.T) {
	for name, h := range holds {
		if h.opts == nil {
			continue
		}
		for keep, opts := range keeping {
			t.Run(name+" "+keep, func(t *testing.T) {
				o := h.newOutbox(t, append(append(opts, WithMaxCrashes(-1)), h.opts...)...)
				write(t, o, named("a", "b")...)
				stale, owner := o.Source(), o.Source()
				old := take(t, stale, 10)
				makeDue(t, o) // the lease runs out
				rows := take(t, owner, 1)
				require.Equal(t, []string{"a"}, idsOf(rows))

				require.NoError(t, stale.Release(t.Context(), old[:1], 0))
				require.NoError(t, stale.Fail(t.Context(), failedWith(errors.New("boom"), old[0])))
				err := stale.Renew(t.Context(), old)
				var list *courier.BatchError
				require.ErrorAs(t, err, &list)
				require.Len(t, list.Failures, 1)
				lost := 0
				if o.dialect == MySQL { // where a batch has one lease, and what is settled has none
					lost = 1
				}
				require.Equal(t, lost, list.Failures[0].Index)
				require.ErrorIs(t, err, ErrLeaseLost)
				require.NoError(t, stale.Mark(t.Context(), old), "what it has is marked")
				require.Zero(t, failures(t, o, "a"))
				if o.dialect == MySQL {
					require.Equal(t, []string{"a", "b"}, pendingOf(t, o))
					require.Equal(t, []string{"b"}, idsOf(take(t, stale, 10)))
					require.NoError(t, stale.Mark(t.Context(), old[1:]))
				}
				require.Equal(t, []string{"a"}, pendingOf(t, o))
				require.Empty(t, take(t, stale, 10))

				require.NoError(t, owner.Renew(t.Context(), rows))
				require.NoError(t, owner.Mark(t.Context(), rows))
				require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE processed_at IS NULL`))
			})
		}
	}
}

// Another relay may have locked a leased row for a moment, and not taken it: its
// fetch saw the row as it was before, and looked again. What became of the row is
// noted after that moment.
func TestALeasedRowThatAnotherLooksAt(t *testing.T) {
	for name, settle := range map[string]func(s *Source, rows []Row) error{
		"fail":    func(s *Source, rows []Row) error { return s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)) },
		"release": func(s *Source, rows []Row) error { return s.Release(t.Context(), rows, 0) },
		"mark":    func(s *Source, rows []Row) error { return s.Mark(t.Context(), rows) },
		"renew":   func(s *Source, rows []Row) error { return s.Renew(t.Context(), rows) },
	} {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t, WithLease(time.Minute))
			write(t, o, named("a")...)
			s := o.Source()
			rows := take(t, s, 1)
			const state = `SELECT coalesce(string_agg(concat(attempts, owner, available_at), ''), 'gone') FROM courier_outbox`
			var before, after string
			require.NoError(t, o.db.QueryRowContext(t.Context(), state).Scan(&before))

			other, err := o.db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			_, err = other.ExecContext(t.Context(), `SELECT FROM courier_outbox FOR UPDATE`)
			require.NoError(t, err)
			settled := make(chan error, 1)
			go func() { settled <- settle(s, rows) }()
			require.Eventually(t, func() bool {
				return len(settled) > 0 || count(t, o.db, `SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('tuple', 'transactionid')`) > 0
			}, 10*time.Second, time.Millisecond)
			require.NoError(t, other.Rollback())
			require.NoError(t, event(t, settled))
			require.NoError(t, o.db.QueryRowContext(t.Context(), state).Scan(&after))
			require.NotEqual(t, before, after)
		})
	}
}

func TestALeaseIsRenewed(t *testing.T) {
	for name, h := range holds {
		if h.opts == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, h.opts...)
			write(t, o, named("a")...)
			s := o.Source()
			require.Equal(t, 20*time.Second, s.RenewEvery())
			rows := take(t, s, 10)
			makeDue(t, o)
			require.NoError(t, s.Renew(t.Context(), rows))
			require.Empty(t, take(t, o.Source(), 10))
		})
	}
}

// A process that dies leaves its rows to the others, by its locks at once.
func TestLockedRowsOfADeadRelay(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a", "b")...)
	s := o.Source()
	rows := take(t, s, 1)
	require.NoError(t, s.Renew(t.Context(), rows))
	require.Equal(t, []string{"b"}, idsOf(fetch(t, o, 10)))
	cut(t, s)
	other := o.Source()
	require.Eventually(t, func() bool {
		got, err := other.Fetch(t.Context(), 10)
		require.NoError(t, err)
		return len(got) == 2
	}, 10*time.Second, 5*time.Millisecond)
	require.ErrorIs(t, s.Renew(t.Context(), rows), ErrLeaseLost)

	// It lives on, and what it delivered is marked once nobody else has it.
	require.NoError(t, s.Mark(t.Context(), rows))
	require.Equal(t, 2, count(t, o.db, `SELECT count(*) FROM courier_outbox`), "the other one has it")
	require.NoError(t, o.Close())
	require.NoError(t, s.Mark(t.Context(), rows))
	require.Equal(t, []string{"b"}, idsOf(fetch(t, o, 10)))
}

// cut ends the connection that holds the rows of a source, as an administrator
// or a firewall would.
func cut(t *testing.T, s *Source) {
	t.Helper()
	var pid int
	var conn *sql.Conn
	switch h := s.holder.(type) {
	case *locked:
		for _, b := range h.batches {
			conn = b.conn
		}
	case *elected:
		conn = h.conn
	}
	require.NoError(t, conn.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid))
	execute(t, s.outbox.db, `SELECT pg_terminate_backend($1)`, pid)
}

// A coordinator leaves alone what it is told is lost: neither a mark nor a release
// follows. A relay that has the lock again hands it out again, as another would.
func TestWhatIsLostComesAgain(t *testing.T) {
	for _, name := range []string{"locked", "elected"} {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t, postgresHolds[name]...)
			write(t, o, named("a", "b", "c")...)
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 2)
			cut(t, s)
			require.Eventually(t, func() bool { return errors.Is(s.Renew(t.Context(), rows), ErrLeaseLost) }, 10*time.Second, time.Millisecond)
			require.NoError(t, s.Mark(t.Context(), rows[:1]), "a was begun, and was delivered")
			var again []Row
			require.Eventually(t, func() bool {
				again = append(again, take(t, s, 10)...)
				return len(again) >= 2
			}, 10*time.Second, time.Millisecond)
			require.Equal(t, []string{"b", "c"}, idsOf(again))
			require.Empty(t, take(t, s, 10), "they are in hand")
		})
	}
}

func TestAMarkWhoseConnectionIsCut(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a", "b")...)
	s := o.Source()
	rows := take(t, s, 10)
	cut(t, s)
	require.Eventually(t, func() bool { return s.Mark(t.Context(), rows) == nil }, 10*time.Second, time.Millisecond)
	require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
}

func TestOneIsElected(t *testing.T) {
	o := newPostgres(t, WithStrictOrder())
	write(t, o, named("a", "b", "c")...)
	first, second := o.Source(), o.Source()
	rows := take(t, first, 2)
	require.Equal(t, []string{"a", "b"}, idsOf(rows))
	require.Empty(t, take(t, second, 2), "it stands by")
	require.NoError(t, first.Renew(t.Context(), rows))
	cut(t, first)
	require.Eventually(t, func() bool { return len(take(t, second, 10)) == 3 }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, first.Renew(t.Context(), rows), ErrLeaseLost)
	require.Empty(t, take(t, first, 10))
	require.NoError(t, first.Mark(t.Context(), rows), "they were delivered")
	require.Equal(t, []string{"c"}, idsOf(take(t, second, 10)))

	require.NoError(t, o.Close()) // hands over
	require.Equal(t, []string{"c"}, idsOf(take(t, first, 10)))
}

func TestElectionsOfTwoOutboxes(t *testing.T) {
	o := newPostgres(t, WithStrictOrder())
	other := outboxIn(t, o.db, WithStrictOrder(), WithTable("events"))
	write(t, o, named("a")...)
	write(t, other, named("b")...)
	require.Len(t, take(t, o.Source(), 1), 1)
	require.Len(t, take(t, other.Source(), 1), 1)
}

func TestOptionsOfHoldsThatAreRefused(t *testing.T) {
	for want, opts := range map[string][]Option{
		"WithLease of 0s":              {WithLease(0)},
		"WithStrictOrder does not go":  {WithLease(time.Minute), WithStrictOrder()},
		"WithBackoff of 0s to 1s":      {WithBackoff(0, time.Second)},
		"WithBackoff of 1m0s to 1s":    {WithBackoff(time.Minute, time.Second)},
		"WithStrictOrder is for Postg": {WithStrictOrder()},
	} {
		dialect := Postgres
		if want == "WithStrictOrder is for Postg" {
			dialect = SQLite
		}
		err := New(new(sql.DB), dialect, opts...).Source().Validate()
		require.ErrorIs(t, err, courier.ErrConfig)
		require.ErrorContains(t, err, want)
	}
}

// A coordinator that stops gives back what it has.
func TestACoordinatorThatStopsFreesItsRows(t *testing.T) {
	for name, h := range holds {
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, h.opts...)
			write(t, o, named("a", "b", "c")...)
			ctx, stop := context.WithCancel(t.Context())
			applier := courier.ProcessFunc(func(context.Context, Row) error { stop(); return nil })
			require.NoError(t, courier.NewPollingCoordinator(o.Source(), applier).Start(ctx))
			require.Equal(t, []string{"b", "c"}, idsOf(take(t, o.Source(), 10)))
		})
	}
}

// A coordinator may fetch ahead: what is in its hand is not handed out again,
// until it is settled, or the next run begins.
func TestFetchingAhead(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			write(t, o, named("a", "b", "c", "d", "e", "f")...)
			s := o.Source()
			s.RenewEvery()
			first, second := take(t, s, 2), take(t, s, 2)
			require.Equal(t, []string{"a", "b"}, idsOf(first))
			require.Equal(t, []string{"c", "d"}, idsOf(second))
			require.NoError(t, s.Renew(t.Context(), append(slices.Clone(first), second...)))
			require.NoError(t, s.Mark(t.Context(), first[1:]))
			require.NoError(t, s.Release(t.Context(), first[:1], 0))
			require.Equal(t, []string{"a", "e", "f"}, idsOf(take(t, s, 10)))
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), second[0])))
			require.NoError(t, s.Mark(t.Context(), second[1:]))
			require.Empty(t, take(t, s, 10))
			if o.lease == 0 {
				s.RenewEvery()
				require.Equal(t, []string{"a", "e", "f"}, idsOf(take(t, s, 10)))
			}
		})
	}
}

// Rows whose numbers lie between those in hand, and are not in hand themselves, come
// before the later ones of their key.
func TestFetchingAheadKeepsTheOrderOfAKey(t *testing.T) {
	for _, name := range []string{"elected", "sqlite"} {
		t.Run(name, func(t *testing.T) {
			var o *Outbox
			if name == "elected" {
				o = newPostgres(t, WithStrictOrder())
			} else {
				o = newOutbox(t)
			}
			s := o.Source()
			s.RenewEvery()
			keyed := func(id string) Message { return Message{ID: id, Topic: "t", Key: "k"} }
			write(t, o, Message{ID: "a", Topic: "t"}, keyed("failed"), Message{ID: "b", Topic: "t"})
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), take(t, s, 3)[1])))
			write(t, o, keyed("later"))
			require.Empty(t, take(t, s, 10), "it waits for the one that failed")
			makeDue(t, o)
			require.Equal(t, []string{"failed", "later"}, idsOf(take(t, s, 10)))
			if name == "sqlite" {
				return // where one writes at a time
			}
			tx, err := o.db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			require.NoError(t, o.Write(t.Context(), tx, keyed("slow")))
			write(t, o, Message{ID: "c", Topic: "t"})
			require.Equal(t, []string{"c"}, idsOf(take(t, s, 10)))
			require.NoError(t, tx.Commit())
			write(t, o, keyed("next"))
			require.Equal(t, []string{"slow", "next"}, idsOf(take(t, s, 10)))
		})
	}
}

func TestCoordinatorsThatFetchAhead(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t, WithClock(nil), WithBackoff(time.Millisecond, time.Millisecond))
			var ids []string
			for i := range 500 {
				ids = append(ids, fmt.Sprintf("k/%d", i))
			}
			write(t, o, named(ids...)...)
			l := newLedger()
			for i := range 10 {
				l.failures[fmt.Sprintf("k/%d", 50*i)] = 2
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				done <- courier.NewPollingCoordinator(o.Source(), l.applier(0), courier.WithInterval(time.Millisecond),
					courier.WithBatchSize(20), courier.WithPrefetch(2), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(ctx)
			}()
			require.Eventually(t, func() bool { return l.count() >= 500 }, 60*time.Second, time.Millisecond)
			stop()
			require.NoError(t, <-done)
			require.ElementsMatch(t, ids, l.deliveries)
		})
	}
}
