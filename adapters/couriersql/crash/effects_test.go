package crash

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

const effectsVariable = "COURIER_CRASH_EFFECTS"

// effectsMain is a consumer in a process of its own: what it takes from the outbox becomes
// a row of the table effects, and before that one of the table deliveries, which is no part
// of the effect.
func effectsMain(text string) {
	config, db := childOf(text)
	outbox := config.outbox(db)
	random := rand.New(rand.NewPCG(config.Seed, 1))
	effects := couriersql.Effects(couriersql.NewInbox(db, outbox.Dialect(), couriersql.InboxConfig{Consumer: "crash"}),
		func(r couriersql.Row) string { return r.ID },
		func(ctx context.Context, tx *sql.Tx, r couriersql.Row) error {
			_, err := tx.ExecContext(ctx, config.sql(`INSERT INTO effects (id) VALUES ($1)`), r.ID)
			if err == nil && random.IntN(100) == 0 {
				err = errors.New("a failure that was asked for")
			}
			return err
		})
	err := courier.NewPollingCoordinator(outbox.Source(), delivered{effects, db, config}, courier.WithBatchSize(batchSize),
		courier.WithInterval(20*time.Millisecond), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(context.Background())
	panic(err)
}

// delivered notes each record that it passes on.
type delivered struct {
	courier.BatchApplier[couriersql.Row]
	db     *sql.DB
	config relayConfig
}

func (d delivered) ApplyBatch(ctx context.Context, rows []couriersql.Row) error {
	for _, r := range rows {
		if _, err := d.db.ExecContext(ctx, d.config.sql(`INSERT INTO deliveries (id) VALUES ($1)`), r.ID); err != nil {
			return err
		}
	}
	return d.BatchApplier.ApplyBatch(ctx, rows)
}

// TestEffects kills consumers in turn, and then counts: each effect is there once. In the
// long form some were delivered again:
//
//	go test -run TestEffects -v -timeout 0 -args -crash.kills=200
func TestEffects(t *testing.T) {
	for name, config := range map[string]relayConfig{
		"postgres": {Driver: "pgx"},
		"leased":   {Driver: "pgx", Hold: "lease"},
		"sqlite":   {Driver: "sqlite", Hold: "lease"},
		"mysql":    {Driver: "mysql", Hold: "lease"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config.DSN = couriersql.SQLiteDSN(filepath.Join(t.TempDir(), "effects.db"))
			switch config.Driver {
			case "pgx":
				config.DSN = pgtest.Schema(t)
			case "mysql":
				config.DSN = mytest.Database(t)
			}
			killConsumers(t, config)
		})
	}
}

func killConsumers(t *testing.T, config relayConfig) {
	db, err := sql.Open(config.Driver, config.DSN)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	outbox := config.outbox(db)
	defer func() { require.NoError(t, outbox.Close()) }()
	require.NoError(t, outbox.Migrate(t.Context()))
	require.NoError(t, couriersql.NewInbox(db, outbox.Dialect(), couriersql.InboxConfig{Consumer: "crash"}).Migrate(t.Context()))
	for _, table := range []string{"effects", "deliveries"} {
		_, err := db.ExecContext(t.Context(), `CREATE TABLE `+table+` (id TEXT NOT NULL)`)
		require.NoError(t, err)
	}
	written := 0
	write := func(n int) {
		var messages []couriersql.Message
		for range n {
			written++
			messages = append(messages, couriersql.Message{ID: fmt.Sprint("e", written), Topic: "orders"})
		}
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		require.NoError(t, outbox.Write(t.Context(), tx, messages...))
		require.NoError(t, tx.Commit())
	}
	counted := func(query string) (n int) {
		require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&n))
		return n
	}
	killInTurn(t, effectsVariable, config, func() int { return counted(`SELECT count(*) FROM effects`) }, func() { write(2 * batchSize) }, func() bool {
		pending, err := outbox.Pending(t.Context())
		return err == nil && pending == 0
	})
	require.Zero(t, counted(`SELECT count(*) FROM (SELECT id FROM effects GROUP BY id HAVING count(*) > 1) AS twice`), "effects that happened twice")
	require.Equal(t, written, counted(`SELECT count(*) FROM effects`))
	again := counted(`SELECT count(*) FROM deliveries`) - written
	t.Logf("%d kills: %d effects, each once; %d deliveries were repeated", *kills, written, again)
	require.False(t, *kills >= 100 && again == 0, "nothing was delivered again, so that nothing was tested")
}

// freezeEvery is how many kills there are to one child that is frozen.
const freezeEvery = 8

// killInTurn has two children work, and kills one after the other while they do. done is how
// much they have done, of what write leaves them to do, until all is. Relays of a table are
// frozen now and then, for longer than their lease, but not in SQLite, where one may have locked
// the file. The other child must work on meanwhile. Half of the frozen ones go on then, the
// others are killed.
func killInTurn(t *testing.T, variable string, config relayConfig, done func() int, write func(), all func() bool) {
	t.Helper()
	random := rand.New(rand.NewPCG(*seed, 7))
	spawn := func() *exec.Cmd {
		config.Seed = random.Uint64()
		return startChild(t, variable, config)
	}
	kill := func(cmd *exec.Cmd) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	children := []*exec.Cmd{spawn(), spawn()}
	defer func() {
		for _, c := range children {
			kill(c)
		}
	}()
	goOn := func() {
		before := done()
		write()
		// A minute is the longest that the server waits for what a frozen child has begun.
		require.Eventually(t, func() bool { return done() > before }, 90*time.Second, time.Millisecond)
	}
	for i := range *kills {
		goOn()
		time.Sleep(time.Duration(random.IntN(5000)) * time.Microsecond) // into the work
		child := children[i%2]
		if variable == tableVariable && config.Driver != "sqlite" && i%freezeEvery == freezeEvery-1 {
			require.NoError(t, child.Process.Signal(syscall.SIGSTOP))
			time.Sleep(1200 * time.Millisecond) // its lease is a second
			goOn()
			if random.IntN(2) == 0 {
				require.NoError(t, child.Process.Signal(syscall.SIGCONT))
				continue
			}
		}
		kill(child)
		children[i%2] = spawn()
	}
	require.Eventually(t, all, 60*time.Second, 20*time.Millisecond)
}
