package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
	_ "github.com/go-sql-driver/mysql"
	"github.com/gofrs/flock"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"
)

// database is the business table and the outbox, in one database.
type database struct {
	*sql.DB
	outbox *couriersql.Outbox
	sql    statements
	name   string       // the head of all its message IDs
	lock   *flock.Flock // two relays on one SQLite outbox would deliver everything twice; nil elsewhere
}

// The business table takes rows of any shape: what is in them is JSON. The
// other one holds a name for the database, for message IDs that are the same
// in every run with one database and in no other database: a server outside
// may keep the messages of many.
type statements struct {
	createOrders, createName, createSeen              string
	insertOrder, insertName, insertSeen, insertByHand string
}

var (
	usual = statements{
		createOrders: `CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, body TEXT NOT NULL)`,
		createName:   `CREATE TABLE IF NOT EXISTS demo_name ("only" INTEGER PRIMARY KEY CHECK ("only" = 1), name TEXT NOT NULL)`,
		createSeen:   `CREATE TEMPORARY TABLE seen (id TEXT PRIMARY KEY, copies INTEGER NOT NULL)`,
		insertSeen:   `INSERT INTO seen VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET copies = seen.copies + 1`,
		insertOrder:  `INSERT INTO orders (id, body) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
		insertName:   `INSERT INTO demo_name VALUES (1, $1) ON CONFLICT DO NOTHING`,
		insertByHand: `INSERT INTO courier_outbox (id, topic, key, payload, headers, trace, created_at) VALUES ($1, $2, '', $3, $4, '', $5)`,
	}
	inMySQL = statements{
		createOrders: "CREATE TABLE IF NOT EXISTS orders (id VARBINARY(2000) PRIMARY KEY, body LONGTEXT NOT NULL) CHARACTER SET utf8mb4",
		createName:   "CREATE TABLE IF NOT EXISTS demo_name (`only` INTEGER PRIMARY KEY CHECK (`only` = 1), name TEXT NOT NULL)",
		createSeen:   "CREATE TEMPORARY TABLE seen (id VARBINARY(2000) PRIMARY KEY, copies INTEGER NOT NULL)",
		insertSeen:   "INSERT INTO seen VALUES (?, 1) ON DUPLICATE KEY UPDATE copies = copies + 1",
		insertOrder:  "INSERT INTO orders (id, body) VALUES (?, ?) ON DUPLICATE KEY UPDATE id = id", // which touches no row that is there
		insertName:   "INSERT INTO demo_name VALUES (1, ?) ON DUPLICATE KEY UPDATE name = name",
		insertByHand: "INSERT INTO courier_outbox (id, topic, `key`, payload, headers, trace, created_at) VALUES (?, ?, '', ?, ?, '', ?)",
	}
)

func openDatabase(ctx context.Context, path string) (_ *database, err error) {
	if folder := filepath.Dir(path); !isFolder(folder) {
		return nil, fmt.Errorf("-db %s: there is no folder %s: create it, or pass a path in one that exists", path, folder)
	}
	lock := flock.New(path + ".lock") // which the system gives back when the process dies
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("-db %s: %w: pass the path of an SQLite file, or of one to create, that this process may write", path, err)
	case !locked:
		return nil, fmt.Errorf("-db %s: another run has it: wait for its end, or pass another path", path)
	}
	pool, err := sql.Open("sqlite", couriersql.SQLiteDSN(path))
	if err != nil {
		_ = lock.Unlock()
		return nil, err
	}
	// SQLite has one writer at a time. With one connection, writer and relay
	// take turns in the order in which they ask.
	pool.SetMaxOpenConns(1)
	db := &database{DB: pool, outbox: couriersql.New(pool, couriersql.SQLite), sql: usual, lock: lock}
	defer func() {
		if err != nil {
			db.close()
			err = fmt.Errorf("-db %s: %w", path, err)
		}
	}()
	var columns, known int
	err = db.QueryRowContext(ctx, `SELECT count(*), count(*) FILTER (WHERE name IN ('id', 'body')) FROM pragma_table_info('orders')`).Scan(&columns, &known)
	if err != nil {
		return nil, fmt.Errorf("%w: pass the path of an SQLite file, or of one to create, that this process may write", err)
	}
	if columns > 0 && (columns != 2 || known != 2) {
		return nil, errors.New("it has a table orders of another program: pass another path")
	}
	return db, db.prepare(ctx)
}

// openPostgres needs no lock: relays of several runs share the outbox.
func openPostgres(ctx context.Context, dsn string) (*database, error) {
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, fmt.Errorf("-pg: %w", err)
	}
	db := &database{DB: pool, outbox: couriersql.New(pool, couriersql.Postgres, couriersql.WithWakeUp()), sql: usual}
	if err := db.prepare(ctx); err != nil {
		db.close()
		return nil, fmt.Errorf("-pg: %w", err)
	}
	return db, nil
}

// openMySQL needs no lock either.
func openMySQL(ctx context.Context, dsn string) (*database, error) {
	pool, err := sql.Open("mysql", dsn)
	if err != nil {
		return nil, fmt.Errorf("-mysql: %w", err)
	}
	db := &database{DB: pool, outbox: couriersql.New(pool, couriersql.MySQL), sql: inMySQL}
	if err := db.prepare(ctx); err != nil {
		db.close()
		return nil, fmt.Errorf("-mysql: %w", err)
	}
	return db, nil
}

// prepare creates what is not there.
func (db *database) prepare(ctx context.Context) error {
	if err := db.outbox.Migrate(ctx); err != nil {
		return err
	}
	for _, text := range []string{db.sql.createOrders, db.sql.createName} {
		if _, err := db.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	if _, err := db.ExecContext(ctx, db.sql.insertName, rand.Text()[:8]); err != nil {
		return err
	}
	return db.QueryRowContext(ctx, `SELECT name FROM demo_name`).Scan(&db.name)
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (db *database) close() {
	_ = db.outbox.Close()
	_ = db.Close()
	if db.lock != nil {
		_ = db.lock.Unlock()
	}
}

// state is what a database holds.
type state struct{ written, pending int64 }

func (db *database) state(ctx context.Context) (s state, err error) {
	pending, err := db.outbox.Pending(ctx)
	if err != nil {
		return s, err
	}
	s.pending = int64(pending)
	return s, db.QueryRowContext(ctx, `SELECT count(*) FROM orders`).Scan(&s.written)
}

// writeAll writes orders until there are no more or ctx ends.
func (db *database) writeAll(ctx context.Context, orders iter.Seq2[order, error], counts *counts) error {
	for o, err := range orders {
		if err != nil {
			return err
		}
		written, err := db.write(ctx, o)
		switch {
		case ctx.Err() != nil:
			return nil // the order is not written, or is and will be relayed
		case err != nil:
			return fmt.Errorf("writing order %s: %w", o.name, err)
		case !written:
			counts.skipped()
		}
	}
	return nil
}

// write is the outbox pattern: the order and the message that tells of it, in
// one transaction. It returns false when an earlier run has written the order.
func (db *database) write(ctx context.Context, o order) (bool, error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	id := db.name + "-" + o.name
	result, err := tx.ExecContext(ctx, db.sql.insertOrder, id, string(o.body))
	if err != nil {
		return false, err
	}
	if added, err := result.RowsAffected(); err != nil || added == 0 {
		return false, err
	}
	if o.rawHeaders == "" {
		err = db.outbox.Write(ctx, tx, couriersql.Message{ID: id, Topic: o.topic, Payload: o.body})
	} else {
		err = db.writeByHand(ctx, tx, id, o)
	}
	if err != nil {
		return false, err
	}
	return true, tx.Commit()
}

// writeByHand is a program that fills the outbox without the library, and does
// not know what belongs there.
func (db *database) writeByHand(ctx context.Context, tx *sql.Tx, id string, o order) error {
	var created any = 0 // microseconds
	if db.outbox.Dialect() == couriersql.Postgres {
		created = time.Unix(0, 0)
	}
	_, err := tx.ExecContext(ctx, db.sql.insertByHand, id, o.topic, o.body, o.rawHeaders, created)
	return err
}
