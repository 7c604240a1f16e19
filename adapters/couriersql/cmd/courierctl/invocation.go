package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/go-sql-driver/mysql"
)

// invocation is one command on one outbox.
type invocation struct {
	stdout   io.Writer
	operands []string
	flags    *flag.FlagSet

	// The values of the flags of all commands.
	db, table string
	json      bool
	timeout   time.Duration
	maxLag    time.Duration
	maxDead   int
	limit     int
	after     string
	branch    *string // nil is all
	key       string  // likewise ""
	reason    string
	dlq       string // a queue that is no outbox's
	all       bool
	dryRun    bool
	wakeUp    bool
	olderThan time.Duration
	create    bool                // a SQLite file that does not exist
	created   string              // that file
	options   []couriersql.Option // of the command's own
}

// common declares the flags of every command.
func (i *invocation) common() {
	i.flags.StringVar(&i.db, "db", "", "the `DSN` of PostgreSQL, or the path of a SQLite file; $COURIER_DB without it")
	i.flags.StringVar(&i.table, "table", couriersql.DefaultTable, "the outbox table, by its `NAME`")
	i.flags.BoolVar(&i.json, "json", false, "print one JSON value")
	i.timeout = 30 * time.Second
	i.duration(&i.timeout, "timeout", "the `TIME` that all of it may take")
}

// duration declares a flag for a time, of which the default is there.
func (i *invocation) duration(d *time.Duration, name, usage string) {
	i.flags.Var((*duration)(d), name, usage)
}

// validate checks the flags, and takes the database from the environment.
func (i *invocation) validate() error {
	if i.db == "" {
		i.db = os.Getenv("COURIER_DB")
	}
	if i.timeout <= 0 {
		return errors.New("-timeout: pass a time above 0, such as 30s")
	}
	return nil
}

// with opens the outbox for work, once it is there and of this program's version.
func (i *invocation) with(ctx context.Context, work func(context.Context, *couriersql.Outbox) error) error {
	return i.withAny(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error {
		have, err := outbox.Version(ctx)
		want := couriersql.SchemaVersion(outbox.Dialect())
		switch {
		case err != nil:
			return err
		case have == 0:
			return i.missing()
		case have < want:
			return fmt.Errorf("the outbox %s has schema version %d, and this program works with version %d: run courierctl migrate", i.table, have, want)
		case have > want:
			return fmt.Errorf("the outbox %s has schema version %d, and this program works with version %d: run a newer courierctl", i.table, have, want)
		}
		if err = work(ctx, outbox); errors.Is(err, couriersql.ErrNotMigrated) {
			return i.missing()
		}
		return err
	})
}

func (i *invocation) missing() error {
	queue := ""
	if i.flags.Lookup("dlq") != nil {
		queue = ", or with -dlq the table of a queue that NewDLQ made"
	}
	return fmt.Errorf("there is no outbox %s in this database: run courierctl migrate, or pass another -table or -db%s", i.table, queue)
}

// withLetters opens the dead letters for work: those of the outbox, or those of a queue
// that is no outbox's, for which there is none.
func (i *invocation) withLetters(ctx context.Context, work func(context.Context, *couriersql.Outbox, *couriersql.DLQ[couriersql.Row]) error) error {
	if i.dlq == "" {
		return i.with(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error { return work(ctx, outbox, outbox.DLQ()) })
	}
	return i.open(ctx, func(ctx context.Context, db *sql.DB, dialect couriersql.Dialect) error {
		err := work(ctx, nil, couriersql.NewDLQ(db, dialect, couriersql.DLQConfig[couriersql.Row]{Table: i.dlq}))
		if errors.Is(err, couriersql.ErrNotMigrated) {
			return fmt.Errorf("there is no queue %s in this database: its Migrate creates the table; or pass another -dlq or -db", visible(i.dlq))
		}
		return err
	})
}

// withAny opens the outbox for work, whether it is there or not.
func (i *invocation) withAny(ctx context.Context, work func(context.Context, *couriersql.Outbox) error) error {
	return i.open(ctx, func(ctx context.Context, db *sql.DB, dialect couriersql.Dialect) error {
		outbox := couriersql.New(db, dialect, append(i.options, couriersql.WithTable(i.table))...)
		defer func() { _ = outbox.Close() }()
		return work(ctx, outbox)
	})
}

// open opens the database for work.
func (i *invocation) open(ctx context.Context, work func(context.Context, *sql.DB, couriersql.Dialect) error) (err error) {
	d, err := databaseOf(i.db)
	if err != nil {
		return err
	}
	driver, dsn := "pgx", d.dsn
	if d.dialect == couriersql.SQLite {
		path, done, err := i.file(d.path)
		if err != nil {
			return fmt.Errorf("-db %s: %w", visible(d.path), err)
		}
		defer done()
		driver, dsn = "sqlite", couriersql.SQLiteDSN(path)
	}
	var db *sql.DB
	if d.dialect == couriersql.MySQL {
		connector, err := mysql.NewConnector(d.mysql)
		if err != nil {
			return errMySQL
		}
		db = sql.OpenDB(connector)
	} else if db, err = sql.Open(driver, dsn); err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(2)
	passed := fmt.Errorf("-timeout %s has passed", inDays(i.timeout))
	ctx, cancel := context.WithTimeoutCause(ctx, i.timeout, passed)
	defer cancel()
	if err = work(ctx, db, d.dialect); err != nil && errors.Is(context.Cause(ctx), passed) {
		return fmt.Errorf("%w: %w", passed, err)
	}
	return err
}

// file returns the SQLite file to open; the driver creates a missing file. The
// trial of a migration gets a temporary file in the same folder instead, which
// done removes.
func (i *invocation) file(path string) (open string, done func(), err error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return "", nil, errors.New("this is a folder: pass the path of a SQLite file")
	case err == nil:
		return path, func() {}, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", nil, withoutPath(err)
	case !i.create:
		return "", nil, errors.New("there is no such file: pass the path of a SQLite file, or a DSN such as postgres://user@host/database or mysql:user@tcp(host)/database; courierctl migrate creates a file")
	}
	i.created = path
	if !i.dryRun {
		return path, func() {}, nil
	}
	folder, err := os.MkdirTemp(filepath.Dir(path), ".courierctl-*")
	if err != nil {
		return "", nil, fmt.Errorf("the file could not be created: %w", withoutPath(err))
	}
	return filepath.Join(folder, "trial.db"), func() { _ = os.RemoveAll(folder) }, nil
}

// withoutPath is the error of a file whose path is told already.
func withoutPath(err error) error {
	var of *fs.PathError
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}

// print writes a value as JSON, or as text.
func (i *invocation) print(value any, text func(t *table)) error {
	if i.json {
		encoded, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return err
		}
		_, err = i.stdout.Write(append(escapedJSON(encoded), '\n'))
		return err
	}
	t := new(table)
	text(t)
	return t.print(i.stdout)
}

func printf(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
