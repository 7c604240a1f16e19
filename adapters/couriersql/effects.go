package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Effects returns an applier whose effects happen once: effect writes to the database of
// the inbox by tx, and the note that the record is done is part of the same transaction.
// identity names a record, such as by its primary key: always by the same name, and
// different records by different ones. A record with the name "" is a permanent error.
//
//	applier := couriersql.Effects(inbox, func(o Order) string { return o.ID },
//		func(ctx context.Context, tx *sql.Tx, o Order) error {
//			_, err := tx.ExecContext(ctx, "INSERT INTO orders (id, total) VALUES ($1, $2)", o.ID, o.Total)
//			return err
//		})
//
// The records of a batch that are not done yet are applied one after the other, in one
// transaction. If effect fails, the transaction is rolled back, and the batch is divided
// until it is known which records fail: within one call, effect may be called again for a
// record whose effects were taken back. So whatever effect does beside tx, such as to send
// a mail, may happen more than once. The transaction is effect's to use, and not to end. It
// holds a connection, and keeps other processes from the same records: a call over the
// network does not belong there.
//
// A transaction that the database ends for a serialization failure or a deadlock is tried
// up to four times. If the outcome of a commit is not known, the records fail, and the next
// try finds out. The applier is safe for concurrent use if effect is.
func Effects[T any](inbox *Inbox, identity func(T) string, effect func(ctx context.Context, tx *sql.Tx, record T) error) courier.BatchApplier[T] {
	return BatchEffects(inbox, identity, eachOf(effect))
}

// BatchEffects is [Effects] with an effect that is given the records of a batch together,
// but those that are done already; there is at least one. The slice is the effect's to
// keep. If effect fails, whatever its error, the batch is divided.
func BatchEffects[T any](inbox *Inbox, identity func(T) string, effect func(ctx context.Context, tx *sql.Tx, fresh []T) error) courier.BatchApplier[T] {
	return &effects[T, *sql.Tx]{once: &noted[T]{inbox, identity}, effect: effect, begin: beginSQL}
}

// PgxEffects is [Effects] with a transaction of pgx, for COPY, batches and types of
// PostgreSQL. The database is one of the driver github.com/jackc/pgx/v5/stdlib.
func PgxEffects[T any](inbox *Inbox, identity func(T) string, effect func(ctx context.Context, tx pgx.Tx, record T) error) courier.BatchApplier[T] {
	return PgxBatchEffects(inbox, identity, eachOf(effect))
}

// PgxBatchEffects is [BatchEffects] with a transaction of pgx, as [PgxEffects] has it.
func PgxBatchEffects[T any](inbox *Inbox, identity func(T) string, effect func(ctx context.Context, tx pgx.Tx, fresh []T) error) courier.BatchApplier[T] {
	return &effects[T, pgx.Tx]{once: &noted[T]{inbox, identity}, effect: effect, begin: beginPgx}
}

func eachOf[T, X any](effect func(context.Context, X, T) error) func(context.Context, X, []T) error {
	if effect == nil {
		return nil
	}
	return func(ctx context.Context, tx X, fresh []T) error {
		for _, record := range fresh {
			if err := effect(ctx, tx, record); err != nil {
				return err
			}
		}
		return nil
	}
}

// effects is an applier of records by transactions of the kind X.
type effects[T, X any] struct {
	once   once[T]
	effect func(ctx context.Context, tx X, fresh []T) error
	begin  func(ctx context.Context, d *database, conn *sql.Conn, use func(transacting[X]) error) error
}

// once has the effect of a record happen once.
type once[T any] interface {
	courier.Validator
	tables() *database
	// id names a record, "" if it has no name that others do not have.
	id(record T) string
	// admit returns those of a batch whose effects are not done. It may take all for that
	// at first, which costs less, if finish finds out: repeats is set once it did.
	admit(ctx context.Context, t queries, batch []identified[T], repeats bool) (fresh []identified[T], err error)
	// finish notes that the effects of the fresh are done, after them. It returns an error
	// that isRepeat knows where those of others are done.
	finish(ctx context.Context, t queries, fresh []identified[T]) error
	isRepeat(err error) bool
	// after is what to execute when the transaction is over, "" for nothing.
	after() string
	// committed is told of the batch, and how many were fresh.
	committed(ctx context.Context, batch []identified[T], fresh int)
	// skipped is told of further copies in one call.
	skipped(n int)
}

// queries reads the one column of a result, in a transaction.
type queries func(ctx context.Context, query string, args ...any) ([]string, error)

// transacting is a transaction of either driver.
type transacting[X any] struct {
	tx       X
	texts    queries
	commit   func(context.Context) error
	rollback func() error
	ended    error // of commit and rollback, if the transaction was over before
}

func beginSQL(ctx context.Context, d *database, conn *sql.Conn, use func(transacting[*sql.Tx]) error) error {
	tx, err := conn.BeginTx(ctx, d.grammar.isolated)
	if err != nil {
		return d.failed(err, "beginning a transaction for effects")
	}
	return use(transacting[*sql.Tx]{
		tx: tx, ended: sql.ErrTxDone,
		texts: func(ctx context.Context, query string, args ...any) ([]string, error) {
			return texts(ctx, tx, query, args...)
		},
		commit:   func(context.Context) error { return tx.Commit() },
		rollback: tx.Rollback,
	})
}

func beginPgx(ctx context.Context, d *database, conn *sql.Conn, use func(transacting[pgx.Tx]) error) error {
	return conn.Raw(func(raw any) error {
		driven, ok := raw.(*stdlib.Conn)
		if !ok {
			return errNoPgx
		}
		tx, err := driven.Conn().BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
		if err != nil {
			return d.failed(err, "beginning a transaction for effects")
		}
		return use(transacting[pgx.Tx]{
			tx: tx, ended: pgx.ErrTxClosed,
			texts: func(ctx context.Context, query string, args ...any) ([]string, error) {
				rows, err := tx.Query(ctx, query, args...)
				if err != nil {
					return nil, err
				}
				return pgx.CollectRows(rows, pgx.RowTo[string])
			},
			commit: tx.Commit,
			rollback: func() error {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
				defer cancel()
				return tx.Rollback(ctx)
			},
		})
	})
}

var (
	errNoPgx   = &courier.ConfigError{Field: "db", Problem: "is not one of the driver github.com/jackc/pgx/v5/stdlib, of which PgxEffects and PgxBatchEffects need a transaction: use Effects or BatchEffects"}
	errEnded   = errors.New("couriersql: the effect has ended its transaction, so that records may count as done whose effects are not: leave Commit and Rollback to couriersql, and return an error to have all rolled back")
	errUnnamed = courier.Permanent(errors.New(`couriersql: identity names the record "", so that nobody can tell whether its effect is done`))
)

// Validate implements [courier.Validator].
func (e *effects[T, X]) Validate() error {
	if err := e.once.Validate(); err != nil {
		return err
	}
	_, withPgx := any(e).(*effects[T, pgx.Tx])
	switch {
	case e.effect == nil:
		return &courier.ConfigError{Field: "effect", Problem: "is nil: pass a function that writes to the database"}
	case withPgx && e.once.tables().dialect != Postgres:
		return errNoPgx
	}
	return nil
}

// Apply applies one record.
func (e *effects[T, X]) Apply(ctx context.Context, record T) error {
	err := e.ApplyBatch(ctx, []T{record})
	var list *courier.BatchError
	if errors.As(err, &list) {
		return list.Failures[0].Err
	}
	return err
}

// ApplyBatch applies the records that are not done yet.
func (e *effects[T, X]) ApplyBatch(ctx context.Context, records []T) error {
	if err := e.Validate(); err != nil {
		return err
	}
	ids := make([]string, len(records)) // "" of a record without a name
	met := make(map[string]bool, len(records))
	var batch []identified[T]
	for i, record := range records {
		if ids[i] = e.once.id(record); ids[i] != "" && !met[ids[i]] {
			met[ids[i]] = true
			batch = append(batch, identified[T]{ids[i], record})
		}
	}
	failed := make(map[string]error)
	if err := divide(ctx, batch, e.apply, func(r identified[T], err error) { failed[r.id] = err }); err != nil && len(failed) == len(batch) && !slices.Contains(ids, "") {
		return err // which has nothing to do with the records
	}
	var list courier.BatchError
	for i, id := range ids {
		switch err := failed[id]; {
		case id == "":
			list.Add(i, errUnnamed)
		case err != nil:
			list.Add(i, err)
		case met[id]: // the first of its copies
			met[id] = false
		default:
			e.once.skipped(1)
		}
	}
	return list.ErrorOrNil()
}

// identified is a record and its id.
type identified[T any] struct {
	id     string
	record T
}

// apply applies a batch in one transaction.
func (e *effects[T, X]) apply(ctx context.Context, batch []identified[T]) error {
	repeats := false // some may be done
	return e.once.tables().tries(ctx, func() error {
		err := e.try(ctx, batch, repeats)
		if err != nil && !repeats && ctx.Err() == nil && e.once.isRepeat(err) {
			repeats = true
			err = e.try(ctx, batch, repeats)
		}
		return err
	})
}

func (e *effects[T, X]) try(ctx context.Context, batch []identified[T], repeats bool) error {
	d := e.once.tables()
	return d.boundedBeside(ctx, func(ctx context.Context, beside func(func() error) error) error {
		return d.on(ctx, func(conn *sql.Conn) error {
			panicked := true
			defer func() {
				if panicked {
					_ = conn.Close() // back to the pool
				}
			}()
			err := e.begin(ctx, d, conn, func(t transacting[X]) error { return e.transact(ctx, t, beside, batch, repeats) })
			panicked = false
			if after := e.once.after(); after != "" && ctx.Err() == nil {
				if _, lost := conn.ExecContext(ctx, after); lost != nil {
					discard(conn)
				}
			}
			return err
		})
	})
}

func (e *effects[T, X]) transact(ctx context.Context, t transacting[X], beside func(func() error) error, batch []identified[T], repeats bool) (err error) {
	over := false
	defer func() {
		if !over { // also after a panic; of a connection that is gone, the server takes it back by itself
			_ = t.rollback()
		}
	}()
	endedBy := func(err error) bool { return errors.Is(err, t.ended) && ctx.Err() == nil }
	fresh, err := e.once.admit(ctx, t.texts, batch, repeats)
	if err != nil {
		return err
	}
	if len(fresh) > 0 {
		records := make([]T, len(fresh))
		for i, r := range fresh {
			records[i] = r.record
		}
		if err := beside(func() error { return e.effect(ctx, t.tx, records) }); err != nil {
			over = true
			if endedBy(t.rollback()) {
				return fmt.Errorf("%w: %w", errEnded, err)
			}
			return &recordsError{err}
		}
		if err := e.once.finish(ctx, t.texts, fresh); err != nil {
			if endedBy(err) {
				return errEnded
			}
			return err
		}
	}
	over = true
	d := e.once.tables()
	switch err = t.commit(ctx); {
	case err == nil:
		e.once.committed(ctx, batch, len(fresh))
		return nil
	case endedBy(err):
		return errEnded
	case d.grammar.refused(err):
		return &recordsError{d.failed(err, "committing effects, which are rolled back")}
	}
	return d.failed(err, "committing effects, of which it is not known whether they are done; the next try finds out")
}
