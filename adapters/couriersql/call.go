package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
)

// DefaultQueryTimeout is how long a call waits for the database unless
// [WithQueryTimeout] sets another time.
const DefaultQueryTimeout = 30 * time.Second

// WithQueryTimeout sets how long the outbox, its sources and its dead letter queues
// wait for the database in one call: for a connection of the pool and for the
// answers on it. The default is [DefaultQueryTimeout]; d must be above 0. A call
// that takes longer ends with [ErrQueryTimeout], and its connection is closed
// instead of going back to the pool. A connection that died without a sign (a
// firewall forgot it, the server is frozen) would otherwise stop a relay for a
// quarter of an hour or for ever.
//
// Set it well above the slowest statement of a healthy database, which is a fetch
// or, on large tables, a count ([Outbox.Pending], [Source.Lag]). A context that ends
// earlier ends the call earlier. The transactions that [Outbox.Write] is given and
// the statements of [Outbox.Migrate], which may build an index for hours, end with
// their own context alone.
func WithQueryTimeout(d time.Duration) Option {
	return func(o *Outbox) {
		if d <= 0 {
			o.misconfigured("WithQueryTimeout", fmt.Sprintf("of %v lets no call succeed: pass how long a call may take, such as 30 s", d))
			return
		}
		o.timeout = d
	}
}

// waitFor sets how long a call waits for the database, by the QueryTimeout of a config.
func (d *database) waitFor(config string, timeout time.Duration) {
	switch {
	case timeout < 0:
		d.misconfigured(config+".QueryTimeout", fmt.Sprintf("of %v lets no call succeed: pass how long a call may take, or 0 for %v", timeout, DefaultQueryTimeout))
	case timeout > 0:
		d.timeout = timeout
	}
}

// ErrQueryTimeout is the error, to errors.Is, of a call that the database did not
// answer within the time of [WithQueryTimeout].
var ErrQueryTimeout = errors.New("the database did not answer in time")

// idleTimeout is how long an idle connection of the pool may take to answer the ping
// that shows whether it is alive, before the next one is tried.
const idleTimeout = 2 * time.Second

// unused is for how long a connection is taken to be alive after its last use, as by pgx.
const unused = time.Second

// bounded makes a call that ends in time.
func (d *database) bounded(ctx context.Context, call func(context.Context) error) error {
	return d.within(ctx, d.timeout, call)
}

// renewing makes a call that renews leases. It ends early enough to be tried again before they do.
func (d *database) renewing(ctx context.Context, lease time.Duration, renew func(context.Context, *sql.Conn) error) error {
	return d.within(ctx, min(d.timeout, max(lease/3, idleTimeout)), func(ctx context.Context) error {
		return d.on(ctx, func(conn *sql.Conn) error { return renew(ctx, conn) })
	})
}

func (d *database) within(ctx context.Context, timeout time.Duration, call func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := call(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = d.late(err, timeout)
	}
	return err
}

// boundedBeside is bounded for a call that also does other work than to wait for the
// database. The call passes that work to beside: its time does not count, and after it the
// timeout begins anew.
func (d *database) boundedBeside(ctx context.Context, call func(ctx context.Context, beside func(func() error) error) error) error {
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(d.timeout, func() { cancel(ErrQueryTimeout) })
	defer timer.Stop()
	err := call(limited, func(work func() error) error {
		timer.Stop()
		defer timer.Reset(d.timeout)
		return work()
	})
	if err != nil && ctx.Err() == nil && context.Cause(limited) == ErrQueryTimeout {
		err = d.late(err, d.timeout)
	}
	return err
}

func (d *database) late(err error, timeout time.Duration) error {
	return fmt.Errorf("%w: not within %v (WithQueryTimeout, or QueryTimeout of a queue, an inbox or a sink; a third of a lease, to renew it), after which the connection is closed; is the server or the network frozen, or a lock or snapshot held for long?%s: %w",
		ErrQueryTimeout, timeout, d.poolFull(), err)
}

// poolFull says that a call may have waited for the pool.
func (d *database) poolFull() string {
	if s := d.db.Stats(); s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections {
		return fmt.Sprintf(" The pool is in use to its limit of %s (SetMaxOpenConns).", plural(s.MaxOpenConnections, "connection"))
	}
	return ""
}

// connection takes a connection of the pool. All that are idle may be dead, and each
// of them would take all the time there is.
func (d *database) connection(ctx context.Context) (*sql.Conn, error) {
	for d.grammar.remote && d.db.Stats().Idle > 0 {
		first, cancel := context.WithTimeout(ctx, idleTimeout)
		conn, err := d.db.Conn(first)
		dead := first.Err() != nil
		if err == nil && d.grammar.unpinged && !d.used.lately(conn) {
			if err = conn.PingContext(first); err != nil {
				discard(conn)
				_ = conn.Close() // gone already
				dead = true
			}
		}
		cancel()
		if err == nil || !dead || ctx.Err() != nil {
			return conn, err
		}
	}
	return d.db.Conn(ctx)
}

// uses are when connections were last used with success.
type uses struct {
	mu   sync.Mutex
	last map[any]time.Time // by the connection of the driver
}

func (u *uses) note(conn *sql.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(u.last, func(_ any, last time.Time) bool { return now.Sub(last) > unused })
	_ = conn.Raw(func(raw any) error {
		u.last[raw] = now
		return nil
	})
}

func (u *uses) lately(conn *sql.Conn) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	var last time.Time
	_ = conn.Raw(func(raw any) error {
		last = u.last[raw]
		return nil
	})
	return time.Since(last) < unused
}

// on uses a connection of the pool, as often as one proves dead before anything was
// sent on it. The next call would be given the same connection again: one that is
// good for nothing is closed. A connection on which the database suppressed a statement is
// closed too: the statements that it prepared under a rule keep that rule after it is
// dropped.
func (d *database) on(ctx context.Context, use func(*sql.Conn) error) error {
	for try := 1; ; try++ {
		conn, err := d.connection(ctx)
		if err != nil {
			return err
		}
		err = use(conn)
		if err != nil && d.grammar.remote && (ctx.Err() != nil || d.grammar.broken(err) || errors.Is(err, ErrSuppressed)) {
			discard(conn)
		} else if err == nil && d.grammar.unpinged {
			d.used.note(conn)
		}
		_ = conn.Close() // back to the pool, or gone already
		if try == 3 || !errors.Is(err, driver.ErrBadConn) {
			return err
		}
	}
}

// ask is on for a call of its own.
func (d *database) ask(ctx context.Context, use func(context.Context, *sql.Conn) error) error {
	return d.bounded(ctx, func(ctx context.Context) error {
		return d.on(ctx, func(conn *sql.Conn) error { return use(ctx, conn) })
	})
}

// execute is on for a statement that returns no rows.
func (d *database) execute(ctx context.Context, text string, args ...any) (result sql.Result, err error) {
	err = d.on(ctx, func(conn *sql.Conn) error {
		result, err = conn.ExecContext(ctx, text, args...)
		return err
	})
	return result, err
}

// discard closes a connection for good. One of a pgxpool ([stdlib.OpenDBFromPool])
// would go back there unless it is closed itself.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(raw any) error {
		if driven, ok := raw.(*stdlib.Conn); ok {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			defer cancel()
			_ = driven.Conn().Close(ctx)
		}
		return driver.ErrBadConn
	})
}
