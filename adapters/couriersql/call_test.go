package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/courierttest/network"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// through returns a connection string that leads through a network.
func through(t *testing.T, dsn string) (string, *network.Network) {
	t.Helper()
	way, address := serverOf(t, dsn)
	folder := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(folder, ".s.PGSQL.5432"))
	require.NoError(t, err)
	return dsn + " host=" + folder, network.Between(t, listener, func() (net.Conn, error) { return net.Dial(way, address) })
}

// silence has the connections that there are swallow everything from now on, as
// those do that a firewall has forgotten. New ones work.
func silence(n *network.Network) {
	n.Swallow(network.BothWays)
	n.Swallow(0)
}

// postgresHolds are the ways to hold rows in PostgreSQL.
var postgresHolds = map[string][]Option{"locked": nil, "leased": {WithLease(time.Minute)}, "elected": {WithStrictOrder()}}

// shortTimeout is for calls that are to fail. A test sets it once those are done that
// are to succeed: on a busy machine a healthy call may take longer.
const shortTimeout = 300 * time.Millisecond

// No call waits without an end for a connection that died without a sign, says so,
// and leaves it in no pool: a later one succeeds.
func TestNoCallWaitsForADeadConnection(t *testing.T) {
	type call func(ctx context.Context, s *Source, rows []Row) error
	calls := map[string]call{
		"fetch": func(ctx context.Context, s *Source, _ []Row) error { _, err := s.Fetch(ctx, 10); return err },
		"mark":  func(ctx context.Context, s *Source, rows []Row) error { return s.Mark(ctx, rows) },
		"fail": func(ctx context.Context, s *Source, rows []Row) error {
			return s.Fail(ctx, failedWith(errors.New("boom"), rows...))
		},
		"release": func(ctx context.Context, s *Source, rows []Row) error { return s.Release(ctx, rows, 0) },
		"renew":   func(ctx context.Context, s *Source, rows []Row) error { return s.Renew(ctx, rows) },
		"park": func(ctx context.Context, s *Source, rows []Row) error {
			return s.DLQ().Send(ctx, courier.DeadLetter[Row]{Record: rows[0], Error: errors.New("boom"), FailedAt: start})
		},
	}
	ofAll := map[string]call{ // however rows are held
		"lag":     func(ctx context.Context, s *Source, _ []Row) error { _, err := s.Lag(ctx); return err },
		"pending": func(ctx context.Context, s *Source, _ []Row) error { _, err := s.outbox.Pending(ctx); return err },
		"status":  func(ctx context.Context, s *Source, _ []Row) error { _, err := s.outbox.Status(ctx); return err },
		"prune":   func(ctx context.Context, s *Source, _ []Row) error { _, err := s.outbox.Prune(ctx, start); return err },
		"list": func(ctx context.Context, s *Source, _ []Row) error {
			_, err := s.outbox.DLQ().List(ctx, "", 10)
			return err
		},
		"keys": func(ctx context.Context, s *Source, _ []Row) error {
			_, err := s.outbox.DLQ().ParkedKeys(ctx, "", []string{"k"})
			return err
		},
		"requeue": func(ctx context.Context, s *Source, _ []Row) error {
			_, err := s.outbox.Requeue(ctx, idAt("1.1"))
			return err
		},
		"remove": func(ctx context.Context, s *Source, _ []Row) error { return s.outbox.DLQ().Delete(ctx, idAt("1.1")) },
		"update": func(ctx context.Context, s *Source, _ []Row) error {
			return s.outbox.DLQ().Update(ctx, courier.DeadLetter[Row]{ID: idAt("1.1")})
		},
	}
	for name, opts := range postgresHolds {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			schema := pgtest.Schema(t)
			direct := openPostgres(t, schema)
			dsn, n := through(t, schema)
			db := openPostgres(t, dsn)
			outboxIn(t, db, opts...)
			calls := calls
			if name == "locked" {
				calls = maps.Clone(calls)
				maps.Copy(calls, ofAll)
			}
			for what, call := range calls {
				t.Run(what, func(t *testing.T) {
					t.Cleanup(func() {
						_, err := direct.ExecContext(context.Background(), `TRUNCATE courier_outbox, courier_outbox_dlq`)
						require.NoError(t, err)
					})
					o := New(db, Postgres, append([]Option{WithClock(&fixed{start})}, opts...)...)
					t.Cleanup(func() {
						n.Cut() // else pgx takes seconds to close a connection that is dead
						require.NoError(t, o.Close())
					})
					write(t, New(direct, Postgres, WithClock(&fixed{start})), named("a", "b")...)
					s := o.Source()
					s.RenewEvery()
					rows := take(t, s, 1)
					first, err := db.Conn(t.Context()) // the pool is to have some that are idle
					require.NoError(t, err)
					require.NoError(t, db.PingContext(t.Context()))
					require.NoError(t, first.Close())
					o.timeout = shortTimeout
					silence(n)
					for try := 1; ; try++ { // the pool has two idle ones, and one is the batch's
						ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
						err := call(ctx, s, rows)
						require.NoError(t, ctx.Err(), "it waits without end")
						cancel()
						if err == nil || errors.Is(err, ErrLeaseLost) {
							require.True(t, try > 1 || name == "elected" && what == "release", "nothing was dead")
							return
						}
						require.ErrorIs(t, err, ErrQueryTimeout)
						require.ErrorContains(t, err, "the database did not answer in time: not within 300ms (WithQueryTimeout, ")
						require.LessOrEqual(t, try, 20, "a dead connection went back to the pool")
					}
				})
			}
		})
	}
}

// A relay whose connections have all died tells, and goes on over new ones.
func TestARelayWhoseConnectionsDie(t *testing.T) {
	for name, opts := range postgresHolds {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			dsn, n := through(t, pgtest.Schema(t))
			o := outboxIn(t, openPostgres(t, dsn), append([]Option{WithClock(nil)}, opts...)...)
			o.timeout = 2 * shortTimeout
			l := newLedger()
			s := o.Source()
			if e := s.waker.elected; e != nil {
				e.silence = 3 * time.Second
			}
			var relay *courier.PollingCoordinator[Row]
			tells := make(chan struct{}, 1)
			note := func(err error) {
				if errors.Is(err, ErrQueryTimeout) && errors.Is(relay.Ready(), ErrQueryTimeout) {
					select {
					case tells <- struct{}{}:
					default:
					}
				}
			}
			relay = courier.NewPollingCoordinator(s, l.applier(0), courier.WithInterval(time.Millisecond),
				courier.WithLogger(slog.New(slog.DiscardHandler)), courier.WithObserver(courier.Observer{
					Fetched: func(_ context.Context, e courier.FetchEvent) { note(e.Err) },
					Marked:  func(_ context.Context, e courier.MarkEvent) { note(e.Err) },
				}))
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- relay.Start(ctx) }()
			defer func() { stop(); require.NoError(t, <-done) }()
			write(t, o, named("a")...)
			require.Eventually(t, func() bool { return l.count() == 1 && relay.Ready() == nil }, 20*time.Second, time.Millisecond)
			for len(tells) > 0 { // of a healthy call that took too long on a busy machine
				<-tells
			}
			silence(n)
			event(t, tells)
			require.Eventually(t, func() bool { return relay.Ready() == nil }, 20*time.Second, time.Millisecond)
			write(t, o, named("b")...)
			require.Eventually(t, func() bool { return l.count() == 2 }, 20*time.Second, time.Millisecond)
		})
	}
}

// The connection that listens has died, and so have the idle ones of the pool that
// it would take next.
func TestAListenerWhoseConnectionsDie(t *testing.T) {
	dsn, n := through(t, pgtest.Schema(t))
	db := openPostgres(t, dsn)
	var log logged
	o := outboxIn(t, db, WithWakeUp(), WithTable("wake_silent"), log.option())
	o.timeout = 2 * shortTimeout
	s := o.Source()
	s.waker.probe = shortTimeout
	wake := s.Wake()
	awaken(t, wake) // it listens
	require.NoError(t, db.PingContext(t.Context()))
	silence(n)
	require.Eventually(t, func() bool { // it listens again
		ctx, cancel := context.WithTimeout(t.Context(), shortTimeout)
		defer cancel()
		_, _ = db.ExecContext(ctx, `SELECT pg_notify('wake_silent', '')`)
		return len(wake) == 1
	}, 30*time.Second, 5*time.Millisecond)
	require.Contains(t, log.String(), "the connection that listens is dead")
}

func TestAQueryTimeoutThatIsRefused(t *testing.T) {
	for _, d := range []time.Duration{0, -1} {
		err := New(new(sql.DB), Postgres, WithQueryTimeout(d)).Source().Validate()
		require.ErrorIs(t, err, courier.ErrConfig)
		require.ErrorContains(t, err, "WithQueryTimeout")
	}
}

// A connection that leads to a standby, or is as broken, is not handed to every call:
// here one does, and any number of good ones could be opened.
func TestABrokenConnectionIsNotUsedAgain(t *testing.T) {
	for name, opts := range postgresHolds {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t, opts...)
			db := o.db
			for what, call := range map[string]func(s *Source, rows []Row) error{
				"mark": func(s *Source, rows []Row) error { return s.Mark(t.Context(), rows) },
				"fail": func(s *Source, rows []Row) error { return s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)) },
				"park": func(s *Source, rows []Row) error {
					return s.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: rows[0], Error: errors.New("boom"), FailedAt: start})
				},
				"send": func(s *Source, rows []Row) error {
					return o.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: rows[0], Error: errors.New("boom"), FailedAt: start})
				},
			} {
				if name == "elected" && what == "park" {
					continue // on its own session, which is no standby's
				}
				write(t, o, named(what)...)
				s := o.Source()
				rows := take(t, s, 10)
				require.Len(t, rows, 1)
				if name == "locked" { // the pool's connections are for what comes late
					cut(t, s)
					_ = s.Renew(t.Context(), rows)
				}
				open := 1
				if name == "elected" {
					open = 2
				}
				db.SetMaxOpenConns(open)
				db.SetMaxIdleConns(1)
				execute(t, db, `SET default_transaction_read_only = on`)
				db.SetMaxOpenConns(0)
				require.ErrorContains(t, call(s, rows), "this is a read-only server, a standby perhaps", what)
				require.Eventually(t, func() bool { return call(s, rows) == nil }, 10*time.Second, time.Millisecond, what)
				require.NoError(t, o.Close())
				execute(t, db, `TRUNCATE courier_outbox`)
			}
		})
	}
}

func TestErrorsOfAConnection(t *testing.T) {
	for code, want := range map[string]bool{
		"25006": true, "57P01": true, "57P02": true, "57P03": true, "57P05": true, "08006": true, "08P01": true, "26000": true, "42P05": true, "25P03": true,
		"23505": false, "40001": false, "42501": false, "53100": false, "57014": false, "": false,
	} {
		require.Equal(t, want, postgresBroken(&pgconn.PgError{Code: code}), code)
	}
	require.False(t, postgresBroken(io.EOF))
}

// The connection parameters that the README recommends are such.
func TestTheRecommendedParameters(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, text, found := strings.Cut(string(readme), "postgres://relay@db1,db2/orders?")
	require.True(t, found)
	text, _, _ = strings.Cut(text, "```")
	dsn := pgtest.Schema(t)
	for parameter := range strings.SplitSeq(text, "&") {
		dsn += " " + strings.TrimSpace(parameter)
	}
	db := openPostgres(t, dsn)
	require.NoError(t, db.PingContext(t.Context()))
	require.Equal(t, 1, count(t, db, `SELECT count(*) FROM pg_settings WHERE name = 'tcp_user_timeout' AND source = 'client'`))
	require.ErrorContains(t, openPostgres(t, dsn+" default_transaction_read_only=on").PingContext(t.Context()), "read only")
}

func TestACallThatWaitsForThePool(t *testing.T) {
	o := newPostgres(t)
	o.db.SetMaxOpenConns(1)
	o.timeout = shortTimeout
	conn, err := o.db.Conn(t.Context())
	require.NoError(t, err)
	_, err = o.Pending(t.Context())
	require.ErrorIs(t, err, ErrQueryTimeout)
	require.ErrorContains(t, err, "The pool is in use to its limit of 1 connection (SetMaxOpenConns)")
	require.NoError(t, conn.Close())
	o.timeout = DefaultQueryTimeout
	_, err = o.Pending(t.Context())
	require.NoError(t, err)

	// A context that ends earlier is no fault of the database.
	conn, err = o.db.Conn(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = o.Pending(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrQueryTimeout)
}

// A relay whose host is gone leaves its locks to a server that does not learn of it.
// Who renews has the server end its transactions after a silence, and raises no limit
// of the administrator's; functions of the user's own do not renew.
func TestLockedRowsOfARelayThatIsSilent(t *testing.T) {
	for setting, want := range map[string]map[bool]string{
		"0": {false: "0", true: "1min"}, "90s": {false: "90s", true: "1min"}, "7s": {false: "7s", true: "7s"},
	} {
		o := outboxIn(t, openPostgres(t, pgtest.Schema(t)+" idle_in_transaction_session_timeout="+setting))
		write(t, o, named("a")...)
		for _, renews := range []bool{false, true} {
			s := o.Source()
			if renews {
				s.RenewEvery()
			}
			require.Len(t, take(t, s, 10), 1)
			for _, b := range s.holder.(*locked).batches {
				var got string
				require.NoError(t, b.conn.QueryRowContext(t.Context(), `SHOW idle_in_transaction_session_timeout`).Scan(&got))
				require.Equal(t, want[renews], got, setting)
			}
			require.NoError(t, o.Close())
		}
	}
}
