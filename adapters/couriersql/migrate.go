package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Migrate creates the tables or brings them up to the version that this package
// works with. It is one transaction, but in MySQL, where it goes on at the next call if it was
// ended half way. It does nothing the second time, and may be called by several processes at once. Call it at the start of a program: where it
// has nothing to do, it needs no right but to read courier_migrations. An outbox in
// another schema of the search path than the first is migrated where it is, and one that
// [WithTable] names with a schema is migrated there.
//
// The versions of every outbox are recorded in the table courier_migrations. A
// database that is ahead of the program, and a table of the outbox's name with
// columns that the package cannot work with, are refused and left as they are.
//
// Building an index on a large table takes its time: but for the connection, only
// ctx bounds Migrate, and not [WithQueryTimeout].
func (o *Outbox) Migrate(ctx context.Context) error {
	err := o.migrateBy(ctx, o.upgrade)
	if err != nil || o.relayed == nil {
		return err
	}
	store, err := o.relayed.described(ctx)
	if err != nil {
		return err
	}
	return o.relayed.migrateBeside(ctx, store)
}

// migrate is Migrate of a table that is no outbox's.
func (d *database) migrate(ctx context.Context) error { return d.migrateBy(ctx, d.upgrade) }

func (d *database) migrateBy(ctx context.Context, upgrade func(context.Context, *sql.Conn) error) error {
	if d.fault != nil {
		return d.fault
	}
	err := d.exclusively(ctx, upgrade)
	if err == nil {
		err = d.checkMemory(ctx)
	}
	if err != nil {
		return d.failed(err, "migrating %s", d.table)
	}
	return nil
}

// CheckMigrate does all that Migrate does and takes it back, and so returns the
// error that Migrate would return. It takes the same locks as long as it runs. In MySQL, where
// the creation of a table cannot be taken back, it creates nothing, and looks at the version and
// the tables that are there.
func (o *Outbox) CheckMigrate(ctx context.Context) error {
	if o.fault != nil {
		return o.fault
	}
	if o.dialect == MySQL {
		if err := o.checkMigrateInMySQL(ctx); err != nil {
			return o.failed(err, "trying to migrate %s", o.table)
		}
		return nil
	}
	done := errors.New("it would succeed")
	err := o.exclusively(ctx, func(ctx context.Context, conn *sql.Conn) error {
		if err := o.upgrade(ctx, conn); err != nil {
			return err
		}
		return done
	})
	if !errors.Is(err, done) {
		return o.failed(err, "trying to migrate %s", o.table)
	}
	return nil
}

// exclusively runs work in a transaction of the dialect's own kind, which
// database/sql has no option for.
func (d *database) exclusively(ctx context.Context, work func(context.Context, *sql.Conn) error) error {
	conn, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // back to the pool
	if _, err := conn.ExecContext(ctx, d.grammar.begin); err != nil {
		return err
	}
	done, undone := "COMMIT", "ROLLBACK"
	if d.grammar.end != "" {
		done, undone = d.grammar.end, d.grammar.end
	}
	if err = work(ctx, conn); err == nil {
		_, err = conn.ExecContext(ctx, done)
	}
	if err != nil {
		// On a context of its own, as the end of ctx may be what went wrong. A
		// connection that may still be inside the transaction is thrown away.
		if d.bounded(context.WithoutCancel(ctx), func(ctx context.Context) error {
			_, err := conn.ExecContext(ctx, undone)
			return err
		}) != nil {
			discard(conn)
		}
	}
	return err
}

// How long Migrate tries to open a database that is busy: 5 s, as SQLiteDSN's
// busy timeout.
const (
	connectTries = 100
	connectPause = 50 * time.Millisecond
)

// connect waits for other processes that open the same new file. To switch a
// file to WAL, SQLite needs it for itself for a moment; a connection that finds
// it taken then fails at once, whatever its busy timeout.
func (d *database) connect(ctx context.Context) (*sql.Conn, error) {
	for try := 1; ; try++ {
		var conn *sql.Conn
		err := d.bounded(ctx, func(ctx context.Context) (err error) {
			conn, err = d.connection(ctx)
			return err
		})
		if err == nil || try == connectTries || !d.grammar.busy(err) {
			return conn, err
		}
		select {
		case <-time.After(connectPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (o *Outbox) upgrade(ctx context.Context, conn *sql.Conn) error {
	if err := o.database.upgrade(ctx, conn); err != nil || !o.wakeUp {
		return err
	}
	return o.addTrigger(ctx, conn)
}

func (d *database) upgrade(ctx context.Context, conn *sql.Conn) error {
	files, err := fs.Glob(d.migrations, "*.sql")
	if err != nil {
		return err
	}
	if d.grammar.settle != "" {
		if _, err := conn.ExecContext(ctx, d.sql(d.grammar.settle), d.schema); err != nil {
			return err
		}
	}
	// It is not created to be on the safe side: without the right to create tables,
	// a role may call Migrate where nothing is to be done.
	var versions bool
	if err := conn.QueryRowContext(ctx, d.sql(d.grammar.migrated)).Scan(&versions); err != nil {
		return err
	}
	if !versions {
		if _, err := conn.ExecContext(ctx, d.sql(d.grammar.createVersions)); err != nil {
			return err
		}
	}
	var version, elsewhere int
	if err := conn.QueryRowContext(ctx, d.sql(d.grammar.version), d.versioned).Scan(&version); err != nil {
		return err
	}
	if err := conn.QueryRowContext(ctx, d.sql(d.grammar.version), d.elsewhere).Scan(&elsewhere); err != nil {
		return err
	}
	if elsewhere > 0 {
		return fmt.Errorf("the table %s is that of an outbox, or of a queue that NewDLQ made: choose another name", d.dlq)
	}
	if err := tooNew(version, len(files)); err != nil {
		return err
	}
	if version == 0 { // a table of that name is someone else's until it looks like ours
		if err := d.checkShapes(ctx, conn, true); err != nil {
			return err
		}
	}
	for i := version; i < len(files); i++ {
		text, err := fs.ReadFile(d.migrations, files[i])
		if err != nil {
			return err
		}
		// Statement by statement, as that is what a table may already be ahead by
		// of which the version was lost.
		for statement := range strings.SplitSeq(strings.TrimSuffix(d.sql(string(text)), ";\n"), ";\n") {
			if _, err := conn.ExecContext(ctx, statement); err != nil && !d.grammar.addedTwice(err) {
				return fmt.Errorf("%s: %w", files[i], err)
			}
		}
		if _, err := conn.ExecContext(ctx, d.sql(d.grammar.addVersion), d.versioned, i+1, d.grammar.time(d.now().UnixMicro())); err != nil {
			return err
		}
	}
	return d.checkShapes(ctx, conn, false)
}

// tooNew is the error of a database whose schema this program does not know.
func tooNew(version, known int) error {
	if version <= known {
		return nil
	}
	return fmt.Errorf("the database has schema version %d and this program knows versions up to %d: run a program with a newer couriersql", version, known)
}
