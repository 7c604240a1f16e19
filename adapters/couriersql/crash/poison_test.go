package crash

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

const poisonVariable = "COURIER_CRASH_POISON"

// The record that kills its process, of some hundreds.
const (
	poisonRows = 300
	poisonRow  = 57
)

// poisonBatch is the batch size, of which groups are a tenth.
const poisonBatch = 50

// deadErrands are the letters of the table errands.
func (c relayConfig) deadErrands(db *sql.DB) *couriersql.DLQ[errand] {
	return couriersql.NewDLQ(db, dialects[c.Driver], couriersql.DLQConfig[errand]{Table: "dead_errands", Identity: func(e errand) string { return fmt.Sprint(e.ID) }})
}

// ownTable is whether a relay of TestPoison has the table errands, and not an outbox.
func (c relayConfig) ownTable() bool { return c.Hold == "table" || c.Hold == "strict table" }

// poisonMain is a relay that dies of one record.
func poisonMain(text string) {
	config, db := childOf(text)
	deliver := func(ctx context.Context, id int64) error {
		if id == poisonRow && config.Seed%2 == 0 {
			os.Exit(7)
		}
		if id == poisonRow {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until it has
		}
		_, err := db.ExecContext(ctx, `INSERT INTO deliveries (id) VALUES ($1)`, id)
		return err
	}
	message := courier.ProcessFunc(func(ctx context.Context, r couriersql.Row) error { return deliver(ctx, r.Seq) })
	opts := []courier.Option{courier.WithBatchSize(poisonBatch), courier.WithInterval(20 * time.Millisecond), courier.WithLogger(slog.New(slog.DiscardHandler))}
	outbox := config.outbox(db, couriersql.WithLease(time.Second), couriersql.WithLogger(slog.New(slog.DiscardHandler)))
	var run interface{ Start(context.Context) error }
	switch {
	case config.ownTable():
		errands := config.errands(db).Source()
		run = courier.NewPollingCoordinator(errands, courier.ProcessFunc(func(ctx context.Context, e errand) error { return deliver(ctx, e.ID) }), append(opts, courier.WithPrefetch(1))...)
	case config.Hold == "stream":
		run = courier.NewStreamingCoordinator(outbox.Stream(20*time.Millisecond), message, append(opts[:1], opts[2:]...)...)
	default:
		run = courier.NewPollingCoordinator(outbox.Source(), message, append(opts, courier.WithPrefetch(1))...)
	}
	panic(run.Start(context.Background()))
}

// TestPoison has two relays die of one record, again and again: it is parked, all others are
// delivered, and none of them is parked.
func TestPoison(t *testing.T) {
	for _, driver := range []string{"pgx", "sqlite"} {
		for _, hold := range []string{"polling", "stream", "table", "strict table"} {
			t.Run(driver+" "+hold, func(t *testing.T) {
				t.Parallel()
				config := relayConfig{Driver: driver, Hold: hold, DSN: couriersql.SQLiteDSN(filepath.Join(t.TempDir(), "poison.db"))}
				serial := "INTEGER"
				if driver == "pgx" {
					config.DSN, serial = pgtest.Schema(t), "bigserial"
				}
				db, err := sql.Open(config.Driver, config.DSN)
				require.NoError(t, err)
				defer func() { require.NoError(t, db.Close()) }()
				execute := func(text string, args ...any) {
					_, err := db.ExecContext(t.Context(), text, args...)
					require.NoError(t, err)
				}
				execute(`CREATE TABLE errands (id ` + serial + ` PRIMARY KEY, done integer NOT NULL DEFAULT 0)`)
				execute(`CREATE INDEX errands_pending ON errands (id) WHERE done = 0`)
				execute(`CREATE TABLE deliveries (place ` + serial + ` PRIMARY KEY, id bigint NOT NULL)`)
				outbox := config.outbox(db, couriersql.WithLease(time.Second), couriersql.WithLogger(slog.New(slog.DiscardHandler)))
				require.NoError(t, outbox.Migrate(t.Context()))
				require.NoError(t, config.errands(db).Migrate(t.Context()))
				require.NoError(t, config.deadErrands(db).Migrate(t.Context()))
				if config.ownTable() {
					for range poisonRows {
						execute(`INSERT INTO errands DEFAULT VALUES`)
					}
				} else {
					tx, err := db.BeginTx(t.Context(), nil)
					require.NoError(t, err)
					messages := make([]couriersql.Message, poisonRows)
					for i := range messages {
						messages[i].Topic = "t"
					}
					require.NoError(t, outbox.Write(t.Context(), tx, messages...))
					require.NoError(t, tx.Commit())
				}

				crashes := superviseTwo(t, config)
				var pending, parked int
				require.Eventually(t, func() bool {
					if config.ownTable() {
						pending, err = config.errands(db).Pending(t.Context())
						require.NoError(t, err)
						parked, err = config.deadErrands(db).Count(t.Context())
					} else {
						pending, err = outbox.Pending(t.Context())
						require.NoError(t, err)
						parked, err = outbox.DLQ().Count(t.Context())
					}
					require.NoError(t, err)
					return pending == 0
				}, time.Minute, 20*time.Millisecond)
				require.Equal(t, 1, parked)
				if config.ownTable() {
					letters, err := config.deadErrands(db).Receive(t.Context(), 10)
					require.NoError(t, err)
					require.Equal(t, int64(poisonRow), letters[0].Record.ID)
					require.Equal(t, courier.ReasonCrashed, letters[0].Reason)
				} else {
					letters, err := outbox.DLQ().Receive(t.Context(), 10)
					require.NoError(t, err)
					require.Equal(t, int64(poisonRow), letters[0].Record.Seq)
					require.Equal(t, courier.ReasonCrashed, letters[0].Reason)
				}
				var delivered int
				require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(DISTINCT id) FROM deliveries`).Scan(&delivered))
				require.Equal(t, poisonRows-1, delivered)
				if hold == "strict table" {
					var early int
					require.NoError(t, db.QueryRowContext(t.Context(), `WITH firsts AS (SELECT id, min(place) AS place FROM deliveries GROUP BY id)
						SELECT count(*) FROM firsts a JOIN firsts b ON a.id < b.id AND a.place > b.place`).Scan(&early))
					require.Zero(t, early, "pairs out of order")
				}
				require.LessOrEqual(t, crashes(), int64(8), "of a batch, of groups, and alone")
				t.Logf("parked after %d crashes", crashes())
			})
		}
	}
}

// superviseTwo runs two relays until the test ends, and starts one again that dies. It returns
// how often that was.
func superviseTwo(t *testing.T, config relayConfig) (crashes func() int64) {
	t.Helper()
	var died atomic.Int64
	var stopped atomic.Bool
	var mu sync.Mutex
	var group sync.WaitGroup
	children := make([]*exec.Cmd, 2)
	for i := range children {
		group.Go(func() {
			for seed := uint64(i); ; seed++ {
				mu.Lock()
				if stopped.Load() {
					mu.Unlock()
					return
				}
				c := config
				c.Seed = seed
				child := startChild(t, poisonVariable, c)
				children[i] = child
				mu.Unlock()
				if _ = child.Wait(); !stopped.Load() {
					died.Add(1)
				}
			}
		})
	}
	t.Cleanup(func() {
		mu.Lock()
		stopped.Store(true)
		for _, child := range children {
			_ = child.Process.Kill()
		}
		mu.Unlock()
		group.Wait()
	})
	return died.Load
}
