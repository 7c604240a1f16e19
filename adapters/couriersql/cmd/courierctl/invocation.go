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
	"strings"
	"text/tabwriter"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// invocation is one command on one outbox.
type invocation struct {
	name   string
	args   []string
	stdout io.Writer

	flags   *flag.FlagSet
	db      string
	table   string
	json    bool
	dryRun  bool
	timeout time.Duration

	operands []string
	options  []couriersql.Option // of the command's own
	create   bool                // a SQLite file that does not exist
}

func (i *invocation) do(ctx context.Context, command func(context.Context, *invocation) error) error {
	i.flags = flag.NewFlagSet(i.name, flag.ContinueOnError)
	i.flags.SetOutput(io.Discard) // errors are printed by run
	i.flags.StringVar(&i.db, "db", os.Getenv("COURIER_DB"), "the `DSN` of PostgreSQL, or the path of a SQLite file; $COURIER_DB without it")
	i.flags.StringVar(&i.table, "table", couriersql.DefaultTable, "the outbox table")
	i.flags.BoolVar(&i.json, "json", false, "print one JSON value")
	i.flags.DurationVar(&i.timeout, "timeout", 30*time.Second, "for all of it")
	return command(ctx, i)
}

// parse takes the arguments once the command has declared its flags, which may
// stand before, between or behind the operands. It returns false when it was
// asked for help.
func (i *invocation) parse(operands bool) (bool, error) {
	args := i.args
	for {
		if err := i.flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return false, helpOf(i.name, i.flags, i.stdout)
			}
			return false, fmt.Errorf("%w: see courierctl %s -h", err, i.name)
		}
		if i.flags.NArg() == 0 {
			break
		}
		i.operands = append(i.operands, i.flags.Arg(0))
		args = i.flags.Args()[1:]
	}
	if !operands && len(i.operands) > 0 {
		return false, fmt.Errorf("unexpected argument %q: see courierctl %s -h", i.operands[0], i.name)
	}
	return true, nil
}

// with opens the outbox for work.
func (i *invocation) with(ctx context.Context, work func(context.Context, *couriersql.Outbox) error) error {
	driver, dsn, dialect, err := i.database()
	if err != nil {
		return err
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return fmt.Errorf("-db: %w", err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(2)
	outbox := couriersql.New(db, dialect, append(i.options, couriersql.WithTable(i.table))...)
	defer func() { _ = outbox.Close() }()
	ctx, cancel := context.WithTimeoutCause(ctx, i.timeout, fmt.Errorf("-timeout of %v has passed", i.timeout))
	defer cancel()
	return work(ctx, outbox)
}

// database tells which kind it is.
func (i *invocation) database() (driver, dsn string, dialect couriersql.Dialect, err error) {
	switch {
	case i.db == "":
		return "", "", 0, errors.New("-db: pass the DSN of PostgreSQL or the path of a SQLite file, or set COURIER_DB")
	case strings.HasPrefix(i.db, "postgres://"), strings.HasPrefix(i.db, "postgresql://"),
		strings.Contains(i.db, "host="), strings.Contains(i.db, "dbname="), strings.Contains(i.db, "service="):
		return "pgx", i.db, couriersql.Postgres, nil
	}
	path := strings.TrimPrefix(i.db, "sqlite:")
	if _, err := os.Stat(path); err != nil && !i.create { // the driver would make one
		return "", "", 0, fmt.Errorf("-db %s: there is no such file: pass the path of a SQLite file, or a DSN such as postgres://user@host/database", path)
	}
	return "sqlite", couriersql.SQLiteDSN(path), couriersql.SQLite, nil
}

// print writes a value as JSON, or as text.
func (i *invocation) print(value any, text func(w io.Writer)) error {
	if i.json {
		encoder := json.NewEncoder(i.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(value)
	}
	table := tabwriter.NewWriter(i.stdout, 0, 0, 2, ' ', 0)
	text(table)
	return table.Flush()
}

func printf(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

// oneLine is a text that fits into a table.
func oneLine(text string) string {
	const longest = 100
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > longest {
		return string(runes[:longest-1]) + "…"
	}
	return text
}
