package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
)

// elected holds the whole outbox, by an advisory lock of a transaction: of all
// relays, one. The transaction is open for as long as the relay leads. So it is one
// and the same session that has the lock and fetches, also where a pooler in
// transaction mode hands sessions out, and the server gives the lock to another relay
// as soon as it notices that this one is gone. What becomes of its rows is as if it
// were the only relay; to mark them one may who is elected no more, as they were
// delivered.
//
// Between its statements the transaction holds nothing back: it has written nothing,
// has no snapshot (READ COMMITTED), and a savepoint that is rolled back gives back the
// locks of tables.
type elected struct {
	shared
	silence time.Duration // after which the server takes this relay for gone
	turn    chan struct{} // holds a value while somebody uses what follows
	conn    *sql.Conn     // in the transaction; nil without the lock
	used    time.Time     // when the server heard of it
	backend int           // of the session
	floor   floor         // of this time that it leads
	said    bool          // in the log, that it leads
	failing bool          // its fetches, for each of which it may be elected anew: the log has that once
	looked  time.Time     // when it last looked whether the one that leads is stuck

	leads atomic.Bool // for those who do not have the turn
}

// leaderSilence is long for a relay that has something to do every second, and short
// for those who wait for its end.
const leaderSilence = 15 * time.Second

const (
	// By the name: a table that takes another's place under a leader has the same.
	electionKey = `hashtextextended('courier ' || (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = '{outbox}'::regclass) || '.{table}', 0)`

	beginElection = `BEGIN ISOLATION LEVEL READ COMMITTED`
	// On a standby advisory locks are the standby's own.
	electText = `SELECT read_only, pg_backend_pid(), CASE WHEN read_only THEN false ELSE pg_try_advisory_xact_lock(` + electionKey + `) END
		FROM (SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on') AS server(read_only)`
	// The time that an administrator allows transactions is for those that hold
	// something back.
	leadText = `SELECT set_config(name, CASE name WHEN 'transaction_timeout' THEN '0' ELSE '{silence}' END, true)
		FROM pg_settings WHERE name IN ('transaction_timeout', 'idle_in_transaction_session_timeout')`
	lead          = leadText + `; {plan}; SAVEPOINT courier`
	backToLeading = `ROLLBACK TO SAVEPOINT courier`
	stillElected  = `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted
		AND objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = ` + electionKey + `)`
	// Of whoever leads, as the README shows it.
	leaderText = `SELECT l.pid, COALESCE(a.application_name, '') ` + lockedBy + electionKey + ` LIMIT 1`
	// In one message, so that no pooler takes the session away in between, and with
	// a lock of the session, so that no other relay is elected.
	commitAndLead = `SELECT pg_advisory_lock(` + electionKey + `); COMMIT; ` + beginElection + `;
		SELECT pg_advisory_xact_lock(` + electionKey + `); SELECT pg_advisory_unlock(` + electionKey + `); ` + lead
)

const (
	lowestText = `SELECT min(seq) FROM (SELECT seq FROM {outbox} WHERE processed_at IS NULL AND attempts < 1 AND seq >= $1::bigint ORDER BY seq LIMIT 1) AS l`
	// Whoever inserts has this lock before a number is given, until the row is to be seen.
	writersText = `SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
		AND relation = '{outbox}'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
)

var errReadOnly = errors.New("this is a read-only server, a standby perhaps, or a role or database with default_transaction_read_only, where no relay is elected as it could mark nothing: connect to the primary (target_session_attrs=read-write)")

func newElected(o *Outbox) *elected {
	return &elected{shared: shared{outbox: o}, silence: leaderSilence, turn: make(chan struct{}, 1)}
}

// sql puts names and times into a statement.
func (e *elected) sql(text string) string {
	return strings.NewReplacer("{silence}", fmt.Sprint(e.silence.Milliseconds()), "{plan}", e.outbox.grammar.plan).Replace(e.outbox.sql(text))
}

func (e *elected) fetch(ctx context.Context, limit int, _ int64) (batch []Row, err error) {
	if err := enter(ctx, e.turn); err != nil {
		return nil, err
	}
	defer func() {
		e.failing = err != nil
		<-e.turn
	}()
	led := e.conn != nil
	batch, err = e.read(ctx, limit)
	if err == nil || !led || ctx.Err() != nil {
		return batch, err
	}
	// It was taken for gone, if nobody had the session heard of. If its statement failed,
	// the server may not yet have noticed that the session has ended.
	failed := err
	if batch, err = e.read(ctx, limit); err == nil && e.conn == nil && postgresCode(failed) != "" && !e.outbox.grammar.broken(failed) {
		err = failed
	}
	return batch, err
}

func (e *elected) read(ctx context.Context, limit int) (batch []Row, err error) {
	if elected, err := e.elect(ctx); err != nil || !elected {
		return nil, err
	}
	o := e.outbox
	all, long, first, last := e.ranges()
	began := o.now()
	from := e.floor.from(began)
	statements := new(pgx.Batch)
	statements.Queue(o.fetch.text, limit, first, last, from, o.share(limit), all, long).Query(func(rows pgx.Rows) (err error) {
		batch, err = collect(rows, limit)
		return err
	})
	statements.Queue(backToLeading)
	err = send(ctx, e.conn, statements)
	if err == nil {
		batch = o.earliest(batch, limit)
		if rest := o.leftOut(&batch); rest != nil {
			rest.Queue(backToLeading)
			err = send(ctx, e.conn, rest)
		}
		now := o.now()
		if err == nil && e.floor.sees(batch, from, now, now.Sub(began)) {
			err = e.look(ctx)
		}
	}
	if err != nil {
		e.resign("a fetch failed", err)
		e.failing = true
		return nil, err
	}
	e.used = time.Now()
	e.sayThatItLeads()
	e.add(batch)
	return batch, nil
}

// look looks for the number that fetches may begin at.
func (e *elected) look(ctx context.Context) error {
	var lowest *int64
	var before, after []string
	began := e.outbox.now()
	statements := new(pgx.Batch)
	writers := func(into *[]string) {
		statements.Queue(e.sql(writersText)).Query(func(rows pgx.Rows) (err error) {
			*into, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
	}
	writers(&before) // each statement sees what was committed before it began
	statements.Queue(e.sql(lowestText), e.floor.seq).QueryRow(func(row pgx.Row) error { return row.Scan(&lowest) })
	writers(&after)
	statements.Queue(backToLeading)
	if err := send(ctx, e.conn, statements); err != nil {
		return err
	}
	now := e.outbox.now()
	e.floor.looked(lowest, before, after, now, now.Sub(began))
	return nil
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
	conn, err := e.outbox.connection(ctx)
	if err != nil {
		return false, err
	}
	got, err := e.campaign(ctx, conn)
	if err == nil && !got {
		if _, err = conn.ExecContext(ctx, "ROLLBACK"); err == nil {
			err = e.endStuck(ctx, conn)
		}
	}
	if err != nil {
		discard(conn)
	}
	if err != nil || !got {
		_ = conn.Close() // back to the pool, or gone already
		return false, err
	}
	e.conn, e.used, e.floor = conn, time.Now(), newFloor()
	e.leads.Store(true)
	e.outbox.opened(e, true)
	if !e.failing {
		e.sayThatItLeads()
	}
	return true, nil
}

func (e *elected) sayThatItLeads() {
	if !e.said {
		e.said = true
		e.outbox.log.Info("couriersql: this relay delivers from now on, and the others of its table stand by", "table", e.outbox.table, "backend", e.backend)
	}
}

// campaign begins the transaction, with the lock if it is to be had.
func (e *elected) campaign(ctx context.Context, conn *sql.Conn) (got bool, err error) {
	if _, err := conn.ExecContext(ctx, beginElection); err != nil {
		return false, err
	}
	var readOnly bool
	if err := conn.QueryRowContext(ctx, e.sql(electText)).Scan(&readOnly, &e.backend, &got); err != nil {
		return false, err
	}
	if readOnly {
		return false, errReadOnly
	}
	if !got {
		return false, nil
	}
	return true, e.message(ctx, conn, lead)
}

// endStuck ends the session of the relay that leads, if it is frozen while rows are sent to
// it: the server takes one that is silent for gone only between its statements. One whose fetch
// is slow gives up by itself at its query timeout.
func (e *elected) endStuck(ctx context.Context, conn *sql.Conn) error {
	if time.Since(e.looked) < e.silence/3 {
		return nil
	}
	e.looked = time.Now()
	ended, err := endStuck(ctx, conn, e.sql(electionKey), max(e.silence, e.outbox.timeout))
	if ended.backend != 0 {
		ended.tell(e.outbox.log, "the relay that leads", e.outbox.table)
	}
	return err
}

// message sends statements in one message.
func (e *elected) message(ctx context.Context, conn *sql.Conn, text string) error {
	return native(conn, func(c *pgx.Conn) error {
		_, err := c.PgConn().Exec(ctx, e.sql(text)).ReadAll()
		return err
	})
}

// confirm looks whether this relay is still the one.
func (e *elected) confirm(ctx context.Context) (bool, error) {
	if e.conn == nil {
		return false, nil
	}
	var still bool
	err := e.conn.QueryRowContext(ctx, e.sql(stillElected)).Scan(&still)
	if err == nil && still {
		e.used = time.Now()
		return true, nil
	}
	e.resign("its session did not confirm the lock", err) // also where the context has ended, and the session with it
	return false, ctx.Err()
}

// beat lets the server hear of a relay that has nothing to do.
func (e *elected) beat(ctx context.Context) error {
	if err := enter(ctx, e.turn); err != nil {
		return err
	}
	defer func() { <-e.turn }()
	if time.Since(e.used) < e.silence/3 {
		return nil
	}
	_, err := e.confirm(ctx)
	return err
}

func (e *elected) renew(ctx context.Context, rows []Row) (map[string]bool, error) {
	if err := enter(ctx, e.turn); err != nil {
		return nil, err
	}
	defer func() { <-e.turn }()
	if still, err := e.confirm(ctx); still || err != nil {
		return nil, err
	}
	lost := make(map[string]bool, len(rows))
	for _, row := range rows {
		lost[row.ID] = true
	}
	e.removeRows(rows) // a coordinator leaves them alone, and this relay may lead again
	return lost, nil
}

func (e *elected) renewEvery() time.Duration { return time.Second }

// park is of the session that has the lock, and so of nobody who is elected no
// more: unlike a mark, which tells of what was delivered, it can be left to the
// next one.
func (e *elected) park(ctx context.Context, letter courier.DeadLetter[Row]) error {
	if err := enter(ctx, e.turn); err != nil {
		return err
	}
	defer func() { <-e.turn }()
	if e.conn == nil {
		return ErrLeaseLost
	}
	if err := e.outbox.move(ctx, e.conn, letter, e.marking(letter.Record)); err != nil {
		if _, lost := e.conn.ExecContext(ctx, backToLeading); lost != nil {
			e.resign("storing a dead letter failed", err)
		}
		return err
	}
	if err := e.message(ctx, e.conn, commitAndLead); err != nil {
		e.resign("storing a dead letter failed", err)
		return err
	}
	e.used = time.Now()
	e.inHand.park(letter.Record)
	return nil
}

// resign ends the session, and the lock with it. err may be nil.
func (e *elected) resign(why string, err error) {
	if e.conn == nil {
		return
	}
	discard(e.conn)
	_ = e.conn.Close()
	e.conn = nil
	e.leads.Store(false)
	e.outbox.opened(e, false)
	if !e.said {
		return
	}
	e.said = false
	switch silent := time.Since(e.used); {
	case errors.Is(err, context.Canceled):
		why = "a call was cancelled, as where a coordinator stops"
	case err != nil && silent >= e.silence:
		why = fmt.Sprintf("the server and this relay did not hear of each other for %v: was its process suspended, or the network or the server away?", silent.Round(time.Millisecond))
	}
	attrs := []any{"table", e.outbox.table, "backend", e.backend, "why", why}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	e.outbox.log.Info("couriersql: this relay delivers no more; the relay that is elected next delivers the rows that are not marked", attrs...)
}

func (e *elected) close() {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	if e.conn != nil { // so that the next one is elected at once
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_, _ = e.conn.ExecContext(ctx, `ROLLBACK`)
	}
	e.resign("its outbox is closed", nil)
}
