package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// A server that sends rows to a process that is stopped waits until it goes on, and to a
// machine that is gone for as long as TCP does. No timeout but tcp_user_timeout, which few set,
// ends a session that waits so, and an advisory lock that it has keeps all other relays
// waiting. So they end it. They see it in the sessions of their own role, and may end these.

// lockedBy is the session that has the advisory lock of the number that follows.
const lockedBy = `FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND l.objsubid = 1 AND ((l.classid::bigint << 32) | l.objid::bigint) = `

// stuckText ends the session that has an advisory lock, if it has waited for $1 microseconds
// for its client to take what it sends.
const stuckText = `SELECT l.pid, COALESCE(a.application_name, ''), pg_terminate_backend(l.pid) ` + lockedBy + `%s
		AND a.wait_event = 'ClientWrite' AND a.query_start < clock_timestamp() - $1::bigint * interval '1 microsecond'`

// stuck is a session that was ended.
type stuck struct {
	backend     int // 0 is none
	application string
}

// tell logs what was done.
func (s stuck) tell(log *slog.Logger, who, table string) {
	log.Warn("couriersql: "+who+" took no rows of its fetch, while others waited for it, and its session was ended: look for a process that is frozen, or a machine that is gone",
		"table", table, "backend", s.backend, "application", s.application)
}

// endStuck ends the session that has the advisory lock of a number, which is an expression,
// if it is stuck.
func endStuck(ctx context.Context, conn *sql.Conn, lock string, since time.Duration) (ended stuck, err error) {
	var signalled bool
	err = conn.QueryRowContext(ctx, fmt.Sprintf(stuckText, lock), since.Microseconds()).Scan(&ended.backend, &ended.application, &signalled)
	if errors.Is(err, sql.ErrNoRows) || err == nil && !signalled {
		return stuck{}, nil
	}
	return ended, err
}
