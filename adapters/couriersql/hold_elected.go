package couriersql

import (
	"context"
	"database/sql"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// elected holds the whole outbox, by an advisory lock of a session: of all
// relays, one. The lock is the session's, so that the server gives it to another
// as soon as it notices that this one is gone. What becomes of its rows is as if it
// were the only relay; to mark them one may who is elected no more, as they were
// delivered.
type elected struct {
	shared
	turn chan struct{} // holds a value while somebody uses what follows
	conn *sql.Conn     // has the lock; nil without it

	leads atomic.Bool // for those who do not have the turn
}

const electText = `SELECT pg_try_advisory_lock(hashtextextended('courier ' || '"{table}"'::regclass::oid, 0))`

// The session must be the one that has the lock, and not another one that a
// pooler put in its place.
const stillElectedText = `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted)`

func newElected(o *Outbox) *elected {
	return &elected{shared: shared{outbox: o}, turn: make(chan struct{}, 1)}
}

func (e *elected) fetch(ctx context.Context, limit int) ([]Row, error) {
	if err := enter(ctx, e.turn); err != nil {
		return nil, err
	}
	defer func() { <-e.turn }()
	if elected, err := e.elect(ctx); err != nil || !elected {
		return nil, err
	}
	o := e.outbox
	first, last := e.bounds()
	var batch []Row
	err := native(e.conn, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, o.fetch.text, limit, first, last)
		if err == nil {
			batch, err = collect(rows, limit)
		}
		return err
	})
	if err != nil {
		e.resign()
		return nil, err
	}
	e.add(batch)
	return batch, nil
}

// try is elect for who does not have the turn.
func (e *elected) try(ctx context.Context) (bool, error) {
	if err := enter(ctx, e.turn); err != nil {
		return false, err
	}
	defer func() { <-e.turn }()
	return e.elect(ctx)
}

// elect tries to get the lock, unless it is had already.
func (e *elected) elect(ctx context.Context) (bool, error) {
	if e.conn != nil {
		return true, nil
	}
	o := e.outbox
	conn, err := o.connection(ctx)
	if err != nil {
		return false, err
	}
	var got bool
	if err := conn.QueryRowContext(ctx, o.sql(electText)).Scan(&got); err != nil || !got {
		_ = conn.Close()
		return false, err
	}
	e.conn = conn
	e.leads.Store(true)
	o.opened(e, true)
	if _, err := conn.ExecContext(ctx, o.grammar.session); err != nil {
		e.resign()
		return false, err
	}
	return true, nil
}

// renew looks whether this relay is still the one.
func (e *elected) renew(ctx context.Context, rows []Row) (map[string]bool, error) {
	if err := enter(ctx, e.turn); err != nil {
		return nil, err
	}
	defer func() { <-e.turn }()
	var still bool
	if e.conn != nil {
		if err := e.conn.QueryRowContext(ctx, stillElectedText).Scan(&still); err != nil && ctx.Err() != nil {
			e.resign() // the session has ended with the context
			return nil, err
		}
	}
	if still {
		return nil, nil
	}
	e.resign()
	lost := make(map[string]bool, len(rows))
	for _, row := range rows {
		lost[row.ID] = true
	}
	return lost, nil
}

func (e *elected) renewEvery() time.Duration { return time.Second }

// resign ends the session, and the lock with it.
func (e *elected) resign() {
	if e.conn == nil {
		return
	}
	discard(e.conn)
	_ = e.conn.Close()
	e.conn = nil
	e.leads.Store(false)
	e.outbox.opened(e, false)
}

func (e *elected) close() {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	if e.conn != nil { // so that the next one is elected at once
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_, _ = e.conn.ExecContext(ctx, `SELECT pg_advisory_unlock_all()`)
	}
	e.resign()
}
