package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// A server that sends rows to a process that is stopped waits until it goes on, and to a
// machine that is gone for as long as TCP does. No timeout of PostgreSQL ends a session that
// waits so, and an advisory lock that it has keeps all other relays waiting. So they end it.
// They see it in the sessions of their own role, and may end these.

// stuckText ends the session that has an advisory lock, if it has waited for $1 microseconds
// for its client to take what it sends.
const stuckText = `SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
	FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) JOIN pg_database AS d ON d.oid = l.database
	WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database() AND l.objsubid = 1
		AND ((l.classid::bigint << 32) | l.objid::bigint) = %s
		AND a.wait_event = 'ClientWrite' AND a.query_start < clock_timestamp() - $1::bigint * interval '1 microsecond'`

// endStuck ends the session that has the advisory lock of a number, which is an expression,
// if it is stuck. It returns how many these were.
func endStuck(ctx context.Context, conn *sql.Conn, lock string, since time.Duration) (ended int, err error) {
	err = conn.QueryRowContext(ctx, fmt.Sprintf(stuckText, lock), since.Microseconds()).Scan(&ended)
	return ended, err
}
