package couriersql

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"
)

// transactionPooler returns a connection string to a pooler in transaction mode with
// a number of sessions, each of which is whoever's turn it is between transactions.
func transactionPooler(t *testing.T, dsn string, sessions int) string {
	t.Helper()
	folder := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(folder, ".s.PGSQL.5432"))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	free := make(chan *pgconn.HijackedConn, sessions)
	session := func() {
		conn, err := pgconn.Connect(context.Background(), dsn)
		if err != nil {
			t.Error(err)
			return
		}
		hijacked, err := conn.Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		free <- hijacked
	}
	for range sessions {
		session()
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		stop()
		require.NoError(t, listener.Close())
		wg.Wait()
		for range sessions {
			require.NoError(t, (<-free).Conn.Close())
		}
	})
	serve := func(client net.Conn) {
		wg.Go(func() { <-ctx.Done(); _ = client.Close() })
		var mine *pgconn.HijackedConn
		defer func() {
			if mine != nil { // in a transaction, which ends with its session
				_ = mine.Conn.Close()
				session()
			}
		}()
		backend := pgproto3.NewBackend(client, client)
		if message, err := backend.ReceiveStartupMessage(); err != nil {
			return
		} else if _, ok := message.(*pgproto3.StartupMessage); !ok { // to cancel
			_ = client.Close()
			return
		}
		backend.Send(&pgproto3.AuthenticationOk{})
		backend.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"})
		backend.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
		backend.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: make([]byte, 4)})
		backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		for backend.Flush() == nil {
			for status := byte(0); status == 0; {
				message, err := backend.Receive()
				if _, ends := message.(*pgproto3.Terminate); err != nil || ends {
					return
				}
				if mine == nil {
					select {
					case mine = <-free:
					case <-ctx.Done():
						return
					}
				}
				mine.Frontend.Send(message)
				switch message.(type) {
				case *pgproto3.Query, *pgproto3.Sync:
				default:
					continue
				}
				if mine.Frontend.Flush() != nil {
					return
				}
				for status == 0 {
					answer, err := mine.Frontend.Receive()
					if err != nil {
						return
					}
					backend.Send(answer)
					if ready, ok := answer.(*pgproto3.ReadyForQuery); ok {
						status = ready.TxStatus
					}
				}
				if status == 'I' {
					free <- mine
					mine = nil
				}
			}
		}
	}
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(client) })
		}
	})
	return dsn + " host=" + folder + " default_query_exec_mode=exec"
}

// Behind a pooler in transaction mode there is one elected relay too, another takes
// over from it, and no session of the pooler is left with what a relay did to it.
func TestOneIsElectedBehindAPooler(t *testing.T) {
	for _, sessions := range []int{2, 5} {
		t.Run(fmt.Sprint(sessions), func(t *testing.T) {
			schema := pgtest.Schema(t)
			direct := outboxIn(t, openPostgres(t, schema), WithClock(nil))
			dsn := transactionPooler(t, schema, sessions)
			l := newLedger()
			var outboxes []*Outbox
			var stops []func()
			for i := range 3 {
				o := New(openPostgres(t, dsn), Postgres, WithStrictOrder(), WithBackoff(time.Millisecond, time.Millisecond))
				outboxes = append(outboxes, o)
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error, 1)
				s := o.Source()
				parking := courier.NewDLQApplier(courier.ProcessFunc(func(ctx context.Context, r Row) error {
					if r.Topic == "poison" {
						return courier.Permanent(fmt.Errorf("poison"))
					}
					return l.applier(i).Apply(ctx, r)
				}), courier.DLQ[Row](s.DLQ()), courier.DLQPolicy[Row]{})
				go func() {
					done <- courier.NewPollingCoordinator(s, parking, courier.WithInterval(5*time.Millisecond),
						courier.WithBatchSize(10), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(ctx)
				}()
				var once sync.Once
				stops = append(stops, func() {
					once.Do(func() {
						stop()
						require.NoError(t, <-done)
						require.NoError(t, o.Close())
					})
				})
				t.Cleanup(stops[i])
			}
			want := 0
			for parked := range outboxes {
				for range 20 {
					want++
					write(t, direct, Message{ID: fmt.Sprint("k/", want), Topic: "t"})
				}
				write(t, direct, Message{Topic: "poison"})
				require.Eventually(t, func() bool {
					return l.count() >= want && count(t, direct.db, `SELECT count(*) FROM courier_outbox_dlq`) > parked
				}, 30*time.Second, 5*time.Millisecond)
				l.mu.Lock()
				require.Len(t, l.by, 1, "they deliver side by side")
				leader := 0
				for leader = range l.by {
				}
				clear(l.by)
				l.mu.Unlock()
				stops[leader]()
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			require.Len(t, l.deliveries, want, "some twice")
			require.Equal(t, len(outboxes), count(t, direct.db, `SELECT count(*) FROM courier_outbox_dlq`))
			require.Eventually(t, func() bool { // the server notices a moment later
				return count(t, direct.db, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'`) == 0
			}, 10*time.Second, time.Millisecond)
			pooled := openPostgres(t, dsn)
			for range 2 * sessions {
				var scans string
				require.NoError(t, pooled.QueryRowContext(t.Context(), `SHOW enable_seqscan`).Scan(&scans))
				require.Equal(t, "on", scans)
			}
		})
	}
}

// A relay that leads has a transaction open all the time, which holds nothing back,
// sees what was committed since and what is due since, and outlives the time that an
// administrator gives to transactions.
func TestTheTransactionOfALeader(t *testing.T) {
	dsn := pgtest.Schema(t)
	opts := []Option{WithStrictOrder(), WithClock(nil), WithBackoff(100*time.Millisecond, 100*time.Millisecond)}
	plain := outboxIn(t, openPostgres(t, dsn), opts...)
	db := plain.db
	write(t, plain, named("a", "b")...)
	o := New(openPostgres(t, dsn+" idle_in_transaction_session_timeout=300 default_transaction_isolation=serializable"), Postgres, opts...)
	t.Cleanup(func() { require.NoError(t, o.Close()) })
	s := o.Source()
	var rows []Row
	require.Eventually(t, func() bool { // on a busy machine it may take longer to be elected than the time that a transaction may idle
		rows, _ = s.Fetch(t.Context(), 10)
		return len(rows) == 2
	}, 20*time.Second, time.Millisecond)
	pid := func() (pid int) {
		require.NoError(t, s.waker.elected.conn.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid))
		_, err := s.waker.elected.conn.ExecContext(t.Context(), backToLeading)
		require.NoError(t, err)
		return pid
	}
	leader := pid()
	idle := fmt.Sprintf(`SELECT count(*) FROM pg_stat_activity WHERE pid = %d AND state = 'idle in transaction'`, leader)
	require.Equal(t, 1, count(t, db, idle+` AND backend_xmin IS NULL AND backend_xid IS NULL`))
	require.Zero(t, count(t, db, fmt.Sprintf(`SELECT count(*) FROM pg_locks JOIN pg_class c ON c.oid = relation WHERE pid = %d AND relname LIKE 'courier%%'`, leader)))
	require.NoError(t, s.Fail(t.Context(), failedWith(context.DeadlineExceeded, rows[0])))
	require.NoError(t, s.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: rows[1], Error: context.DeadlineExceeded, FailedAt: start}))
	require.NoError(t, s.Renew(t.Context(), rows[:1]), "a letter does not end the election")
	require.Equal(t, leader, pid())
	other := plain.Source()
	takesNothing(t, other, 700*time.Millisecond) // and nothing is heard of the first
	require.Equal(t, leader, pid(), "its transaction was ended as idle")
	require.Equal(t, []string{"a"}, idsOf(take(t, s, 10)), "it is due")
	require.Equal(t, 1, count(t, db, `SELECT count(*) FROM courier_outbox_dlq`))
	execute(t, db, `ALTER TABLE courier_outbox ADD COLUMN tenant text NOT NULL DEFAULT ''`) // waits for no leader
	require.Equal(t, []string{"a"}, idsOf(take(t, s, 10)))
}

// The rows of a key that wait for an earlier one wait no longer than that, though the
// transaction of the leader began before it failed.
func TestALeaderSeesWhatAKeyWaitsFor(t *testing.T) {
	o := newPostgres(t, WithStrictOrder(), WithBackoff(50*time.Millisecond, 50*time.Millisecond))
	write(t, o, Message{ID: "a", Topic: "orders", Key: "k"}, Message{ID: "b", Topic: "orders", Key: "k"})
	s := o.Source()
	require.NoError(t, s.Fail(t.Context(), failedWith(context.DeadlineExceeded, take(t, s, 1)...)))
	require.Eventually(t, func() bool { return len(take(t, s, 10)) == 2 }, 20*time.Second, 5*time.Millisecond)
}

// A leader whose statement fails gives the reason, also where another relay is elected
// before it is again.
func TestALeaderWhoseFetchFails(t *testing.T) {
	o := newPostgres(t, WithStrictOrder())
	s := o.Source()
	require.Empty(t, take(t, s, 10))
	next, err := o.db.Conn(t.Context())
	require.NoError(t, err)
	elected := make(chan error, 1)
	go func() {
		_, err := next.ExecContext(context.Background(), o.sql(`SELECT pg_advisory_lock(`+electionKey+`)`))
		elected <- err
	}()
	require.Eventually(t, func() bool {
		return count(t, o.db, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`) == 1
	}, 20*time.Second, time.Millisecond)
	execute(t, o.db, `ALTER TABLE courier_outbox RENAME COLUMN topic TO topics`)
	_, err = s.Fetch(t.Context(), 10)
	require.ErrorContains(t, err, "call Migrate, which names the columns")
	require.NoError(t, <-elected)
	require.NoError(t, next.Close())
}

// takesNothing has a relay find nothing for some time. Unlike require.Never it leaves no
// fetch behind, which would take what comes next.
func takesNothing(t *testing.T, s *Source, lasts time.Duration) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < lasts; <-tick.C {
		require.Empty(t, take(t, s, 10))
	}
}

// fallSilent has the server hear nothing of a relay that leads, for longer than it waits.
func fallSilent(t *testing.T, s *Source) {
	t.Helper()
	e := s.waker.elected
	_, err := e.conn.ExecContext(t.Context(), `SET LOCAL idle_in_transaction_session_timeout = 100`)
	require.NoError(t, err)
	e.silence = 100 * time.Millisecond // to the log
}

// A relay that the server hears nothing of gives way, and one that has nothing to do
// lets the server hear of it.
func TestALeaderThatIsSilent(t *testing.T) {
	o := newPostgres(t, WithStrictOrder())
	write(t, o, named("a")...)
	silent, other := o.Source(), o.Source()
	other.waker.elected.silence = 5 * time.Second
	require.Len(t, take(t, silent, 10), 1)
	fallSilent(t, silent)
	require.Eventually(t, func() bool { return len(take(t, other, 10)) == 1 }, 20*time.Second, 5*time.Millisecond)
	other.Wake()
	takesNothing(t, silent, 6*time.Second)
	require.NoError(t, o.Close())
	silent.waker.elected.silence = leaderSilence
	require.Len(t, take(t, silent, 10), 1, "its own session has ended, and it is elected anew at once")
}

// A relay on a hot standby is not elected, beside the one on the primary, and says
// why. After the promotion it goes on.
func TestNoneIsElectedOnAStandby(t *testing.T) {
	primary, err := pgtest.Start()
	require.NoError(t, err)
	defer func() { require.NoError(t, primary.Stop()) }()
	if !primary.Private() {
		t.Skip("a replica is of a private server")
	}
	o := outboxIn(t, openPostgres(t, primary.DSN), WithStrictOrder())
	replica, err := primary.Replica()
	require.NoError(t, err)
	defer func() { require.NoError(t, replica.Stop()) }()
	write(t, o, named("a")...)
	db := openPostgres(t, replica.DSN)
	require.Eventually(t, func() bool { return count(t, db, `SELECT count(*) FROM courier_outbox`) == 1 }, 30*time.Second, 10*time.Millisecond)
	standby := New(db, Postgres, WithStrictOrder())
	t.Cleanup(func() { require.NoError(t, standby.Close()) })
	s := standby.Source()
	for range 3 {
		rows, err := s.Fetch(t.Context(), 10)
		require.Empty(t, rows)
		require.ErrorContains(t, err, "this is a read-only server, a standby perhaps")
	}
	require.Len(t, take(t, o.Source(), 10), 1)
	require.NoError(t, o.Close())
	require.NoError(t, replica.Promote(t.Context()))
	require.Len(t, take(t, s, 10), 1)
}

// A table that takes the place of another, as where it becomes partitioned, has the
// leader that the former one had.
func TestATableThatIsReplacedUnderALeader(t *testing.T) {
	dsn := pgtest.Schema(t)
	first := outboxIn(t, openPostgres(t, dsn), WithStrictOrder())
	second := outboxIn(t, openPostgres(t, dsn), WithStrictOrder())
	leader, other := first.Source(), second.Source()
	write(t, first, named("a")...)
	rows := take(t, leader, 10)
	require.Len(t, rows, 1)
	require.Empty(t, take(t, other, 10))
	execute(t, first.db, `CREATE TABLE fresh (LIKE courier_outbox INCLUDING ALL); ALTER TABLE courier_outbox RENAME TO former;
		ALTER TABLE fresh RENAME TO courier_outbox; INSERT INTO courier_outbox SELECT * FROM former;
		INSERT INTO courier_outbox (seq, id, topic, payload) VALUES (100, 'b', 'orders', '')`)
	require.Empty(t, take(t, other, 10))
	require.NoError(t, leader.Mark(t.Context(), rows))
	require.Equal(t, []string{"b"}, idsOf(take(t, leader, 10)))
	require.Zero(t, count(t, first.db, `SELECT count(*) FROM courier_outbox WHERE id = 'a'`))
	require.NoError(t, first.Close())
	require.Equal(t, []string{"b"}, idsOf(take(t, other, 10)))
}

const (
	leads       = `level=INFO msg="couriersql: this relay delivers from now on, and the others of its table stand by" table=courier_outbox backend=`
	leadsNoMore = `level=INFO msg="couriersql: this relay delivers no more; the relay that is elected next delivers the rows that are not marked" table=courier_outbox backend=`
)

// Each relay says once when it begins to lead, and once when and why it does no more. The
// query of the README shows which one leads.
func TestTheLogAndTheDatabaseKnowWhoLeads(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, query, found := strings.Cut(string(readme), "```sql\nSELECT a.pid")
	require.True(t, found)
	query, _, _ = strings.Cut("SELECT a.pid"+query, ";")
	dsn := pgtest.Schema(t)
	logs := []*logged{new(logged), new(logged)}
	var relays []*Source
	for i, log := range logs {
		o := outboxIn(t, openPostgres(t, fmt.Sprintf("%s application_name=relay-%d", dsn, i)), WithStrictOrder(), log.option())
		relays = append(relays, o.Source())
	}
	first, second := relays[0], relays[1]
	db := first.outbox.db
	query = strings.Replace(query, "public", schemaNamed(t, db), 1)
	leader := func(name string) string {
		var pid int
		var is string
		require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&pid, &is, new(any)))
		require.Equal(t, name, is)
		status, err := second.outbox.Status(t.Context())
		require.NoError(t, err)
		require.Equal(t, &Leader{pid, name}, status.Leader)
		return fmt.Sprint(pid)
	}
	write(t, first.outbox, named("a")...)
	status, err := second.outbox.Status(t.Context())
	require.NoError(t, err)
	require.Nil(t, status.Leader)
	rows := take(t, first, 10)
	for range 3 {
		require.Empty(t, take(t, second, 10))
		take(t, first, 10)
		require.NoError(t, first.Renew(t.Context(), rows))
	}
	one := leader("relay-0")
	require.Regexp(t, `^time=\S+ `+leads+one+"\n$", logs[0])
	require.Empty(t, logs[1].String(), "it stands by")

	cut(t, first)
	require.Eventually(t, func() bool { return len(take(t, second, 10)) == 1 }, 10*time.Second, time.Millisecond)
	two := leader("relay-1")
	for range 3 {
		require.Empty(t, take(t, first, 10))
		require.ErrorIs(t, first.Renew(t.Context(), rows), ErrLeaseLost)
	}
	require.Regexp(t, `^.*\n\S+ `+leadsNoMore+one+` why="a fetch failed" error=.+\n$`, logs[0])
	require.Regexp(t, `^time=\S+ `+leads+two+"\n$", logs[1])

	require.NoError(t, second.outbox.Close())
	require.Regexp(t, `^.*\n\S+ `+leadsNoMore+two+` why="its outbox is closed"\n$`, logs[1])
	require.Len(t, take(t, first, 10), 1)
	require.Regexp(t, `^.*\n.*\n\S+ `+leads+leader("relay-0")+"\n$", logs[0])
}

// A relay that was suspended reads in its log why it leads no more, and what becomes of
// the rows that it has in hand.
func TestALeaderThatWasSuspended(t *testing.T) {
	log := new(logged)
	o := newPostgres(t, WithStrictOrder(), log.option())
	write(t, o, named("a", "b")...)
	suspended, other := o.Source(), New(o.db, Postgres, WithStrictOrder(), WithLogger(slog.New(slog.DiscardHandler)))
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	rows := take(t, suspended, 10)
	fallSilent(t, suspended)
	next := other.Source()
	require.Eventually(t, func() bool { return len(take(t, next, 10)) == 2 }, 20*time.Second, 5*time.Millisecond)
	err := suspended.Renew(t.Context(), rows)
	require.EqualError(t, err, "couriersql: this relay lost the lead of courier_outbox: it finishes and marks the rows in progress, and leaves the others to the relay that leads")
	require.ErrorIs(t, err, ErrLeaseLost)
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 2)
	require.Equal(t, 1, strings.Count(log.String(), leadsNoMore))
	require.Regexp(t, ` why="the server and this relay did not hear of each other for [\d.m]+s: was its process suspended, or the network or the server away\?" error=.+\n$`, log)
}

// A relay whose every fetch fails is elected for each of them, and says so once.
func TestALeaderWhoseFetchesFailIsNotRepeated(t *testing.T) {
	log := new(logged)
	o := newPostgres(t, WithStrictOrder(), log.option())
	s := o.Source()
	fails := func() {
		t.Helper()
		execute(t, o.db, `ALTER TABLE courier_outbox RENAME COLUMN topic TO topics`)
		for range 3 {
			_, err := s.Fetch(t.Context(), 10)
			require.Error(t, err)
			require.Eventually(t, func() bool { // as one that looks out for its election
				elected, err := s.waker.elected.try(t.Context())
				return elected && err == nil
			}, 10*time.Second, time.Millisecond)
		}
		execute(t, o.db, `ALTER TABLE courier_outbox RENAME COLUMN topics TO topic`)
	}
	for turn := range 2 {
		fails()
		require.Equal(t, turn+1, strings.Count(log.String(), leads))
		require.Equal(t, turn+1, strings.Count(log.String(), leadsNoMore))
		require.Contains(t, log.String(), `why="a fetch failed" error="error preprocessing batch (prepare): ERROR: column`)
		require.Empty(t, take(t, s, 10))
		require.Empty(t, take(t, s, 10))
		require.Equal(t, turn+2, strings.Count(log.String(), leads), "it works again")
	}
}
