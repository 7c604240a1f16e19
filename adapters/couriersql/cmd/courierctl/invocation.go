package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// invocation is one command on one outbox.
type invocation struct {
	stdout   io.Writer
	operands []string
	flags    *flag.FlagSet

	// What the flags say, of whichever command.
	db, table string
	json      bool
	timeout   time.Duration
	maxLag    time.Duration
	maxDead   int
	limit     int
	after     string
	all       bool
	dryRun    bool
	wakeUp    bool
	olderThan time.Duration
	create    bool                // a SQLite file that does not exist
	options   []couriersql.Option // of the command's own
}

// common declares the flags of every command.
func (i *invocation) common() {
	i.flags.StringVar(&i.db, "db", "", "the `DSN` of PostgreSQL, or the path of a SQLite file; $COURIER_DB without it")
	i.flags.StringVar(&i.table, "table", couriersql.DefaultTable, "the outbox table, by its `NAME`")
	i.flags.BoolVar(&i.json, "json", false, "print one JSON value")
	i.flags.DurationVar(&i.timeout, "timeout", 30*time.Second, "the `TIME` that all of it may take")
}

// validate completes what the flags say.
func (i *invocation) validate() error {
	if i.db == "" {
		i.db = os.Getenv("COURIER_DB")
	}
	if i.timeout <= 0 {
		return fmt.Errorf("-timeout: %v is no time to do it in", i.timeout)
	}
	return nil
}

// with opens the outbox for work.
func (i *invocation) with(ctx context.Context, work func(context.Context, *couriersql.Outbox) error) error {
	db, dialect, err := i.open()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(2)
	outbox := couriersql.New(db, dialect, append(i.options, couriersql.WithTable(i.table))...)
	defer func() { _ = outbox.Close() }()
	passed := fmt.Errorf("-timeout %v has passed", i.timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, i.timeout, passed)
	defer cancel()
	if err = work(ctx, outbox); err != nil && errors.Is(context.Cause(ctx), passed) {
		return fmt.Errorf("%w: %w", passed, err)
	}
	return err
}

// open opens the database that -db names, which no connection is made to yet.
func (i *invocation) open() (*sql.DB, couriersql.Dialect, error) {
	d, err := databaseOf(i.db)
	if err != nil {
		return nil, 0, err
	}
	if d.dialect == couriersql.Postgres {
		db, err := sql.Open("pgx", d.dsn)
		return db, d.dialect, err
	}
	if _, err := os.Stat(d.path); err != nil && !i.create { // the driver would make one
		return nil, 0, fmt.Errorf("-db %s: there is no such file: pass the path of a SQLite file, or a DSN such as postgres://user@host/database", visible(d.path))
	}
	db, err := sql.Open("sqlite", couriersql.SQLiteDSN(d.path))
	return db, d.dialect, err
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
