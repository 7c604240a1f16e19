package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier"
)

// tabled holds rows by the leases of a [Table], as which it reads the outbox: one row beside
// the outbox for each batch.
type tabled struct {
	outbox *Outbox
	rows   *TableSource[Row]
	parked parkedRows
	gone   parkedRows // that could not be parked, as they are not this relay's any more
}

func newTabled(o *Outbox) *tabled { return &tabled{outbox: o, rows: o.relayed.Source()} }

// described is the table, which Migrate may not have created yet.
func (h *tabled) described(ctx context.Context) (tableStore, error) {
	store, err := h.outbox.asStore(ctx)
	if err == nil {
		err = h.outbox.noTable(h.outbox.relayed.check(ctx, store))
	}
	return store, err
}

func (h *tabled) fetch(ctx context.Context, limit int, _ int64) ([]Row, error) {
	store, err := h.described(ctx)
	if err != nil {
		return nil, err
	}
	batch, err := h.rows.fetchOne(ctx, store, limit)
	if err != nil {
		return nil, err
	}
	if len(batch) > 0 {
		h.gone.remove(batch...) // they are this relay's again
		h.outbox.opened(h, true)
	}
	return h.whole(ctx, batch)
}

// whole reads what a fetch left out of rows for their bytes. Rows that are gone meanwhile are
// in nobody's hand.
func (h *tabled) whole(ctx context.Context, batch []Row) ([]Row, error) {
	without := withoutPayload(batch)
	if without == nil {
		return batch, nil
	}
	o := h.outbox
	all := slices.Clone(batch)
	found := make(map[int64]Row, len(without))
	err := o.on(ctx, func(conn *sql.Conn) error {
		rows, err := conn.QueryContext(ctx, o.sql(o.grammar.large), o.grammar.known(without)...)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }() // what it has to say, Err said
		for rows.Next() {
			var row Row
			if err := rows.Scan(&row.Seq, &row.Payload, &row.Headers); err != nil {
				return err
			}
			found[row.Seq] = row
		}
		return rows.Err()
	})
	if err != nil {
		batch = nil
	} else {
		batch = withLarge(batch, found)
	}
	if len(batch) < len(all) {
		has := make(map[rowKey]bool, len(batch))
		for _, row := range batch {
			has[row.key()] = true
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		// Else the next fetch gives them back.
		_ = h.rows.settle(last, toRelease, slices.DeleteFunc(all, func(row Row) bool { return has[row.key()] }), nil)
	}
	return batch, err
}

func (h *tabled) mark(ctx context.Context, rows []Row) error {
	marked := h.parked.others(rows)
	if err := h.rows.settle(ctx, toMark, marked, nil); err != nil {
		return err
	}
	if len(marked) < len(rows) { // the others were marked with their letters
		if err := h.rows.settle(ctx, toRelease, rows, nil); err != nil {
			return err
		}
	}
	h.parked.remove(rows...)
	return nil
}

func (h *tabled) fail(ctx context.Context, failed []failure) error {
	return h.rows.settle(ctx, toFail, rowsOf(failed), func(i, _ int) tableFailure { return tableFailure{failed[i].delay, failed[i].text} })
}

func (h *tabled) release(ctx context.Context, rows []failure) error {
	return h.rows.settle(ctx, toRelease, rowsOf(rows), nil)
}

// park marks a row with its letter. It stays in hand, and its lease in the database, until the
// coordinator comes to mark it.
func (h *tabled) park(ctx context.Context, letter courier.DeadLetter[Row]) error {
	store, err := h.described(ctx)
	if err != nil {
		return err
	}
	rows := []Row{letter.Record}
	names, batches := h.rows.batchesOf(rows)
	parts := h.rows.parts(rows, nil)
	h.parked.add(letter.Record.key()) // first, as a renewal may meet it
	err = h.outbox.on(ctx, func(conn *sql.Conn) error {
		_, err := mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) { return true, h.move(ctx, tx, store, letter, parts) })
		return err
	})
	if err != nil {
		h.parked.remove(letter.Record)
	}
	if errors.Is(err, ErrLeaseLost) { // a renewal of the batch would not tell, as it does not look at the rows
		h.gone.add(letter.Record.key())
		h.rows.owe(rows, names, batches)
	}
	return err
}

// move makes a row a letter.
func (h *tabled) move(ctx context.Context, tx *sql.Tx, store tableStore, letter courier.DeadLetter[Row], parts []part) error {
	o := h.outbox
	for _, p := range parts {
		n, err := store.markIn(ctx, func(ctx context.Context, text string, args ...any) ([]string, error) {
			return texts(ctx, tx, text, args...)
		}, h.rows.owner, p)
		if err != nil {
			return err
		}
		if n > 0 {
			return o.send(ctx, tx, letter)
		}
	}
	// Moved before, by who did not learn of it, or by who had it since; or not ours.
	moved, err := o.wasMoved(ctx, tx, letter)
	if err == nil && !moved {
		err = ErrLeaseLost
	}
	return err
}

func (h *tabled) renew(ctx context.Context, rows []Row) (map[string]bool, error) {
	indices, err := h.rows.renew(ctx, rows)
	lost := make(map[string]bool, len(indices))
	for _, i := range indices {
		if !h.parked.has(rows[i].key()) {
			lost[rows[i].ID] = true
		}
	}
	for _, row := range rows {
		if h.gone.has(row.key()) {
			lost[row.ID] = true
			h.gone.remove(row)
		}
	}
	return lost, err
}

func (h *tabled) renewEvery() time.Duration { return h.rows.RenewEvery() }

func (h *tabled) begin() {
	h.parked.clear()
	h.gone.clear()
	h.rows.drop()
}

// close ends the leases, so that others need not wait for their end.
func (h *tabled) close() {
	h.outbox.opened(h, false)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = h.rows.endAll(ctx) // else they end by themselves
}

// due tells how many rows are due and in nobody's hand, and since when the oldest waits.
func (o *Outbox) due(ctx context.Context, conn *sql.Conn, store tableStore) (lag courier.Lag, err error) {
	due, since, err := store.lag(ctx, conn)
	if err == nil && due > 0 {
		lag = courier.Lag{Pending: due, Oldest: max(0, o.now().Sub(time.UnixMicro(int64(-since))))}
	}
	return lag, err
}
