package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/erfanmomeniii/courier"
)

// databaseFile is the path of a connection's database, "" in memory.
const databaseFile = `SELECT file FROM pragma_database_list WHERE name = 'main'`

// file watches the file of a database in SQLite. A file that is removed, or replaced
// by another, as a restore does it, lives on without a name for those who have it
// open: a relay would read it for ever, while others write to the new one.
type file struct {
	mu    sync.Mutex
	asked bool
	path  string      // "" where there is none
	info  fs.FileInfo // of the file that the connections have open
}

// look reports a file that is gone, at every call, and once one that was replaced: its
// connections are closed then, and the next ones open the new file.
func (f *file) look(ctx context.Context, o *Outbox) error {
	f.mu.Lock()
	path, info, asked := f.path, f.info, f.asked
	f.mu.Unlock()
	if !asked {
		if err := o.on(ctx, func(conn *sql.Conn) error { return conn.QueryRowContext(ctx, databaseFile).Scan(&path) }); err != nil {
			return err
		}
	}
	if path == "" {
		f.set(path, nil)
		return nil
	}
	now, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("the file of the database is gone, and what this process reads and writes is lost with it: put it back, and start the programs anew that have it open: %w", err)
	case info == nil || os.SameFile(info, now):
		if info == nil {
			f.set(path, now)
		}
		return nil
	}
	f.set(path, now)
	for range o.db.Stats().Idle {
		conn, err := o.connection(ctx)
		if err != nil {
			return err
		}
		discard(conn)
		_ = conn.Close()
	}
	return fmt.Errorf("the file %s of the database was replaced: this relay goes on with the new one; start other programs anew that have the former one open, as what they write is lost", path)
}

func (f *file) set(path string, info fs.FileInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked, f.path, f.info = true, path, info
}

// checkMemory refuses a database in memory of which each connection of the pool has
// one of its own.
func (d *database) checkMemory(ctx context.Context) error {
	if d.dialect != SQLite || d.db.Stats().MaxOpenConnections == 1 {
		return nil
	}
	for range 2 { // both are held at a time
		conn, err := d.connect(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		var path string
		if err := conn.QueryRowContext(ctx, databaseFile).Scan(&path); err != nil || path != "" {
			return err
		}
		var migrated bool
		if err := conn.QueryRowContext(ctx, d.sql(d.grammar.migrated)).Scan(&migrated); err != nil {
			return err
		}
		if !migrated {
			return &courier.ConfigError{Field: "db", Problem: "is in memory, and each connection of the pool has a database of its own: use a file, or \"file:/name?vfs=memdb\", or call SetMaxOpenConns(1)"}
		}
	}
	return nil
}
