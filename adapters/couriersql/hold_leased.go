package couriersql

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// leased holds rows by a claim that is in the row: an owner, a number that goes
// up with every claim, and the time until which nobody else may have the row.
type leased struct {
	outbox *Outbox
	owner  string
	inHand
	apart suspects
}

func newLeased(o *Outbox) *leased {
	return &leased{outbox: o, owner: newOwner(), apart: newSuspects(false)}
}

// newOwner names a source to operators, and no two of them the same.
func newOwner() string {
	host, _ := os.Hostname()
	return plain(fmt.Sprintf("%s/%d/%s", host, os.Getpid(), rand.Text()[:8]))
}

func (l *leased) fetch(ctx context.Context, limit int, from int64) ([]Row, error) {
	batch, err := fetchApart(&l.apart, apart[Row]{
		busy: l.busy,
		find: func() (int, error) { return l.findSuspects(ctx) },
		take: func(crashes int, alone bool) ([]Row, error) { return l.takeSuspects(ctx, limit, crashes, alone) },
		others: func() ([]Row, int, error) {
			return l.claim(ctx, limit, l.outbox.grammar.claim, from, l.outbox.fetchBytes, l.contact())
		},
	})
	if err == nil {
		l.add(batch)
	}
	return batch, err
}

// claim claims up to limit rows by a statement. Of those that the statement returns, some
// have been made suspects instead: crashed is how many.
func (l *leased) claim(ctx context.Context, limit int, text string, more ...any) (batch []Row, crashed int, err error) {
	o := l.outbox
	args := l.outbox.timed(append([]any{limit, l.owner, o.lease.Microseconds()}, more...)...)
	if o.grammar.plan == "" {
		err = o.on(ctx, func(conn *sql.Conn) (err error) {
			batch, err = o.rows(ctx, conn, limit, math.MaxInt64, o.sql(text), args...)
			return err
		})
	} else {
		batch, err = l.planned(ctx, limit, text, args)
	}
	if err != nil { // what was claimed comes back when the lease ends
		return nil, 0, err
	}
	returned := len(batch)
	batch = slices.DeleteFunc(batch, func(row Row) bool { return row.claim < 0 })
	if crashed = returned - len(batch); crashed > 0 {
		o.log.Warn("couriersql: a relay died with rows in hand, or lost its lease without a sign; the rows are handed out again in small groups, to find one that kills its process",
			"table", o.table, "rows", crashed)
	}
	return inOrder(batch), crashed, nil
}

// planned claims rows in a transaction with settings of its own.
func (l *leased) planned(ctx context.Context, limit int, text string, args []any) (batch []Row, err error) {
	o := l.outbox
	conn, err := o.connection(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // back to the pool, or gone already
	statements := o.planned(&batch, limit, text, args...)
	statements.Queue("COMMIT")
	if err = send(ctx, conn, statements); err != nil { // with the transaction
		discard(conn)
	}
	return batch, err
}

func (l *leased) mark(ctx context.Context, rows []Row) error {
	err := l.markHeld(ctx, l.parked.others(rows))
	if err == nil {
		l.parked.remove(rows...)
		l.removeRows(rows)
		l.settled()
	}
	return err
}

func (l *leased) markHeld(ctx context.Context, rows []Row) error {
	if len(rows) == 0 {
		return nil
	}
	o := l.outbox
	m := l.marking(rows)
	result, err := o.execute(ctx, m.text, m.args...)
	if err != nil {
		return err
	}
	lost := missing(result, len(rows))
	if lost == 0 {
		return nil
	}
	if err := l.recount(ctx, rows); err != nil {
		return err
	}
	if lost -= o.reused(ctx, rows); lost > 0 {
		o.log.Warn("couriersql: rows were not marked, as they were marked before or their lease was lost; a lost one is delivered again, by the relay that has it",
			"table", o.table, "rows", lost, "lease", o.lease)
	}
	return nil
}

// marking marks claimed rows.
func (l *leased) marking(rows []Row) marking {
	o := l.outbox
	claims := append(o.grammar.claims(rows), l.owner)
	return marking{o.sql(o.either(o.grammar.deleteClaimed, o.grammar.keepClaimed)), o.marking(claims...), o.grammar.leftClaimed, claims}
}

func (l *leased) fail(ctx context.Context, failed []failure) error {
	o := l.outbox
	return l.note(ctx, failed, o.sql(o.grammar.failClaimed), o.timed(append(o.grammar.failures(failed), l.owner)...)...)
}

func (l *leased) release(ctx context.Context, rows []failure) error {
	o := l.outbox
	return l.note(ctx, rows, o.sql(o.grammar.freeClaimed), append(o.grammar.failures(rows), l.owner)...)
}

// recount is an error where claims are left that are this relay's.
func (l *leased) recount(ctx context.Context, rows []Row) error {
	o := l.outbox
	return o.recountAlone(ctx, len(rows), o.grammar.leftClaimed, append(o.grammar.claims(rows), l.owner)...)
}

// note has a statement end claims without a mark.
func (l *leased) note(ctx context.Context, rows []failure, text string, args ...any) error {
	result, err := l.outbox.execute(ctx, text, args...)
	if err == nil && missing(result, len(rows)) > 0 {
		err = l.recount(ctx, rowsOf(rows))
	}
	l.removeFailed(rows) // which come back, at the latest with the end of the lease
	l.settled()
	return err
}

func (l *leased) renew(ctx context.Context, rows []Row) (map[string]bool, error) {
	o := l.outbox
	lost := make(map[string]bool, len(rows))
	for _, row := range rows {
		lost[row.ID] = !l.parked.has(row.key())
	}
	args := o.timed(append(o.grammar.claims(rows), l.owner, o.lease.Microseconds())...)
	var renewed []string
	err := o.renewing(ctx, o.lease, func(ctx context.Context, conn *sql.Conn) (err error) {
		renewed, err = texts(ctx, conn, o.sql(o.grammar.renew), args...)
		return err
	})
	for _, id := range renewed {
		delete(lost, id)
	}
	if err == nil && len(lost) > 0 {
		l.removeRows(slices.DeleteFunc(slices.Clone(rows), func(row Row) bool { return !lost[row.ID] }))
		l.settled()
	}
	return lost, err
}

func (l *leased) renewEvery() time.Duration { return l.outbox.lease / 3 }

func (l *leased) close() {}
