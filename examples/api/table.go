package main

import (
	"context"
	"database/sql"
	"errors"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"modernc.org/sqlite"
)

// table is the destination, with the cursor of the source.
type table struct{ db *sql.DB }

func open(ctx context.Context, file string) (*table, error) {
	db, err := sql.Open("sqlite", couriersql.SQLiteDSN(file))
	if err != nil {
		return nil, err
	}
	_, err = db.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL CHECK (price >= 0));
		CREATE TABLE IF NOT EXISTS cursors (source TEXT PRIMARY KEY, cursor TEXT NOT NULL)`)
	if err != nil {
		_ = db.Close()
		return nil, err
	}
	return &table{db}, nil
}

// upsert stores an item. It may store it again: that changes nothing.
func (t *table) upsert(ctx context.Context, e entry) error {
	_, err := t.db.ExecContext(ctx, `INSERT INTO items VALUES (?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = excluded.price`, e.ID, e.Name, e.Price)
	const constraint = 19 // SQLITE_CONSTRAINT, in the low byte
	if refused := (*sqlite.Error)(nil); errors.As(err, &refused) && refused.Code()&0xff == constraint {
		return courier.Permanent(err)
	}
	return err
}

func (t *table) cursor(ctx context.Context) (cursor string, err error) {
	err = t.db.QueryRowContext(ctx, `SELECT cursor FROM cursors WHERE source = 'items'`).Scan(&cursor)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil // the first page
	}
	return cursor, err
}

func (t *table) saveCursor(ctx context.Context, cursor string) error {
	_, err := t.db.ExecContext(ctx, `INSERT INTO cursors VALUES ('items', ?)
		ON CONFLICT (source) DO UPDATE SET cursor = excluded.cursor`, cursor)
	return err
}
