package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// This room is a database that does not do what a statement says, and gives no error:
// for a trigger that returns NULL, a rule, or a policy of row-level security. To believe
// it would be to lose a message that was not written, or to deliver a row for ever that
// was not marked.

// ErrSuppressed is the error, to errors.Is, of a call that the database answered
// without an error, and after which the rows are as they were: a trigger that returns
// NULL (in SQLite, one that raises IGNORE), a rule or a policy of row-level security
// undid it, or keeps rows from being seen.
var ErrSuppressed = errors.New("the database left rows as they were, and gave no error")

// suppressed is the error of a statement that should have touched so many rows more.
func (d *database) suppressed(table string, rows, of int) error {
	return fmt.Errorf("%w: %d of %d; look for %s on %s", ErrSuppressed, rows, of, d.grammar.suppressors, table)
}

// recount is an error where rows of a table are left that a statement was for.
func (d *database) recount(ctx context.Context, on executor, table string, of int, text string, args ...any) error {
	left, err := number(ctx, on, d.sql(text), args...)
	if err == nil && left > 0 {
		err = d.suppressed(table, left, of)
	}
	return err
}

// recountAlone is recount of the outbox on a connection of the pool.
func (o *Outbox) recountAlone(ctx context.Context, of int, text string, args ...any) error {
	return o.on(ctx, func(conn *sql.Conn) error { return o.recount(ctx, conn, o.table, of, text, args...) })
}

// number reads the one number that a statement returns, 0 where it returns no row.
func number(ctx context.Context, on executor, text string, args ...any) (n int, err error) {
	rows, err := on.QueryContext(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	if rows.Next() {
		err = rows.Scan(&n)
	}
	return n, errors.Join(err, rows.Err())
}

// marking is a statement that marks rows, and one that counts those that it was for
// and that are as they were.
type marking struct {
	text     string
	args     []any
	left     string
	leftArgs []any
}

// missing returns how many of the rows that a statement was for it has not touched. Not
// every driver knows.
func missing(result sql.Result, rows int) int {
	n, err := result.RowsAffected()
	if err != nil {
		return 0
	}
	return max(0, rows-int(n))
}

// hidden looks now and then whether the database keeps rows from a relay.
type hidden struct {
	mu   sync.Mutex
	once bool      // it has looked
	next time.Time // when it looks again, if there is nothing to fetch
}

// hiddenEvery is how often a relay looks that has nothing to fetch.
const hiddenEvery = time.Minute

// due reports whether it is time to look: at the first fetch, and then where there is
// nothing to fetch.
func (h *hidden) due(idle bool, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.once || idle && (!now.Before(h.next) || h.next.Sub(now) > hiddenEvery) // the clock may have been set back
}

func (h *hidden) looked(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.once, h.next = true, now.Add(hiddenEvery)
}

// lookForPolicies returns an error where policies hide all rows from the relay, or keep it
// from settling them.
func (o *Outbox) lookForPolicies(ctx context.Context) error {
	if o.grammar.policies == "" {
		return nil
	}
	var without string
	if err := o.on(ctx, func(conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, o.sql(o.grammar.policies)).Scan(&without)
	}); err != nil {
		return err
	}
	if o.keep {
		without = strings.TrimSuffix(strings.TrimSuffix(without, "DELETE"), ", ")
	}
	if without == "" {
		return nil
	}
	return fmt.Errorf("%w: row-level security is on for %s, and this role has no policy for %s: "+
		"create one (USING (true)), or let the relay have a role that owns the table or has BYPASSRLS", ErrSuppressed, o.table, without)
}

// lookForHidden looks for what keeps rows from the relay.
func (s *Source) lookForHidden(ctx context.Context) error {
	err := s.outbox.lookForPolicies(ctx)
	if err == nil {
		s.hidden.looked(s.outbox.now())
	}
	return err
}

// fetchHidden is for a fetch that returned nothing. It looks why, and returns what is to
// be had after all.
func (s *Source) fetchHidden(ctx context.Context, limit int, from int64) (batch []Row, err error) {
	if err := s.outbox.lookForPolicies(ctx); err != nil {
		return nil, err
	}
	if l, ok := s.holder.(*leased); ok && !l.apart.waiting() { // last: an error after it would leave what it claims to the end of the lease
		if batch, err = l.lookForDue(ctx, limit, from); err != nil {
			return nil, err
		}
	}
	s.hidden.looked(s.outbox.now())
	return batch, nil
}

// lookForDue looks for a row that is due and that a fetch did not return, and fetches once
// more if there is one: another relay may have had it locked for a moment, or it was
// written meanwhile.
func (l *leased) lookForDue(ctx context.Context, limit int, from int64) (batch []Row, err error) {
	o := l.outbox
	first := func() (seq int, err error) {
		err = o.on(ctx, func(conn *sql.Conn) (err error) {
			seq, err = number(ctx, conn, o.sql(o.grammar.due), o.timed(1, from)...)
			return err
		})
		return seq, err
	}
	before, err := first()
	if err != nil || before == 0 {
		return nil, err
	}
	if batch, err = l.fetch(ctx, limit, from); err != nil || len(batch) > 0 {
		return batch, err
	}
	after, err := first()
	if err != nil || after != before {
		return nil, err
	}
	return nil, fmt.Errorf("%w: row %d is due, and cannot be claimed; look for %s on %s", ErrSuppressed, after, o.grammar.suppressors, o.table)
}
