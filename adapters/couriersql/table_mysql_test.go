package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
)

// What a DSN or a server sets for the session changes nothing.
func TestAMySQLTableWhateverTheSessionsSettings(t *testing.T) {
	isolation := "transaction_isolation"
	if strings.Contains(namesIn(t, databaseOf(t, MySQL), "SELECT VERSION()")[0], "MariaDB") {
		isolation = "tx_isolation"
	}
	for name, settings := range map[string]struct {
		params map[string]string
		config func(*mysql.Config)
	}{
		"none":                 {nil, func(*mysql.Config) {}},
		"no backslash escapes": {map[string]string{"sql_mode": "'NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES'"}, func(*mysql.Config) {}},
		"no mode":              {map[string]string{"sql_mode": "''"}, func(*mysql.Config) {}},
		"found rows":           {nil, func(c *mysql.Config) { c.ClientFoundRows = true }},
		"interpolated":         {nil, func(c *mysql.Config) { c.InterpolateParams = true }},
		"times":                {map[string]string{"time_zone": "'-11:00'"}, func(c *mysql.Config) { c.ParseTime, c.Loc = true, time.FixedZone("", 7200) }},
		"latin1":               {nil, func(c *mysql.Config) { c.Collation = "latin1_swedish_ci" }},
		"serializable":         {map[string]string{isolation: "'SERIALIZABLE'"}, func(*mysql.Config) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own := ownTables(MySQL)["several columns"]
			r := newRelayed(t, MySQL, own, 0)
			r.add(t, r.db, 1, "1", "2", "3", "4")
			r.db = openMySQLAs(t, r.db, settings.params, settings.config)
			r.config.Columns = []string{"CAST(tenant AS BINARY)", "number", "name"}
			s, other := r.table().Source(), r.table().Source()
			rows, names := fetchNames(t, s, 3)
			require.Equal(t, []string{"1", "2", "3"}, names)
			require.NoError(t, s.Fail(t.Context(), failing(errors.New(`it's "é" \ €`), rows[0])))
			require.NoError(t, s.Renew(t.Context(), rows[1:]))
			require.NoError(t, s.Release(t.Context(), rows[1:2], 0))
			require.Equal(t, []string{`it's "é" \ €`}, namesIn(t, r.db, "SELECT CAST(CONVERT(last_error USING utf8mb4) AS BINARY) FROM events_courier"))
			_, names = fetchNames(t, other, 10)
			require.Equal(t, []string{"2", "4"}, names)
			require.NoError(t, s.Mark(t.Context(), rows[2:]))
			execute(t, r.db, "CREATE TABLE effects (name text NOT NULL)")
			r.advance(time.Second)
			again, names := fetchNames(t, s, 10)
			require.Equal(t, []string{"1"}, names)
			require.NoError(t, s.Effects(spelled()).ApplyBatch(t.Context(), again))
			require.Zero(t, r.count("events_courier"))
			require.Equal(t, 1, r.count("events_courier_batches"))
			require.NotContains(t, r.log.String(), "lost")
		})
	}
}

// openMySQLAs opens the database that another connection is to, in another way.
func openMySQLAs(t *testing.T, db *sql.DB, params map[string]string, change func(*mysql.Config)) *sql.DB {
	t.Helper()
	config, err := mysql.ParseDSN(mytest.Shared(t).DSN)
	require.NoError(t, err)
	config.DBName = namesIn(t, db, "SELECT DATABASE()")[0]
	config.Params, config.Logger = maps.Clone(params), &mysql.NopLogger{}
	change(config)
	connector, err := mysql.NewConnector(config)
	require.NoError(t, err)
	opened := sql.OpenDB(connector)
	t.Cleanup(func() { _ = opened.Close() }) // one of its connections may have been cut
	return opened
}

// With found rows, a mark that a trigger puts back is found out all the same.
func TestAMySQLTablesMarkThatIsPutBackAndFound(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 3)
	r.db = openMySQLAs(t, r.db, nil, func(c *mysql.Config) { c.ClientFoundRows = true })
	s := r.table().Source()
	first, _ := fetchNames(t, s, 1)
	require.NoError(t, s.Mark(t.Context(), first))
	rows, _ := fetchNames(t, s, 10)
	r.suppress("2")
	require.ErrorIs(t, s.Mark(t.Context(), rows), ErrSuppressed)
}

// A key in other letters is another key, though the column takes them for one.
func TestAMySQLTablesKeyOfOtherLetters(t *testing.T) {
	db := databaseOf(t, MySQL)
	execute(t, db, `CREATE TABLE events (id varchar(40) COLLATE utf8mb4_general_ci NOT NULL PRIMARY KEY, sent integer NOT NULL DEFAULT 0)`)
	execute(t, db, `INSERT INTO events (id) VALUES ('a')`)
	table := NewTable(db, MySQL, TableConfig[string]{
		Table: "events", Key: []string{"id"}, KeyOf: func(id string) []any { return []any{id} }, Columns: []string{"id"},
		Scan:    func(scan func(...any) error) (id string, err error) { return id, scan(&id) },
		Pending: "sent = 0", Mark: "sent = 1", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, table.Migrate(t.Context()))
	s := table.Source()
	rows, err := s.Fetch(t.Context(), 10)
	require.NoError(t, err)
	execute(t, db, `DELETE FROM events`)
	execute(t, db, `INSERT INTO events (id) VALUES ('A')`)
	require.NoError(t, s.Mark(t.Context(), rows))
	rows, err = s.Fetch(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []string{"A"}, rows)
}

// In strict order, keys of other letters are other keys too.
func TestAMySQLTablesOrderKeysOfOtherLetters(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["strict"], 0)
	r.add(t, r.db, 1, "a", "A", "a", "a ")
	s := r.table().Source()
	rows, _ := fetchNames(t, s, 1)
	require.NoError(t, s.Fail(t.Context(), failing(nil, rows...)))
	_, names := fetchNames(t, s, 10)
	require.Equal(t, []string{"A", "a "}, names)
}

func TestAMySQLTableIsHeldAgainstTheCatalogue(t *testing.T) {
	for name, c := range map[string]struct{ create, field, says string }{
		"unique in part":        {`CREATE TABLE events (id varchar(100) NOT NULL, UNIQUE (id(10)))`, "TableConfig.Key", "is not unique"},
		"no transactions":       {`CREATE TABLE events (id integer PRIMARY KEY) ENGINE = MyISAM`, "TableConfig.Table", "ENGINE = InnoDB"},
		"by the zone's time":    {`CREATE TABLE events (id timestamp(6) PRIMARY KEY)`, "TableConfig.Key", "the type timestamp"},
		"of inexact numbers":    {`CREATE TABLE events (id double PRIMARY KEY)`, "TableConfig.Key", "the type double"},
		"in part, as text only": {`CREATE TABLE events (id text NOT NULL, n integer NOT NULL, UNIQUE (id(10)))`, "TableConfig.Key", "is not unique"},
	} {
		t.Run(name, func(t *testing.T) {
			db := databaseOf(t, MySQL)
			execute(t, db, c.create)
			table := NewTable(db, MySQL, ownTables(MySQL)["updates"].config)
			_, fetched := table.Source().Fetch(t.Context(), 1)
			for _, err := range []error{table.Migrate(t.Context()), fetched} {
				require.ErrorContains(t, err, c.field[len("TableConfig."):])
				require.ErrorContains(t, err, c.says)
			}
		})
	}
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 1)
	r.db = openMySQLAs(t, r.db, map[string]string{"autocommit": "0"}, func(*mysql.Config) {})
	require.ErrorContains(t, NewTable(r.db, MySQL, r.config).Migrate(t.Context()), "autocommit")
}

// A table of another database, beside which the tables of the relay are.
func TestAMySQLTableOfAnotherDatabase(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 2)
	home := namesIn(t, r.db, "SELECT DATABASE()")[0]
	r.db = openMySQL(t, mytest.Database(t), spelledAsElsewhere)
	r.config.Table = "`" + home + "`.events"
	s := r.table().Source()
	rows, names := fetchNames(t, s, 10)
	require.Equal(t, []string{"1", "2"}, names)
	require.NoError(t, s.Fail(t.Context(), failing(nil, rows[:1]...)))
	require.NoError(t, s.Mark(t.Context(), rows[1:]))
	require.Equal(t, 1, r.count(home+".events_courier"))
	require.Equal(t, 1, r.count(home+".courier_migrations"))
	r.config.Table = "no such.events"
	require.ErrorContains(t, NewTable(r.db, MySQL, r.config).Migrate(t.Context()), "is not a table")
}

// A user with the rights that the README names, and no others, relays a table.
func TestAMySQLTablesRights(t *testing.T) {
	for _, name := range []string{"updates", "deletes"} {
		t.Run(name, func(t *testing.T) {
			r := newRelayed(t, MySQL, ownTables(MySQL)[name], 3)
			r.table()
			home := namesIn(t, r.db, "SELECT DATABASE()")[0]
			user := "u_" + home[len("courier_"):]
			execute(t, r.db, "CREATE USER "+user+" IDENTIFIED BY 'secret'")
			admin := r.db
			t.Cleanup(func() { _, _ = admin.ExecContext(context.Background(), "DROP USER "+user) })
			execute(t, admin, "GRANT SELECT ON "+home+".events TO "+user)
			r.db = openMySQLAs(t, admin, spelledAsElsewhere, func(c *mysql.Config) { c.User, c.Passwd = user, "secret" })
			_, err := NewTable(r.db, MySQL, r.config).Source().Fetch(t.Context(), 1)
			require.ErrorContains(t, err, "a relay needs to SELECT in the table")
			right := map[string]string{"updates": "UPDATE", "deletes": "DELETE"}[name]
			execute(t, admin, "GRANT "+right+" ON "+home+".events TO "+user)
			for _, table := range []string{"events_courier", "events_courier_batches"} {
				execute(t, admin, "GRANT SELECT, INSERT, UPDATE, DELETE ON "+home+"."+table+" TO "+user)
			}
			execute(t, admin, "GRANT SELECT ON "+home+".courier_migrations TO "+user)
			s := r.table().Source()
			rows, _ := fetchNames(t, s, 10)
			require.NoError(t, s.Fail(t.Context(), failing(nil, rows[0])))
			require.NoError(t, s.Release(t.Context(), rows[1:2], 0))
			require.NoError(t, s.Renew(t.Context(), rows[2:]))
			require.NoError(t, s.Mark(t.Context(), rows[2:]))
			_, err = s.Lag(t.Context())
			require.NoError(t, err)
		})
	}
}

// Each statement that creates a table commits: an end between two of them, and several
// processes at once, are no obstacle.
func TestMigrateOfAMySQLTableThatWasEndedHalfWay(t *testing.T) {
	for _, undo := range []string{`DROP TABLE events_courier_batches`, `DELETE FROM courier_migrations`, `DROP TABLE courier_migrations`} {
		t.Run(undo, func(t *testing.T) {
			r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 1)
			r.table()
			execute(t, r.db, `DELETE FROM courier_migrations`)
			if undo != `DELETE FROM courier_migrations` {
				execute(t, r.db, undo)
			}
			var group sync.WaitGroup
			for range 4 {
				table := NewTable(r.db, MySQL, r.config)
				group.Go(func() {
					if err := table.Migrate(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			_, names := fetchNames(t, r.table().Source(), 10)
			require.Equal(t, []string{"1"}, names)
			require.Equal(t, 1, r.count("courier_migrations"))
		})
	}
}

// A connection that is lost inside a fetch leaves neither the turn nor a lease behind, and the
// fetch is made on another one.
func TestAMySQLTablesFetchWhoseConnectionIsLost(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 3)
	scan := r.config.Scan
	ids := make(chan int64, 1)
	r.config.Scan = func(read func(...any) error) (happening, error) {
		select {
		case id := <-ids:
			execute(t, r.db, fmt.Sprintf("KILL %d", id))
		default:
		}
		return scan(read)
	}
	table := r.table()
	s := table.Source()
	_, names := fetchNames(t, s, 1)
	require.Equal(t, []string{"1"}, names)
	r.db.SetMaxIdleConns(1)
	conn, err := r.db.Conn(t.Context()) // the one that the fetch is given next
	require.NoError(t, err)
	var id int64
	require.NoError(t, conn.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id))
	ids <- id
	require.NoError(t, conn.Close())
	_, names = fetchNames(t, s, 10)
	require.Equal(t, []string{"2", "3"}, names)
	require.Empty(t, ids)
	require.Equal(t, 2, r.count("events_courier_batches"))
}

// What a fetch sets for its transaction is gone with it, and so is the turn.
func TestAMySQLTablesConnectionIsAsItWas(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 1)
	s := r.table().Source()
	r.db.SetMaxOpenConns(1)
	const settings = `SELECT concat(@@SESSION.wait_timeout, ' ', @@SESSION.net_write_timeout, ' ', @@SESSION.autocommit)`
	before := namesIn(t, r.db, settings)
	rows, _ := fetchNames(t, s, 10)
	require.NoError(t, s.Mark(t.Context(), rows))
	require.Equal(t, before, namesIn(t, r.db, settings))
	conn, err := r.db.Conn(t.Context())
	require.NoError(t, err)
	_, err = mysqlIsolated(t.Context(), conn, func(tx *sql.Tx) (bool, error) {
		got, err := texts(t.Context(), tx, `SELECT concat(@@SESSION.wait_timeout, ' ', @@SESSION.net_write_timeout)`)
		require.Equal(t, []string{"30 30"}, got, "for how long others would wait for a relay that is frozen or gone without a sign")
		return true, err
	})
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Equal(t, before, namesIn(t, r.db, settings))
	require.Zero(t, count(t, r.db, `SELECT count(*) FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = CONNECTION_ID()`))
}

// Leases that were emptied by hand, with the row of the turn, do no harm.
func TestAMySQLTablesLeasesThatWereDeleted(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 2)
	s := r.table().Source()
	rows, _ := fetchNames(t, s, 1)
	execute(t, r.db, `TRUNCATE events_courier_batches`)
	require.Len(t, lostIndices(s.Renew(t.Context(), rows)), 1)
	_, names := fetchNames(t, s, 10)
	require.Equal(t, []string{"1", "2"}, names)
	require.Equal(t, 1, count(t, r.db, `SELECT count(*) FROM events_courier_batches WHERE id = 1`))
}

// A lease that is over while its owner settles it keeps its rows until that is done.
func TestAMySQLTablesLeaseThatEndsWhileItIsSettled(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 2)
	s, other := r.table().Source(), r.table().Source()
	_, _ = fetchNames(t, s, 1)
	r.advance(DefaultTableLease + time.Second)
	tx, err := r.db.BeginTx(t.Context(), mysqlGrammar().isolated)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SELECT 1 FROM events_courier_batches WHERE id > 1 FOR UPDATE`)
	require.NoError(t, err)
	_, names := fetchNames(t, other, 10)
	require.Equal(t, []string{"2"}, names)
	require.NoError(t, tx.Rollback())
	_, names = fetchNames(t, other, 10)
	require.Equal(t, []string{"1"}, names)
}

// A deadlock takes a transaction back, which is tried again inside.
func TestAMySQLTablesMarkInADeadlock(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 400)
	s := r.table().Source()
	rows, _ := fetchNames(t, s, 2)
	tx, err := r.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	// It has changed more, so that the database ends the other.
	_, err = tx.ExecContext(t.Context(), `UPDATE events SET name = concat(name, '!') WHERE id > 1`)
	require.NoError(t, err)
	marked := make(chan error)
	go func() { marked <- s.Mark(t.Context(), rows) }()
	require.Eventually(t, func() bool {
		return count(t, r.db, `SELECT count(*) FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE '%UPDATE JSON_TABLE%'
			AND trx_query LIKE concat('%', DATABASE(), '%')`) == 1
	}, 20*time.Second, 150*time.Millisecond, "the server looks anew only if it was not asked for 100 ms")
	_, err = tx.ExecContext(t.Context(), `UPDATE events SET name = concat(name, '!') WHERE id = 1`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit())
	require.NoError(t, <-marked)
	require.Equal(t, 2, count(t, r.db, `SELECT count(*) FROM events WHERE sent_at IS NOT NULL`))
}

func TestErrorsOfMySQL(t *testing.T) {
	of := func(code uint16) error {
		return fmt.Errorf("doing: %w", errors.Join(errors.New("also"), &mysql.MySQLError{Number: code, SQLState: [5]byte{'H', 'Y', '0', '0', '0'}, Message: "Error 7: of the text"}))
	}
	require.Equal(t, 1213, mysqlCode(of(1213)))
	require.Equal(t, 1205, mysqlCode(&mysql.MySQLError{Number: 1205, Message: "as of an old server"}))
	require.Zero(t, mysqlCode(errors.New("the record says Error 1213 (40001): no")))
	require.Zero(t, mysqlCode(nil))
	g := mysqlGrammar()
	for _, code := range []uint16{1213, 1205} {
		require.True(t, g.conflict(of(code)))
	}
	require.False(t, g.conflict(of(1062)))
	for _, err := range []error{driver.ErrBadConn, mysql.ErrInvalidConn, of(1290), of(1047), of(1053), of(1836)} {
		require.True(t, g.broken(fmt.Errorf("marking: %w", err)), err)
	}
	require.False(t, g.broken(of(1213)))
	for err, says := range map[error]string{
		of(1290): "connect to the primary", of(1040): "no connection left", of(1153): "max_allowed_packet", mysql.ErrPktTooLarge: "maxAllowedPacket",
		mysql.ErrInvalidConn: "SetConnMaxLifetime", of(1205): "INNODB_TRX", of(1665): "binlog_format", of(1146): "call Migrate first", of(1045): "DSN",
		of(1969): "max_statement_time", of(1213): "each other's way",
	} {
		require.Contains(t, mysqlAdvice(err), says)
	}
	for err, says := range map[error]string{
		of(1142): "a relay needs to SELECT", of(1451): "a foreign key", of(1064): "the SQL in TableConfig", of(1365): "cannot be computed", of(1071): "3072",
		of(1290):                                "connect to the primary",
		errors.New("sql: Scan error on column"): "into a variable that cannot hold it",
		errors.New("unsupported Scan, storing driver.Value type []uint8 into type *time.Time"): "parseTime=true",
	} {
		require.Contains(t, mysqlTableAdvice(err), says)
	}
	require.Empty(t, mysqlTableAdvice(of(1)))
}

// A connection that leads to a server which takes no writes does not go back to the pool.
func TestAMySQLTablesConnectionToAReadOnlyServer(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 1)
	s := r.table().Source()
	rows, _ := fetchNames(t, s, 10)
	r.db.SetMaxOpenConns(1) // which is read-only from now on
	execute(t, r.db, "SET SESSION TRANSACTION READ ONLY")
	require.ErrorContains(t, s.Mark(t.Context(), rows), "connect to the primary")
	require.NoError(t, s.Mark(t.Context(), rows))
}

func TestWhatThereIsNotInMySQL(t *testing.T) {
	db := openMySQL(t, "root@tcp(127.0.0.1:1)/x", nil)
	for want, err := range map[string]error{
		"dialect is couriersql.MySQL":                      NewSink(db, MySQL, SinkConfig[string]{}).Validate(),
		"WithWakeUp is for PostgreSQL: MySQL tells nobody": New(db, MySQL, WithWakeUp()).Source().Validate(),
		"WithMaxCrashes is not for MySQL and MariaDB":      New(db, MySQL, WithMaxCrashes(3)).Source().Validate(),
		"is too long in MySQL, where tables are beside it": New(db, MySQL, WithTable(strings.Repeat("a", 41))).Source().Validate(),
		"dialect has no transactions of pgx":               New(db, MySQL).WritePgx(t.Context(), nil, named("a")...),
		"WithStrictOrder does not go with WithLease":       New(db, Postgres, WithStrictOrder(), WithLease(time.Minute)).Source().Validate(),
		"couriersql: migrating courier_outbox: dial tcp":   New(db, MySQL, WithStrictOrder(), WithLease(time.Minute)).Migrate(t.Context()),
	} {
		require.ErrorContains(t, err, want)
	}
}

// A mark waits for no row that another transaction writes meanwhile, however few rows there are.
func TestAMySQLTableWithAnOpenWriter(t *testing.T) {
	for _, mark := range []string{"updates", "deletes"} {
		r := newRelayed(t, MySQL, ownTables(MySQL)[mark], 2)
		s := r.table().Source()
		first, names := fetchNames(t, s, 10)
		require.Equal(t, []string{"1", "2"}, names)
		tx, err := r.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = tx.ExecContext(t.Context(), `INSERT INTO events (name) VALUES ('late')`)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		require.NoError(t, s.Mark(ctx, first))
		cancel()
		require.NoError(t, tx.Commit())
		_, names = fetchNames(t, s, 10)
		require.Len(t, names, 1)
	}
}

// A fetch waits for the turn no longer than it may, and does not take it after that.
func TestAMySQLTablesTurnThatSomebodyHolds(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 2)
	table := r.table()
	s := table.Source()
	first, names := fetchNames(t, s, 1)
	require.Equal(t, []string{"1"}, names)
	tx, err := r.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SELECT 1 FROM events_courier_batches WHERE id = 1 FOR UPDATE`)
	require.NoError(t, err)
	table.timeout = 200 * time.Millisecond
	_, err = s.Fetch(t.Context(), 10)
	require.ErrorIs(t, err, ErrQueryTimeout)
	table.timeout = time.Minute
	require.NoError(t, s.Renew(t.Context(), first), "what is in hand needs no turn")
	require.NoError(t, s.Mark(t.Context(), first))
	require.NoError(t, tx.Rollback())
	_, names = fetchNames(t, s, 10)
	require.Equal(t, []string{"2"}, names)
	require.Equal(t, 1, r.count("events_courier_batches"))
}
