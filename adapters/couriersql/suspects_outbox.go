package couriersql

import (
	"context"
	"database/sql"
	"math"
)

// WithMaxCrashes sets at how many crashes of a relay with a message alone in hand the message
// is parked, in the dead letters of the outbox, with [courier.ReasonCrashed]. 0 is
// [DefaultMaxCrashes]; with a negative number crashes are not counted, and a message that
// kills its process is handed out again without end. It is for [WithLease]: a transaction
// that ends with its process leaves no trace of it. It is not for MySQL, where crashes are not counted: [New] reports it.
//
// A crash is a lease that ran out with its rows neither marked, failed nor given back. It is
// counted in each of them, and they are handed out again in groups of a tenth of the batch
// size, then of a hundredth and so on, while nothing else is in hand, in turn with other
// rows. So a row is alone in hand after a few crashes, and only those since count towards
// the limit. A row that is settled in any way, or whose letter is redriven, begins at none.
//
// A lease that ran out while this relay could not reach the database either, or that is this
// relay's own, is no crash. A relay that hangs, or is cut off alone, for longer than its
// lease is one, and so is a process that is killed: a message that is alone in hand at a slow
// destination, and whose relays are killed so often before it is delivered, is parked too.
func WithMaxCrashes(n int) Option {
	return func(o *Outbox) { o.maxCrashes, o.countsCrashes = n, true }
}

// contact is since how many microseconds claims of others are counted as crashes when they
// have run out.
func (l *leased) contact() int64 {
	if l.outbox.maxCrashes < 0 {
		return 0
	}
	return l.apart.contact().Microseconds()
}

// settled is when rows are in hand no more.
func (l *leased) settled() {
	if !l.busy() {
		l.apart.emptied()
	}
}

// findSuspects counts crashes of suspects, parks those that had too many, and returns how
// many crashes the next ones have, 0 if there are none.
func (l *leased) findSuspects(ctx context.Context) (crashes int, err error) {
	o := l.outbox
	most := mostCrashes(o.maxCrashes)
	look := func(conn *sql.Conn) (all int, err error) {
		return all, conn.QueryRowContext(ctx, o.sql(o.grammar.suspects), o.timed(most)...).Scan(&crashes, &all)
	}
	err = o.on(ctx, func(conn *sql.Conn) error {
		all, err := look(conn)
		if err != nil || all == 0 {
			return err
		}
		if _, err := conn.ExecContext(ctx, o.sql(o.grammar.countSuspects), o.timed(l.owner, o.lease.Microseconds(), l.contact())...); err != nil {
			return err
		}
		l.parkCrashed(ctx, conn, most)
		_, err = look(conn)
		return err
	})
	return crashes, err
}

// takeSuspects claims rows with so many crashes.
func (l *leased) takeSuspects(ctx context.Context, limit, crashes int, alone bool) ([]Row, error) {
	size, become := groupSize(limit, crashes), crashes
	if size == 1 && alone {
		become = max(crashes, aloneFrom)
	}
	batch, _, err := l.claim(ctx, size, l.outbox.grammar.claimSuspects, crashes, l.outbox.fetchBytes, become)
	return batch, err
}

// parkCrashed parks rows that had too many crashes. One for which that fails stays pending,
// and is not handed out.
func (l *leased) parkCrashed(ctx context.Context, conn *sql.Conn, most int) {
	o := l.outbox
	for after := int64(math.MinInt64); ; {
		row, err := l.parkNext(ctx, conn, most, after)
		switch {
		case row == nil && err == nil:
			return
		case row == nil:
			o.log.Warn("couriersql: looking for messages that kill their process failed; they are not handed out, and it is tried again", "table", o.table, "error", err)
			return
		case err != nil:
			o.log.Warn("couriersql: a message that kills its process could not be parked; it is not handed out, and it is tried again", "table", o.table, "message", row.ID, "error", err)
		default:
			o.log.Warn("couriersql: a message is parked, as each relay that had it in hand, alone, died: look for out of memory, os.Exit or a fatal error in what delivers it; then requeue it, or delete it (courierctl dlq)",
				"table", o.table, "message", row.ID, "crashes", row.claim-aloneFrom)
		}
		after = row.Seq
	}
}

// parkNext parks the first row with a number above after, and returns it, nil if there is
// none.
func (l *leased) parkNext(ctx context.Context, conn *sql.Conn, most int, after int64) (*Row, error) {
	o := l.outbox
	tx, err := conn.BeginTx(ctx, o.grammar.isolated)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	rows, err := o.rows(ctx, tx, 1, math.MaxInt64, o.sql(o.grammar.crashed), o.timed(most, after)...)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	row := rows[0]
	known := o.grammar.known(rows)
	m := marking{o.sql(o.either(o.grammar.deleteKnown, o.grammar.keepKnown)), o.marking(known...), o.grammar.left, known}
	if err := o.move(ctx, tx, crashedLetter(row, int(row.claim-aloneFrom), o.now()), m); err != nil {
		return &row, err
	}
	return &row, tx.Commit()
}
