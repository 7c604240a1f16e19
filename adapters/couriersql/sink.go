package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5/pgtype"
)

// ConflictAction is what a [Sink] does with a record whose key a row of the table has.
type ConflictAction int

const (
	// UpdateOnConflict sets the columns of the row that are not of its key to the values of
	// the record. It is the default.
	UpdateOnConflict ConflictAction = iota
	// IgnoreOnConflict leaves the row as it is.
	IgnoreOnConflict
)

// SinkConfig configures [NewSink]. All fields are required but OnConflict and QueryTimeout.
//
// Names are taken as they are, upper and lower case included, and are quoted: a table that was
// created as Orders, without quotes, is named orders in PostgreSQL.
type SinkConfig[T any] struct {
	// Table is the table that the records are written to, with or without a schema: orders,
	// billing.orders. A name that has a dot or a double quote of its own is written as in
	// SQL, in double quotes: billing."orders.2026". In SQLite the schema is that of an
	// attached database.
	Table string

	// Columns are the columns that a record fills. The others get their defaults, and keep
	// what they have when a row is updated.
	Columns []string

	// Values returns the values of a record, one for each of Columns, in their order. It is
	// called once for each attempt, from the goroutine that applies. An error of it is
	// permanent, unless it is a [courier.Skip].
	//
	// A value is what the driver takes as an argument: a number, a string, a bool, a
	// time.Time, a []byte, nil, a driver.Valuer or a pointer to one of them; for PostgreSQL
	// also what pgx knows, such as slices for arrays and any value that is JSON for jsonb. A
	// string is taken by a column of any type of PostgreSQL that can be written as a text.
	Values func(record T) ([]any, error)

	// Key are the columns, of Columns, by which the table knows a record: those of its
	// primary key, or of a unique index that is not deferrable and has no condition. A record
	// that is delivered again, as any may be, is known by them. A record that has NULL in one
	// of them is a permanent error.
	Key []string

	// OnConflict is what becomes of a record whose key a row has. The zero value is
	// [UpdateOnConflict].
	OnConflict ConflictAction

	// QueryTimeout is how long a statement waits for the database, as [WithQueryTimeout]
	// sets it for an outbox. 0 is [DefaultQueryTimeout].
	QueryTimeout time.Duration

	_ struct{}
}

// Sink writes records to a table of the user's own, a batch by one statement. It implements
// [courier.BatchApplier], is made by [NewSink], and is safe for concurrent use.
type Sink[T any] struct {
	*database
	config SinkConfig[T]
	path   []string // the table, perhaps after its schema
	table  atomic.Pointer[sinkTable]
	types  sync.Pool // of *pgtype.Map, one of which is for one goroutine
}

// NewSink returns an applier that writes records to a table, and updates the rows that have
// them already:
//
//	sink := couriersql.NewSink(db, couriersql.Postgres, couriersql.SinkConfig[Order]{
//		Table:   "billing.orders",
//		Columns: []string{"id", "customer", "total"},
//		Values:  func(o Order) ([]any, error) { return []any{o.ID, o.Customer, o.Total}, nil },
//		Key:     []string{"id"},
//	})
//
// The database stays the caller's to close. NewSink opens no connection. Call [Sink.Check] at
// the start of a program. A value that the sink cannot work with is reported as a
// [*courier.ConfigError] by Check, Apply and ApplyBatch, and by a coordinator before it
// fetches.
//
// A record that is delivered again has no further effect, unless a later one of its key was
// written meanwhile, which it overwrites until that one is delivered again too; with
// [courier.WithOrderKey], records of a key are written in order. For other effects than one row
// a record, see [Effects].
func NewSink[T any](db *sql.DB, dialect Dialect, config SinkConfig[T]) *Sink[T] {
	s := &Sink[T]{database: newDatabase(db, dialect), config: config}
	s.notInMySQL("there is no sink: write INSERT … ON DUPLICATE KEY UPDATE in an applier of your own")
	s.types.New = func() any { return pgtype.NewMap() }
	s.config.Columns, s.config.Key = slices.Clone(config.Columns), slices.Clone(config.Key)
	// Its table is no business of Migrate's.
	s.grammar.advice, s.grammar.outdated = s.grammar.sinkAdvice, func(error) bool { return false }
	s.database.table = config.Table
	s.path = dialect.identifiers(config.Table)
	s.waitFor("SinkConfig", config.QueryTimeout)
	if s.path == nil {
		s.misconfigured("SinkConfig.Table", dialect.notATable(config.Table))
	}
	if len(config.Columns) == 0 {
		s.misconfigured("SinkConfig.Columns", "is empty: name the columns that a record fills")
	}
	if config.Values == nil {
		s.misconfigured("SinkConfig.Values", "is nil: pass the function that returns the values of a record, one for each of Columns")
	}
	if len(config.Key) == 0 {
		s.misconfigured("SinkConfig.Key", "is empty: name the columns of a primary key or unique index, by which a record that is delivered again is known")
	}
	if config.OnConflict != UpdateOnConflict && config.OnConflict != IgnoreOnConflict {
		s.misconfigured("SinkConfig.OnConflict", fmt.Sprintf("%d is unknown: pass couriersql.UpdateOnConflict or couriersql.IgnoreOnConflict", config.OnConflict))
	}
	for i, name := range s.config.Columns {
		if name == "" || strings.IndexByte(name, 0) >= 0 || slices.Contains(s.config.Columns[:i], name) {
			s.misconfigured("SinkConfig.Columns", fmt.Sprintf("has %q, which is empty, has a NUL or is there twice", name))
		}
	}
	for i, name := range s.config.Key {
		if !slices.Contains(s.config.Columns, name) || slices.Contains(s.config.Key[:i], name) {
			s.misconfigured("SinkConfig.Key", fmt.Sprintf("has %q, which is not one of Columns, or is there twice", name))
		}
	}
	return s
}

// Validate implements [courier.Validator]. It does not look at the database, see [Sink.Check].
func (s *Sink[T]) Validate() error { return s.fault }

// Check compares the sink with the database: the table and its columns exist, the other
// columns of a row may be left out, a unique index has the columns of the key, and the role
// may write. What is wrong is a [*courier.ConfigError]. The first Apply does the same, and
// with such an error attempts nothing, so that no record is parked for it. Call Check at the
// start of a program, to see the error there.
func (s *Sink[T]) Check(ctx context.Context) error {
	if s.fault != nil {
		return s.fault
	}
	_, err := s.look(ctx)
	return err
}

// Apply writes one record. Its error is the one that ApplyBatch lists for a record.
func (s *Sink[T]) Apply(ctx context.Context, record T) error {
	err := s.ApplyBatch(ctx, []T{record})
	if list, ok := err.(*courier.BatchError); ok {
		return list.Failures[0].Err
	}
	return err
}

// ApplyBatch writes the records by one statement, which in PostgreSQL is a transaction of its
// own; records of more than 4 MiB by several, and in SQLite all by a transaction. Of records
// with one key the last one of the batch is written, with [IgnoreOnConflict] the first.
//
// If the database refuses a value, ApplyBatch divides the batch until the others are written and
// the records are known that fail. It then returns a [*courier.BatchError] with their errors.
// Permanent are the errors of Values, a value that the column's type, a CHECK or NOT NULL does
// not take, and a record of more than 256 MiB. A row that a foreign key, another unique index, an
// exclusion constraint or a trigger refuses is retryable, as other rows may change that. Values
// that cannot be sent are errors in which errors.Is finds [courier.ErrDecode], so that a breaker
// ignores them.
//
// A transaction that the database ends for a serialization failure or a deadlock is tried up
// to four times. Two batches do not wait for each other: the keys of a statement are in one
// order. Any other error, of the connection for example, is one of all records that were not
// written before it. It is retryable, and the records may have been written. A row that the
// table does not have after UpdateOnConflict, for a trigger or a rule, is [ErrSuppressed].
func (s *Sink[T]) ApplyBatch(ctx context.Context, records []T) error {
	switch {
	case s.fault != nil:
		return s.fault
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case len(records) == 0:
		return nil
	}
	table, err := s.known(ctx)
	if err != nil {
		return err
	}
	b := sinkBatch[T]{Sink: s, table: table, errs: make([]error, len(records))}
	if err := b.read(records); err != nil {
		return err
	}
	all := make([]int, 0, len(records))
	for i, err := range b.errs {
		if err == nil {
			all = append(all, i)
		}
	}
	for len(all) > 0 && err == nil {
		part := b.part(all)
		all = all[len(part):]
		err = divide(ctx, part, b.apply, func(i int, err error) { b.errs[i] = err })
	}
	for _, i := range all { // after an error that ended it
		b.errs[i] = err
	}
	if err != nil && !slices.ContainsFunc(b.errs, func(of error) bool { return of != err }) {
		return err // which has nothing to do with the records
	}
	var list courier.BatchError
	for i, err := range b.errs {
		if err != nil {
			list.Add(i, err)
		}
	}
	return list.ErrorOrNil()
}

// known returns the table as it was found, by this call or an earlier one.
func (s *Sink[T]) known(ctx context.Context) (*sinkTable, error) {
	if table := s.table.Load(); table != nil {
		return table, nil
	}
	return s.look(ctx)
}

// sinkBatch is the records of a call.
type sinkBatch[T any] struct {
	*Sink[T]
	table  *sinkTable
	errs   []error // of the records
	rows   [][]any // of a statement that takes values one by one
	cells  []byte  // of one that takes lists: the elements, row by row
	ends   []int   // of the elements in cells
	looked bool    // at the table, for a value that it refuses
}

// unsendable is the error of a record of which no row can be made. The database was not
// asked, so that it is no answer: to a breaker it says as little as a record that cannot be
// decoded.
type unsendable struct{ error }

func (e unsendable) Unwrap() error        { return e.error }
func (e unsendable) Is(target error) bool { return target == courier.ErrDecode }

// read asks for the values of the records.
func (b *sinkBatch[T]) read(records []T) error {
	types := b.types.Get().(*pgtype.Map)
	defer b.types.Put(types)
	if b.dialect == SQLite {
		b.rows = make([][]any, len(records))
	} else {
		b.ends = make([]int, 0, len(records)*len(b.table.columns))
	}
	for i, record := range records {
		values, err := b.config.Values(record)
		switch {
		case err == nil && len(values) != len(b.table.columns):
			return &courier.ConfigError{Field: "SinkConfig.Values", Problem: fmt.Sprintf("returned %s for %s: return one for each of Columns", plural(len(values), "value"), plural(len(b.table.columns), "column"))}
		case err == nil && b.dialect == SQLite:
			b.rows[i], err = b.table.convert(values)
		case err == nil:
			b.cells, b.ends, err = b.table.encode(types, b.cells, b.ends, values)
		}
		for b.dialect != SQLite && len(b.ends) < (i+1)*len(b.table.columns) { // so that the next one finds its place
			b.ends = append(b.ends, len(b.cells))
		}
		if i == 0 { // the others may well be as large
			b.cells = slices.Grow(b.cells, len(b.cells)*len(records))
		}
		if err == nil && b.bytes(i) > maxMessage {
			err = fmt.Errorf("it has %d bytes, and at most %d are written: store it elsewhere, and here where it is", b.bytes(i), maxMessage)
		}
		switch {
		case err == nil:
		case courier.Classify(context.Background(), err) == courier.ClassSkipped:
			b.errs[i] = err
		default:
			b.errs[i] = courier.Permanent(unsendable{fmt.Errorf("couriersql: no row for %s can be made of the record: %w", b.config.Table, err)})
		}
	}
	return nil
}

// start is where the element of a row and column begins.
func (b *sinkBatch[T]) start(row, column int) int {
	if at := row*len(b.table.columns) + column; at > 0 {
		return b.ends[at-1]
	}
	return 0
}

// element is that of a row and column.
func (b *sinkBatch[T]) element(row, column int) []byte {
	return b.cells[b.start(row, column):b.start(row, column+1)]
}

// bytes is the size of a row.
func (b *sinkBatch[T]) bytes(row int) int {
	if b.rows != nil {
		return sizeOf(b.rows[row])
	}
	return b.start(row+1, 0) - b.start(row, 0)
}

// part is the first of the rows, as many as go into one transaction.
func (b *sinkBatch[T]) part(rows []int) []int {
	n, bytes := 0, 0
	for n < len(rows) && bytes < insertBytes {
		bytes += b.bytes(rows[n])
		n++
	}
	return rows[:n]
}

// apply writes rows in one transaction.
func (b *sinkBatch[T]) apply(ctx context.Context, rows []int) error {
	err := b.tries(ctx, func() error {
		return b.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
			if b.dialect == SQLite {
				return b.insertValues(ctx, conn, rows)
			}
			return b.insertLists(ctx, conn, rows)
		})
	})
	if err == nil {
		return nil
	}
	failure := b.failed(err, "writing %s to %s", plural(len(rows), "record"), b.config.Table)
	kind := b.grammar.rowError(err)
	switch {
	case ctx.Err() != nil:
		return failure
	case errors.Is(err, ErrSuppressed):
		return &recordsError{failure}
	case kind == ofTable || kind == refusedForGood && len(rows) == 1 && !b.looked:
		b.looked = true
		switch table, looking := b.look(ctx); {
		case looking != nil && errors.Is(looking, courier.ErrConfig):
			return looking
		case looking == nil && !slices.Equal(table.columns, b.table.columns):
			return failure // the next attempt is by the table as it is now
		}
	}
	switch kind {
	case refused:
		return &recordsError{failure}
	case refusedForGood:
		return &recordsError{courier.Permanent(failure)}
	}
	return failure
}
