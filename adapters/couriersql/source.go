package couriersql

import (
	"context"

	"github.com/erfanmomeniii/courier"
)

// Source hands out the pending rows of an outbox. It is made by
// [Outbox.Source] and safe for concurrent use; all sources of an outbox share
// its prepared statements.
type Source struct{ outbox *Outbox }

var (
	_ courier.Source[Row]     = (*Source)(nil)
	_ courier.Identifier[Row] = (*Source)(nil)
	_ courier.Validator       = (*Source)(nil)
)

// Source returns the source for a polling coordinator.
func (o *Outbox) Source() *Source { return &Source{o} }

// Fetch returns up to limit pending rows in the order in which they were
// written, and the same ones again until they are marked. It does not wait for
// one. The rows are the caller's. With an error there are none.
func (s *Source) Fetch(ctx context.Context, limit int) ([]Row, error) {
	o := s.outbox
	if o.fault != nil {
		return nil, o.fault
	}
	if limit <= 0 { // to SQLite, a negative limit is none
		return nil, nil
	}
	batch, err := o.pendingRows(ctx, limit)
	if err != nil {
		return nil, o.failed(err, "fetching up to %d pending rows of %s", limit, o.table)
	}
	return batch, nil
}

func (o *Outbox) pendingRows(ctx context.Context, limit int) ([]Row, error) {
	fetch, err := o.fetch.prepared(ctx, o.db)
	if err != nil {
		return nil, err
	}
	rows, err := fetch.QueryContext(ctx, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	var batch []Row
	var row Row
	into := []any{&row.Seq, &row.ID, &row.Topic, &row.Key, &row.Payload, &row.Headers, &row.Trace, &row.CreatedAt}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		if batch == nil { // an idle poll allocates no batch, a huge limit no huge one
			batch = make([]Row, 0, min(limit, 1000))
		}
		batch = append(batch, row)
	}
	return batch, rows.Err()
}

// Mark deletes the rows, or with [WithKeep] sets the time they were processed
// at, in one statement whatever their number. Rows that are marked already, or
// gone, are passed over. All are marked or none; after an error it may be
// unknown which, and marking them again is safe.
func (s *Source) Mark(ctx context.Context, rows []Row) error {
	o := s.outbox
	if o.fault != nil {
		return o.fault
	}
	if len(rows) == 0 {
		return nil
	}
	if err := o.markRows(ctx, rows); err != nil {
		return o.failed(err, "marking %d rows of %s (all of them or none; to be marked again)", len(rows), o.table)
	}
	return nil
}

func (o *Outbox) markRows(ctx context.Context, rows []Row) error {
	mark, err := o.mark.prepared(ctx, o.db)
	if err != nil {
		return err
	}
	seqs := o.grammar.int64s(len(rows), func(i int) int64 { return rows[i].Seq })
	if o.keep {
		_, err = mark.ExecContext(ctx, seqs, o.now().UnixMicro())
	} else {
		_, err = mark.ExecContext(ctx, seqs)
	}
	return err
}

// Identity names a row by its message's ID.
func (s *Source) Identity(row Row) string { return row.ID }

// Validate reports what the outbox was misconfigured with.
func (s *Source) Validate() error { return s.outbox.fault }
