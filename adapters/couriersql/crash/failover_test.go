package crash

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
)

// name is a name of the service: it leads to one server, and later to another.
type name struct{ server atomic.Pointer[pgtest.Server] }

func (n *name) dial() (net.Conn, error) { return n.server.Load().Dial() }

func (n *name) open(t *testing.T, database string) *sql.DB {
	t.Helper()
	config, err := pgx.ParseConfig(n.server.Load().DSN)
	require.NoError(t, err)
	config.Database = database
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return n.dial() }
	db := stdlib.OpenDB(*config)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// text is a log that the test reads while it is written.
type text struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

func startServer(t *testing.T, start func() (*pgtest.Server, error)) *pgtest.Server {
	t.Helper()
	server, err := start()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	return server
}

// A replica that is promoted misses the last commits, and gives their numbers to
// other messages. Those are delivered, though a relay has the former ones in hand
// and marks them: fsync and synchronous_commit are on.
func TestFailoverToAReplicaThatMissesCommits(t *testing.T) {
	const batch = 50
	for hold, title := range groups {
		t.Run(title, func(t *testing.T) {
			var service name
			primary := startServer(t, pgtest.Start)
			if !primary.Private() {
				t.Skip("it crashes the server, which is somebody's")
			}
			service.server.Store(primary)
			db := service.open(t, "postgres")
			var log text
			logger := slog.New(slog.NewTextHandler(&log, nil))
			outbox := relayConfig{Driver: "pgx", Hold: hold}.outbox(db, couriersql.WithLogger(logger))
			t.Cleanup(func() { require.NoError(t, outbox.Close()) })
			require.NoError(t, outbox.Migrate(t.Context()))
			replica := startServer(t, primary.Replica)
			require.NoError(t, replica.Crash()) // from here on it misses everything

			put := func(kind string) error {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					return err
				}
				defer func() { _ = tx.Rollback() }() // does nothing after Commit
				for i := range batch {
					if err := outbox.Write(t.Context(), tx, couriersql.Message{ID: fmt.Sprint(kind, "/", i), Topic: "orders"}); err != nil {
						return err
					}
				}
				return tx.Commit()
			}
			require.NoError(t, put("missed"))
			var mu sync.Mutex
			delivered := map[string]int{}
			inHand, failedOver := make(chan struct{}), make(chan struct{})
			applier := courier.ProcessFunc(func(_ context.Context, r couriersql.Row) error {
				if r.ID == fmt.Sprint("missed/", batch-1) {
					close(inHand)
					<-failedOver
				}
				mu.Lock()
				defer mu.Unlock()
				delivered[r.ID]++
				return nil
			})
			relay := courier.NewPollingCoordinator(outbox.Source(), applier, courier.WithBatchSize(batch),
				courier.WithInterval(20*time.Millisecond), courier.WithLogger(logger))
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- relay.Start(ctx) }()
			defer func() { stop(); require.NoError(t, <-done) }()
			<-inHand
			require.NoError(t, primary.Crash())
			require.NoError(t, replica.Restart())
			require.NoError(t, replica.Promote(t.Context()))
			relay.Pause() // so that nothing but the mark of what is in hand happens
			service.server.Store(replica)
			require.Eventually(t, func() bool { return put("kept") == nil }, 30*time.Second, 10*time.Millisecond)
			var reused int
			require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM courier_outbox WHERE seq <= $1`, batch).Scan(&reused))
			require.Equal(t, batch, reused, "the numbers are given twice")
			close(failedOver)
			require.Eventually(t, func() bool { return relay.Stats().Marked == batch }, 30*time.Second, 10*time.Millisecond, "%v", &log)
			pending, err := outbox.Pending(t.Context())
			require.NoError(t, err)
			require.Equal(t, batch, pending, "the mark took others")
			require.Contains(t, log.String(), "rows were delivered whose numbers other messages have by now")
			relay.Resume()
			require.Eventually(t, func() bool {
				pending, err := outbox.Pending(t.Context())
				return err == nil && pending == 0
			}, 30*time.Second, 10*time.Millisecond, "%v", &log)
			mu.Lock()
			defer mu.Unlock()
			for i := range batch {
				require.Equal(t, 1, delivered[fmt.Sprint("kept/", i)])
			}
		})
	}
}
