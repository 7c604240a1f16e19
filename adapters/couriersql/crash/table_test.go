package crash

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

const tableVariable = "COURIER_CRASH_TABLE"

// orderKeys is of how many order keys errands are.
const orderKeys = 30

// errand is a row of a table of somebody's own.
type errand struct{ ID int64 }

func (c relayConfig) mostCrashes() int {
	switch {
	case c.Driver == "mysql":
		return -1
	case c.ownTable(): // of TestPoison
		return 0
	}
	return manyCrashes
}

// errands is how that table is relayed.
func (c relayConfig) errands(db *sql.DB) *couriersql.Table[errand] {
	orderKey := ""
	if c.Hold == "keys" {
		orderKey = fmt.Sprintf("id %% %d", orderKeys)
	}
	return couriersql.NewTable(db, dialects[c.Driver], couriersql.TableConfig[errand]{
		Table: "errands", Key: []string{"id"}, KeyOf: func(e errand) []any { return []any{e.ID} },
		Columns: []string{"id"},
		Scan:    func(scan func(...any) error) (e errand, err error) { return e, scan(&e.ID) },
		Pending: "done = 0", Mark: "done = done + 1",
		DLQ: c.deadErrands(db), MaxCrashes: c.mostCrashes(),
		Strict: c.Hold == "strict" || c.Hold == "strict table", OrderKey: orderKey, Lease: time.Second, InitialBackoff: time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
	})
}

// tableMain is a relay of that table in a process of its own, to the table deliveries.
func tableMain(text string) {
	config, db := childOf(text)
	random := rand.New(rand.NewPCG(config.Seed, 1))
	insert := func(ctx context.Context, on interface {
		ExecContext(context.Context, string, ...any) (sql.Result, error)
	}, e errand) error {
		bad := random.IntN(100) == 0
		if bad && (config.Hold == "" || config.Hold == "keys") {
			return errors.New("a failure that was asked for")
		}
		_, err := on.ExecContext(ctx, fmt.Sprintf(`INSERT INTO deliveries (id) VALUES (%d)`, e.ID))
		if err == nil && bad && config.Hold == "effects" { // which takes it back
			err = errors.New("a failure that was asked for")
		}
		return err
	}
	source := config.errands(db).Source()
	deliver := courier.ProcessFunc(func(ctx context.Context, e errand) error { return insert(ctx, db, e) })
	if config.Hold == "effects" {
		deliver = source.Effects(func(ctx context.Context, tx *sql.Tx, e errand) error { return insert(ctx, tx, e) })
	}
	opts := []courier.Option{courier.WithBatchSize(batchSize), courier.WithInterval(20 * time.Millisecond), courier.WithLogger(slog.New(slog.DiscardHandler))}
	if config.Hold == "keys" {
		opts = append(opts, courier.WithOrderKey(func(e errand) string { return strconv.FormatInt(e.ID%orderKeys, 10) }))
	}
	err := courier.NewPollingCoordinator(source, deliver, opts...).Start(context.Background())
	panic(err)
}

// TestTable kills relays of a table of somebody's own in turn, and then counts: each row was
// delivered, again only what was in hand at a kill, and in strict order, or in that of its
// key, the first time. What is delivered by effects is delivered once.
//
//	go test -run TestTable -v -timeout 0 -args -crash.kills=200
func TestTable(t *testing.T) {
	for name, config := range map[string]relayConfig{
		"postgres":         {Driver: "pgx"},
		"postgres strict":  {Driver: "pgx", Hold: "strict"},
		"sqlite":           {Driver: "sqlite"},
		"sqlite strict":    {Driver: "sqlite", Hold: "strict"},
		"postgres keys":    {Driver: "pgx", Hold: "keys"},
		"sqlite keys":      {Driver: "sqlite", Hold: "keys"},
		"mysql keys":       {Driver: "mysql", Hold: "keys"},
		"postgres effects": {Driver: "pgx", Hold: "effects"},
		"sqlite effects":   {Driver: "sqlite", Hold: "effects"},
		"mysql":            {Driver: "mysql"},
		"mysql strict":     {Driver: "mysql", Hold: "strict"},
		"mysql effects":    {Driver: "mysql", Hold: "effects"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			serial, index, row := "INTEGER", "(id) WHERE done = 0", "DEFAULT VALUES"
			switch config.Driver {
			case "sqlite":
				config.DSN = couriersql.SQLiteDSN(filepath.Join(t.TempDir(), "errands.db"))
			case "pgx":
				config.DSN, serial = pgtest.Schema(t), "bigserial"
			case "mysql":
				config.DSN, serial, index, row = mytest.Database(t), "bigint AUTO_INCREMENT", "(done, id)", "() VALUES ()"
			}
			db, err := sql.Open(config.Driver, config.DSN)
			require.NoError(t, err)
			defer func() { require.NoError(t, db.Close()) }()
			for _, text := range []string{
				`CREATE TABLE errands (id ` + serial + ` PRIMARY KEY, done integer NOT NULL DEFAULT 0)`,
				`CREATE INDEX errands_pending ON errands ` + index,
				`CREATE TABLE deliveries (place ` + serial + ` PRIMARY KEY, id bigint NOT NULL)`,
			} {
				_, err := db.ExecContext(t.Context(), text)
				require.NoError(t, err)
			}
			errands := config.errands(db)
			require.NoError(t, errands.Migrate(t.Context()))
			counted := func(query string) (n int) {
				require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&n))
				return n
			}
			written := 0
			killInTurn(t, tableVariable, config, func() int { return counted(`SELECT count(*) FROM deliveries`) }, func() {
				for range 2 * batchSize {
					_, err := db.ExecContext(t.Context(), `INSERT INTO errands `+row)
					require.NoError(t, err)
					written++
				}
			}, func() bool {
				pending, err := errands.Pending(t.Context())
				return err == nil && pending == 0
			})
			require.Equal(t, written, counted(`SELECT count(DISTINCT id) FROM deliveries`), "rows that were delivered")
			require.Equal(t, written, counted(`SELECT count(*) FROM errands WHERE done = 1`), "rows that were marked once")
			again := counted(`SELECT count(*) FROM deliveries`) - written
			if config.Hold == "effects" {
				require.Zero(t, again, "effects that happened twice")
			}
			require.LessOrEqual(t, again, *kills*batchSize, "repeated though in nobody's hand at a kill")
			overtook := "b.id > a.id AND b.place < a.first"
			switch config.Hold {
			case "keys":
				overtook += fmt.Sprintf(" AND b.id %% %d = a.id %% %[1]d", orderKeys)
				fallthrough
			case "strict":
				require.Zero(t, counted(`SELECT count(*) FROM (SELECT id, min(place) AS first FROM deliveries GROUP BY id) AS a
					WHERE EXISTS (SELECT 1 FROM deliveries AS b WHERE `+overtook+`)`), "rows that a later one overtook")
			}
			t.Logf("%d kills: %d rows, each delivered; %d deliveries were repeated", *kills, written, again)
		})
	}
}
