package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"time"
)

// locked holds rows by the locks of a transaction that is open from the fetch
// until they are settled. Other relays skip what is locked.
type locked struct {
	outbox *Outbox
	turn   chan struct{} // holds a value while somebody uses what follows

	conn  *sql.Conn // nil without a transaction
	held  map[int64]bool
	dirty bool // the transaction has something to commit
}

// leftover is for how long a batch that is marked in part keeps the rest of it
// from the others, whose locks go with the transaction. It ends when they are
// failed or released, which a coordinator does next.
const leftover = 5 * time.Second

func newLocked(o *Outbox) *locked { return &locked{outbox: o, turn: make(chan struct{}, 1)} }

// enter waits for the turn, which a renewal may have.
func enter(ctx context.Context, turn chan struct{}) error {
	select {
	case turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *locked) fetch(ctx context.Context, limit int) (batch []Row, err error) {
	if err := enter(ctx, l.turn); err != nil {
		return nil, err
	}
	defer func() { <-l.turn }()
	if err := l.end(ctx); err != nil { // what was never settled
		l.abandon()
	}
	o := l.outbox
	if l.conn, err = o.db.Conn(ctx); err != nil {
		l.conn = nil
		return nil, err
	}
	o.opened(l, true)
	if _, err = l.conn.ExecContext(ctx, "BEGIN; "+o.grammar.plan); err == nil {
		batch, err = o.rows(ctx, l.conn, limit, o.sql(o.grammar.lock), limit)
	}
	if err == nil && len(batch) == 0 {
		err = l.end(ctx)
	}
	if err != nil {
		l.abandon()
		return nil, err
	}
	l.held = make(map[int64]bool, len(batch))
	for _, row := range batch {
		l.held[row.Seq] = true
	}
	return batch, nil
}

func (l *locked) mark(ctx context.Context, rows []Row) error {
	if err := enter(ctx, l.turn); err != nil {
		return err
	}
	defer func() { <-l.turn }()
	o := l.outbox
	all := l.conn != nil
	for _, row := range rows {
		all = all && l.held[row.Seq]
	}
	if !all {
		return l.markLate(ctx, rows)
	}
	_, err := l.conn.ExecContext(ctx, o.mark.text, o.marking(o.seqs(rows))...)
	if err == nil {
		for _, row := range rows {
			delete(l.held, row.Seq)
		}
		if len(l.held) > 0 {
			_, err = l.conn.ExecContext(ctx, o.sql(o.grammar.hold), l.rest(), leftover.Microseconds())
		}
	}
	if err == nil {
		l.dirty = true
		err = l.end(ctx)
	}
	if err != nil {
		l.abandon()
	}
	return err
}

// How often and how long markLate waits for a lock to go.
const (
	lateTries = 20
	latePause = 50 * time.Millisecond
)

// markLate marks rows whose transaction was lost. They may be locked: by this
// relay's own session, of which the server has not noticed yet that it is dead,
// or by another relay, which then delivers them once more and decides about
// them. To wait for that one would be to stand still for as long as it works.
func (l *locked) markLate(ctx context.Context, rows []Row) error {
	o := l.outbox
	for try := 1; ; try++ {
		if _, err := o.db.ExecContext(ctx, o.sql(o.either(o.grammar.deleteFree, o.grammar.keepFree)), o.marking(o.seqs(rows))...); err != nil {
			return err
		}
		var left int
		if err := o.db.QueryRowContext(ctx, o.sql(o.grammar.left), o.seqs(rows)).Scan(&left); err != nil || left == 0 {
			return err
		}
		if try == lateTries {
			o.log.Warn("couriersql: rows were not marked, as another session has locked them since this relay's transaction was lost; they are delivered again",
				"table", o.table, "rows", left)
			return nil
		}
		select {
		case <-time.After(latePause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *locked) rest() []int64 {
	rest := make([]int64, 0, len(l.held))
	for seq := range l.held {
		rest = append(rest, seq)
	}
	return rest
}

func (l *locked) fail(ctx context.Context, failed []failure) error {
	return l.settle(ctx, failed, true, func(on executor) error { return l.outbox.fail(ctx, on, failed, "") })
}

func (l *locked) release(ctx context.Context, rows []failure) error {
	return l.settle(ctx, rows, false, func(on executor) error { return l.outbox.free(ctx, on, rows, "") })
}

// settle writes what became of rows that were not marked: in the transaction
// that has them, or after its end.
func (l *locked) settle(ctx context.Context, rows []failure, writes bool, write func(executor) error) error {
	if err := enter(ctx, l.turn); err != nil {
		return err
	}
	defer func() { <-l.turn }()
	var inside bool
	for _, row := range rows {
		inside = inside || l.held[row.seq]
	}
	if l.conn == nil || !inside {
		return write(l.outbox.db)
	}
	var err error
	if writes {
		l.dirty = true
		err = write(l.conn)
	}
	for _, row := range rows {
		delete(l.held, row.seq)
	}
	if err == nil && len(l.held) == 0 {
		err = l.end(ctx)
	}
	if err != nil {
		l.abandon()
	}
	return err
}

// renew looks whether the transaction is alive, and keeps it from being ended as
// idle.
func (l *locked) renew(ctx context.Context, rows []Row) (map[int64]bool, error) {
	if err := enter(ctx, l.turn); err != nil {
		return nil, err
	}
	defer func() { <-l.turn }()
	if l.conn != nil {
		if _, err := l.conn.ExecContext(ctx, "SELECT 1"); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			l.abandon()
		}
	}
	lost := make(map[int64]bool)
	for _, row := range rows {
		if l.conn == nil || !l.held[row.Seq] {
			lost[row.Seq] = true
		}
	}
	return lost, nil
}

func (l *locked) renewEvery() time.Duration { return 5 * time.Second }

// end ends the transaction, if there is one, and gives its connection back.
func (l *locked) end(ctx context.Context) error {
	if l.conn == nil {
		return nil
	}
	text := "ROLLBACK"
	if l.dirty {
		text = "COMMIT"
	}
	if _, err := l.conn.ExecContext(ctx, text); err != nil {
		return err
	}
	l.forget()
	return nil
}

// abandon throws the connection away, and the transaction with it.
func (l *locked) abandon() {
	if l.conn != nil {
		_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
		l.forget()
	}
}

func (l *locked) forget() {
	_ = l.conn.Close() // back to the pool, or gone already
	l.conn, l.held, l.dirty = nil, nil, false
	l.outbox.opened(l, false)
}

func (l *locked) close() {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if l.end(ctx) != nil {
		l.abandon()
	}
}

// closeTimeout is for how long a close tries to be orderly: the server notices
// only some time later that a connection is gone, and with it what it holds.
const closeTimeout = 5 * time.Second
