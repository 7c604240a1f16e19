package couriersql

import (
	"context"
	"database/sql"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
)

// deaf is a connection whose reads wait, once it is deaf, until it hears again.
type deaf struct {
	net.Conn
	is    *atomic.Bool
	hears chan struct{}
}

func (d deaf) Read(p []byte) (int, error) {
	if d.is.Load() {
		<-d.hears
	}
	return d.Conn.Read(p)
}

// openDeaf opens a database whose connections become deaf when they are told, until the end of
// the test or before.
func openDeaf(t *testing.T, dsn string) (db *sql.DB, is *atomic.Bool, hear func()) {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	is, hears := new(atomic.Bool), make(chan struct{})
	hear = sync.OnceFunc(func() { close(hears) })
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return deaf{conn, is, hears}, err
	}
	db = stdlib.OpenDB(*config)
	t.Cleanup(func() {
		hear()
		require.NoError(t, db.Close())
	})
	return db, is, hear
}

// waitUntilStuck waits until the server waits to send the answer of a fetch.
func waitUntilStuck(t *testing.T, db *sql.DB, table string) {
	t.Helper()
	require.Eventually(t, func() bool {
		return count(t, db, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE '%`+table+`%'`) == 1
	}, 10*time.Second, 5*time.Millisecond)
}

// A relay that takes no rows of its fetch any more, as it is frozen, or its machine gone, keeps
// the others from theirs for no longer than their query timeout, whatever ends their wait.
func TestAFetchThatIsNotTaken(t *testing.T) {
	for _, limit := range []string{"", "statement_timeout", "lock_timeout"} {
		t.Run(limit, func(t *testing.T) { testAFetchThatIsNotTaken(t, limit) })
	}
}

func testAFetchThatIsNotTaken(t *testing.T, limit string) {
	dsn := pgtest.Schema(t)
	r := newRelayed(t, Postgres, ownTables(Postgres)["updates"], 0)
	r.db = openPostgres(t, dsn)
	for _, text := range r.create {
		execute(t, r.db, text)
	}
	r.rows(1, 100)
	r.table()

	db, isDeaf, hear := openDeaf(t, dsn)
	defer hear()
	own := r.config
	own.Columns = []string{"id", "name || repeat('x', 200000)"} // more than goes into the buffers of a socket
	own.Logger = slog.New(slog.DiscardHandler)
	frozen := NewTable(db, Postgres, own).Source()
	_, err := frozen.Fetch(t.Context(), 1) // and so the table is described
	require.NoError(t, err)

	isDeaf.Store(true)
	failed := make(chan error)
	go func() {
		_, err := frozen.Fetch(context.WithoutCancel(t.Context()), 99)
		failed <- err
	}()
	waitUntilStuck(t, r.db, "repeat")
	r.config.QueryTimeout = time.Second
	if limit != "" {
		config, err := pgx.ParseConfig(dsn)
		require.NoError(t, err)
		config.RuntimeParams[limit] = "400"
		r.db = stdlib.OpenDB(*config)
		t.Cleanup(func() { require.NoError(t, r.db.Close()) })
	}
	other := r.table().Source()
	if limit == "" {
		_, err = other.Fetch(t.Context(), 10)
		require.ErrorIs(t, err, ErrQueryTimeout)
	} else {
		require.Eventually(t, func() bool {
			_, err := other.Fetch(t.Context(), 10)
			return postgresWaited(err) && strings.Contains(r.log.String(), "took no rows of its fetch")
		}, 10*time.Second, time.Millisecond)
	}
	_, names := fetchNames(t, other, 100)
	require.Len(t, names, 99)
	require.Equal(t, 1, strings.Count(r.log.String(), "took no rows of its fetch"))
	hear()
	require.ErrorContains(t, <-failed, "unexpected EOF", "its session was ended")
}

// One that leads in strict order, and takes no rows of its fetch any more, gives way as one does
// that is silent.
func TestALeaderThatTakesNoRows(t *testing.T) {
	dsn := pgtest.Schema(t)
	db, isDeaf, hear := openDeaf(t, dsn)
	defer hear()
	table := WithTable("stuck_outbox")
	frozen := outboxIn(t, db, table, WithStrictOrder(), WithLogger(slog.New(slog.DiscardHandler))).Source()
	log := new(logged)
	o := outboxIn(t, openPostgres(t, dsn), table, WithStrictOrder(), log.option(), WithQueryTimeout(4*time.Second))
	other := o.Source()
	other.waker.elected.silence = time.Second
	require.Empty(t, take(t, frozen, 1))
	require.Empty(t, take(t, other, 1))
	var messages []Message
	for range 20 {
		messages = append(messages, Message{Topic: "t", Payload: make([]byte, 200_000)})
	}
	write(t, o, messages...)

	isDeaf.Store(true)
	fetched := make(chan struct{})
	go func() {
		_, _ = frozen.Fetch(context.WithoutCancel(t.Context()), 20)
		close(fetched)
	}()
	waitUntilStuck(t, o.db, "stuck_outbox")
	since := func(d string) int {
		return count(t, o.db, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query_start < now() - interval '`+d+`'`)
	}
	require.Eventually(t, func() bool { return since("1.5 s") == 1 }, 10*time.Second, 5*time.Millisecond)
	require.Empty(t, take(t, other, 20), "its link may be slow")
	require.NotContains(t, log.String(), "took no rows of its fetch")
	require.Eventually(t, func() bool { return len(take(t, other, 20)) > 0 }, 20*time.Second, 5*time.Millisecond)
	require.Equal(t, 1, strings.Count(log.String(), "took no rows of its fetch"))
	hear()
	<-fetched
}
