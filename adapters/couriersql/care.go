package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"time"

	"github.com/erfanmomeniii/courier"
)

// This room is what an operator asks of an outbox.

// Lag tells how many rows are due, and for how long the oldest of them has been
// there: since its message was created, or since it was put back by
// [Outbox.Requeue]. Rows that wait for a retry, or are leased, are not due. It counts them
// one by one: ask once a minute, not once a batch.
func (o *Outbox) Lag(ctx context.Context) (courier.Lag, error) { return o.lagBut(ctx, 1, 0) }

// lagBut is the lag without what is in hand, from the first row to the last.
func (o *Outbox) lagBut(ctx context.Context, first, last int64) (courier.Lag, error) {
	if o.fault != nil {
		return courier.Lag{}, o.fault
	}
	var lag courier.Lag
	store, err := o.asStore(ctx)
	if err != nil {
		return courier.Lag{}, o.failed(err, "asking %s for its lag", o.table)
	}
	if err := o.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		lag, err = o.lagOn(ctx, conn, store, first, last)
		return err
	}); err != nil {
		return courier.Lag{}, o.failed(err, "asking %s for its lag", o.table)
	}
	return lag, nil
}

// lagOn asks the store, where the outbox is a table that its relay reads.
func (o *Outbox) lagOn(ctx context.Context, on *sql.Conn, store tableStore, first, last int64) (lag courier.Lag, err error) {
	if store != nil {
		return o.due(ctx, on, store)
	}
	var oldest micros
	rows, err := on.QueryContext(ctx, o.sql(o.grammar.lag), o.timed(first, last)...)
	if err != nil {
		return lag, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	if rows.Next() {
		err = rows.Scan(&lag.Pending, &oldest)
	}
	if lag.Pending > 0 {
		lag.Oldest = max(0, o.now().Sub(time.UnixMicro(int64(oldest))))
	}
	return lag, errors.Join(err, rows.Err())
}

// SchemaVersion is the version that Migrate brings the outbox of a database to.
func SchemaVersion(dialect Dialect) int {
	grammar := sqliteGrammar()
	switch dialect {
	case Postgres:
		grammar = postgresGrammar()
	case MySQL:
		grammar = mysqlGrammar()
	}
	files, _ := fs.Glob(grammar.migrations, "*.sql") // the pattern is a good one
	return len(files)
}

// Version returns the version of the outbox's schema in the database: 0 before
// Migrate, and less than [SchemaVersion] where Migrate has something to do.
func (o *Outbox) Version(ctx context.Context) (int, error) {
	if o.fault != nil {
		return 0, o.fault
	}
	version, err := o.schemaVersion(ctx)
	if err != nil {
		return 0, o.failed(err, "asking for the schema version of %s", o.table)
	}
	return version, nil
}

func (d *database) schemaVersion(ctx context.Context) (version int, err error) {
	err = d.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		version, err = d.versionOn(ctx, conn)
		return err
	})
	return version, err
}

func (d *database) versionOn(ctx context.Context, conn *sql.Conn) (version int, err error) {
	var versions bool
	if err := conn.QueryRowContext(ctx, d.sql(d.grammar.migrated)).Scan(&versions); err != nil || !versions {
		return 0, err
	}
	err = conn.QueryRowContext(ctx, d.sql(d.grammar.version), d.versioned).Scan(&version)
	return version, err
}

// Dialect is the one that New was given.
func (o *Outbox) Dialect() Dialect { return o.dialect }

// Status is what there is in an outbox.
type Status struct {
	Version int           // of the schema; 0 before Migrate
	Pending int           // rows to be delivered
	Due     int           // of them, those that could be delivered now
	Oldest  time.Duration // the age of the oldest row that is due, as by [Outbox.Lag]
	Failing []Failing     // the rows with the most attempts in vain, up to 10
	Dead    int           // dead letters
	Leader  *Leader       // the relay that delivers, of those with [WithStrictOrder]; nil if there is none
}

// Leader is a relay that leads.
type Leader struct {
	Backend     int    // its pid in pg_stat_activity, as in the log
	Application string // the application_name of its connection
}

// Failing is a pending row that failed.
type Failing struct {
	ID       string
	Attempts int
	Error    string
}

const shownFailing = 10

// Status tells what there is. It counts: ask once a minute, not once a second.
// Before Migrate it tells that the version is 0, and nothing else.
func (o *Outbox) Status(ctx context.Context) (Status, error) {
	if o.fault != nil {
		return Status{}, o.fault
	}
	var s Status
	err := o.status(ctx, &s)
	if err != nil {
		return Status{}, o.failed(err, "asking for the status of %s", o.table)
	}
	return s, nil
}

func (o *Outbox) status(ctx context.Context, s *Status) (err error) {
	if s.Version, err = o.schemaVersion(ctx); err != nil || s.Version == 0 {
		return err
	}
	store, err := o.asStore(ctx)
	if err != nil {
		return err
	}
	return o.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
		tx, err := conn.BeginTx(ctx, o.grammar.snapshot) // so that the numbers agree
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		lag, err := o.lagOn(ctx, conn, store, 1, 0) // conn is in the transaction
		if err != nil {
			return err
		}
		s.Due, s.Oldest = lag.Pending, lag.Oldest
		if s.Pending, err = number(ctx, tx, o.sql(o.grammar.pending)); err != nil {
			return err
		}
		if s.Dead, err = number(ctx, tx, o.sql(o.grammar.parked)); err != nil {
			return err
		}
		if o.grammar.leader != "" {
			var l Leader
			switch err := tx.QueryRowContext(ctx, o.sql(o.grammar.leader)).Scan(&l.Backend, &l.Application); {
			case err == nil:
				s.Leader = &l
			case !errors.Is(err, sql.ErrNoRows):
				return err
			}
		}
		rows, err := tx.QueryContext(ctx, o.sql(o.grammar.failing), shownFailing)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }() // what it has to say, Err said
		for rows.Next() {
			var f Failing
			if err := rows.Scan(&f.ID, &f.Attempts, &f.Error); err != nil {
				return err
			}
			s.Failing = append(s.Failing, f)
		}
		return rows.Err()
	})
}

// pruneBatch is how many rows are deleted in one transaction: few enough that
// nothing waits for it.
const pruneBatch = 1000

// Prune deletes rows that were kept ([WithKeep]) and processed before the given
// time, a thousand in a transaction, until there are none or ctx ends. It
// returns how many it deleted, with an error too.
func (o *Outbox) Prune(ctx context.Context, before time.Time) (deleted int, err error) {
	return o.prune(ctx, pruneBatch, false, o.grammar.prune, o.grammar.time(before.UnixMicro()))
}

// prune deletes rows by a statement whose last argument is how many at most, until it finds
// fewer; gently, with pauses in which others have the database.
func (d *database) prune(ctx context.Context, most int64, gently bool, text string, args ...any) (deleted int, err error) {
	if d.fault != nil {
		return 0, d.fault
	}
	args = append(args, most)
	for {
		began := time.Now()
		var result sql.Result
		if err := d.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
			if d.dialect != MySQL {
				result, err = conn.ExecContext(ctx, d.sql(text), args...)
				return err
			}
			_, err = mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) { // else writers would wait for its gap locks
				result, err = tx.ExecContext(ctx, d.sql(text), args...)
				return true, err
			})
			return err
		}); err != nil {
			return deleted, d.failed(err, "pruning %s (deleted so far: %s)", d.table, plural(deleted, "row"))
		}
		n, err := result.RowsAffected()
		if err != nil {
			return deleted, d.failed(err, "pruning %s", d.table)
		}
		deleted += int(n)
		if n < most {
			return deleted, nil
		}
		if gently {
			select {
			case <-time.After(time.Since(began)):
			case <-ctx.Done():
			}
		}
	}
}

// Prunable returns how many rows Prune would delete.
func (o *Outbox) Prunable(ctx context.Context, before time.Time) (int, error) {
	return o.count(ctx, o.grammar.prunable, "prunable rows of "+o.table, o.grammar.time(before.UnixMicro()))
}
