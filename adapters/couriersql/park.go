package couriersql

import (
	"context"
	"database/sql"

	"github.com/erfanmomeniii/courier"
)

// This room is how a row becomes a dead letter: its letter is written and the row
// is marked in one transaction, so that after a crash there is a pending row or a
// letter, and never both.
//
// It is Send that marks, and not Mark that writes the letters: so a letter that
// the queue refuses keeps its own row pending and no others from their mark, and
// what Send has returned nil for is durable. Only the rows of a batch that is
// locked by a transaction have to wait for its commit, see lockedBatch.

// DLQ returns the queue of the outbox's dead letters for the decorator around
// all that the source's coordinator applies: its Send marks the row as well, as
// [Source.Mark] does, in one transaction with the letter. It takes the rows that
// this source handed out, as it did; one that is held no more is refused with
// [ErrLeaseLost], and left to who has it now, unless it is a letter already, which
// is left as it is. A row that another source handed out, of this outbox or another, is
// refused with a [*courier.ConfigError]: it stays pending, and is in the coordinator's
// Ready and log.
//
// Where rows are held by locks (PostgreSQL without [WithLease] and
// [WithStrictOrder]), that is the transaction of the batch: the letter is
// committed by the Mark that follows, and if that transaction is lost, the row is
// pending as if nothing had been. Where the source is read by functions of one's
// own, that have not marked the row, it is committed by the next Fetch or by
// [Outbox.Close].
//
// A branch of a fan-out takes [Outbox.DLQ], as the other branches may still need
// the row.
func (s *Source) DLQ() *DLQ[Row] {
	q := s.outbox.DLQ()
	q.source = s
	return q
}

// transaction is a sql.Tx, or a connection that is in one.
type transaction interface {
	executor
	QueryRowContext(ctx context.Context, text string, args ...any) *sql.Row
}

// move makes a row a letter, by a statement that marks it.
func (o *Outbox) move(ctx context.Context, tx transaction, letter courier.DeadLetter[Row], m marking) error {
	result, err := tx.ExecContext(ctx, m.text, m.args...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if n == 0 { // moved before, by who did not learn of it, or by who had it since; or not ours
		moved, err := o.wasMoved(ctx, tx, letter)
		if err == nil && !moved {
			if err = o.recount(ctx, tx, o.table, 1, m.left, m.leftArgs...); err == nil {
				err = ErrLeaseLost
			}
		}
		return err
	}
	return o.send(ctx, tx, letter)
}

// wasMoved reports whether a row is a letter, and no row any more.
func (o *Outbox) wasMoved(ctx context.Context, tx transaction, letter courier.DeadLetter[Row]) (moved bool, err error) {
	err = tx.QueryRowContext(ctx, o.sql(o.grammar.moved), letter.Record.ID, plain(letter.Branch), letter.Record.Seq).Scan(&moved)
	return moved, err
}

// moveAlone is move in a transaction of its own.
func (o *Outbox) moveAlone(ctx context.Context, on *sql.Conn, letter courier.DeadLetter[Row], m marking) error {
	tx, err := on.BeginTx(ctx, o.grammar.isolated)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := o.move(ctx, tx, letter, m); err != nil {
		return err
	}
	return tx.Commit()
}

func (s *shared) park(ctx context.Context, letter courier.DeadLetter[Row]) error {
	err := s.outbox.on(ctx, func(conn *sql.Conn) error { return s.outbox.moveAlone(ctx, conn, letter, s.marking(letter.Record)) })
	if err == nil {
		s.inHand.park(letter.Record)
	}
	return err
}

// marking marks a row that nothing holds in the database.
func (s *shared) marking(row Row) marking {
	o, known := s.outbox, s.outbox.grammar.known([]Row{row})
	return marking{o.mark.text, o.marking(known...), o.grammar.left, known}
}

func (l *leased) park(ctx context.Context, letter courier.DeadLetter[Row]) error {
	o := l.outbox
	m := l.marking([]Row{letter.Record})
	l.parked.add(letter.Record.key()) // first, as a renewal may meet it
	err := o.on(ctx, func(conn *sql.Conn) error { return o.moveAlone(ctx, conn, letter, m) })
	if err != nil {
		l.parked.remove(letter.Record)
	}
	return err
}

// parkedRow is one whose letter is in the transaction of a batch.
type parkedRow struct {
	in          *lockedBatch // nil once it is committed
	branch, key string       // of the letter
}

func (l *locked) park(ctx context.Context, letter courier.DeadLetter[Row]) error {
	l.mu.Lock()
	b := l.holding(letter.Record.key())
	l.mu.Unlock()
	if b == nil {
		return l.parkLate(ctx, letter)
	}
	return b.park(ctx, letter)
}

func (b *lockedBatch) park(ctx context.Context, letter courier.DeadLetter[Row]) error {
	if err := enter(ctx, b.turn); err != nil {
		return err
	}
	defer func() { <-b.turn }()
	if b.conn == nil { // lost meanwhile
		return b.parkLate(ctx, letter)
	}
	o := b.outbox
	m := marking{b.marks, o.marking([]int64{letter.Record.Seq}), o.grammar.left, o.grammar.known([]Row{letter.Record})}
	if err := b.apart(ctx, func() error { return o.move(ctx, b.conn, letter, m) }); err != nil {
		return err
	}
	b.mu.Lock()
	b.parked[letter.Record.key()] = parkedRow{b, plain(letter.Branch), plain(letter.Key)}
	b.mu.Unlock()
	return nil
}

// parkLate parks a row whose transaction was lost, unless another one has it
// locked. One that is behind another of its key is pending with that: the letter
// of the other may have been lost as well, and comes first.
func (l *locked) parkLate(ctx context.Context, letter courier.DeadLetter[Row]) error {
	if letter.Reason == courier.ReasonKeyParked {
		return ErrLeaseLost
	}
	o := l.outbox
	row := []Row{letter.Record}
	m := marking{o.sql(o.either(o.grammar.deleteFree, o.grammar.keepFree)), o.marking(o.grammar.known(row)...), o.grammar.leftFree, o.grammar.attempted(row)}
	if err := l.on(ctx, func(conn *sql.Conn) error { return o.moveAlone(ctx, conn, letter, m) }); err != nil {
		return err
	}
	l.mu.Lock()
	l.parked[letter.Record.key()] = parkedRow{} // committed: of no batch, and no key is parked but by the letter
	l.mu.Unlock()
	return nil
}

// uncommittedKeys are those of a branch's letters that nobody else sees yet.
func (l *locked) uncommittedKeys(branch string) map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := make(map[string]bool, len(l.parked))
	for _, p := range l.parked {
		if p.branch == branch && p.key != "" {
			keys[p.key] = true
		}
	}
	return keys
}

// unparked are the rows of a batch, or of none, that a mark is for. Those whose
// letters were in a transaction that has ended are not: they went with it, or are
// pending, also again, where a failover to a replica that missed the letter took both back.
func (l *locked) unparked(b *lockedBatch, rows []Row) []Row {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.parked) == 0 {
		return rows
	}
	marked := make([]Row, 0, len(rows))
	for _, row := range rows {
		if p, parked := l.parked[row.key()]; !parked || b != nil && p.in == b {
			marked = append(marked, row)
		}
	}
	return marked
}

// forgetParked is for rows that were settled: none of them comes to mark again.
func (l *locked) forgetParked(n int, key func(int) rowKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.parked) == 0 {
		return
	}
	for i := range n {
		delete(l.parked, key(i))
	}
}
