package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// WithWakeUp lets relays fetch as soon as a message is committed, instead of
// when their interval has passed. Migrate adds a trigger to the table that sends
// a notification, by whichever program rows are inserted, and each source listens
// on a connection of its own out of the pool, until [Outbox.Close]. It is for
// PostgreSQL.
//
// The listener connects again when its connection is lost. Notifications that
// are lost meanwhile cost the interval and no message. Where it cannot work, as
// behind a pooler in transaction mode, it says so once, and the relay polls.
//
// Transactions that notify commit one after the other in PostgreSQL: leave it
// off where thousands of them a second write to the outbox. The server keeps
// notifications until each session that listens has read them, in a queue of 8 GB
// for all databases. Any program that listens and then sits in a transaction, or
// hangs, fills it; once it is full, every transaction that writes a message fails
// at its commit. The source warns when the queue is half full.
func WithWakeUp() Option { return func(o *Outbox) { o.wakeUp = true } }

// Wake starts to listen, if it was not begun before, and returns the channel
// that tells a polling coordinator to fetch now. It is nil without [WithWakeUp]
// and [WithStrictOrder], the latter of which tells of an election.
func (s *Source) Wake() <-chan struct{} {
	if s.outbox.fault != nil || !s.outbox.wakeUp && s.waker.elected == nil {
		return nil
	}
	s.waker.start()
	return s.waker.wake
}

const (
	echoTimeout  = 5 * time.Second // for a notification to oneself
	probeEvery   = time.Minute     // a connection may be dead without a sign
	queueFull    = 0.5             // of the notifications, worth a warning
	relistenMin  = 100 * time.Millisecond
	relistenMax  = 30 * time.Second
	takeoverTry  = time.Second      // how often a relay that stands by tries to be elected
	probeTimeout = 10 * time.Second // for an answer on the connection that listens
)

// waker runs what tells a coordinator to fetch: the listener, and in a relay
// that stands by the look-out for its election.
type waker struct {
	outbox  *Outbox
	elected *elected // nil if there are no elections
	wake    chan struct{}
	probe   time.Duration // how often the connection that listens is asked for a sign of life
	heard   atomic.Bool   // since the last session, an echo

	mu   sync.Mutex
	stop context.CancelFunc // nil while nothing runs
	wg   sync.WaitGroup
}

func (w *waker) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	if w.outbox.wakeUp {
		w.wg.Go(func() { w.listen(ctx) })
	}
	if w.elected != nil {
		w.wg.Go(func() { w.standBy(ctx) })
	}
	w.outbox.opened(w, true)
}

func (w *waker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop != nil {
		w.stop()
		w.wg.Wait() // for what ends with its context, and takes no lock
		w.stop = nil
		w.outbox.opened(w, false)
	}
}

// tell wakes the coordinator, unless it has a wake-up waiting, or has no say.
func (w *waker) tell() {
	if w.elected != nil && !w.elected.leads.Load() {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// standBy tries to be elected, as the coordinator's interval may be long, and for
// the same reason lets the server hear of a relay that leads.
func (w *waker) standBy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(takeoverTry):
		}
		if w.elected.leads.Load() {
			_ = w.outbox.bounded(ctx, w.elected.beat)
			continue
		}
		_ = w.outbox.bounded(ctx, func(ctx context.Context) error { // an error is the next fetch's to tell
			elected, err := w.elected.try(ctx)
			if elected {
				w.tell()
			}
			return err
		})
	}
}

// errCannotListen is what no reconnection mends.
var errCannotListen = errors.New("a notification to itself did not arrive")

func (w *waker) listen(ctx context.Context) {
	log := w.outbox.log
	pause, silent := relistenMin, false
	for {
		began := time.Now()
		err := w.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > relistenMax {
			silent = false // it worked for a while
		}
		if w.heard.Swap(false) {
			pause = relistenMin
		}
		switch {
		case errors.Is(err, errCannotListen):
			log.Warn("couriersql: there is no wake-up, and the relay polls: is there a pooler in transaction mode in between?", "table", w.outbox.table, "error", err)
			return
		case w.outbox.grammar.outdated(err): // the fetch has the same to tell
		case !silent:
			log.Warn("couriersql: the wake-up is interrupted; the relay polls meanwhile, and nothing is lost", "table", w.outbox.table, "error", err)
			silent = true // an outage is told of once
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, relistenMax)
	}
}

// session listens on one connection until that is lost.
func (w *waker) session(ctx context.Context) error {
	o := w.outbox
	var conn *sql.Conn
	if err := o.bounded(ctx, func(ctx context.Context) (err error) {
		conn, err = o.connection(ctx)
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return conn.Raw(func(raw any) error {
		driven, ok := raw.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("%w, as the driver of the *sql.DB is not pgx: %T", errCannotListen, raw)
		}
		err := w.receive(ctx, driven.Conn())
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = driven.Conn().Close(closing) // nobody else is to get a connection that listens
		return errors.Join(driver.ErrBadConn, err)
	})
}

func (w *waker) receive(ctx context.Context, conn *pgx.Conn) error {
	o := w.outbox
	every, err := w.probes(ctx, conn)
	if err != nil {
		return err
	}
	if err := w.begin(ctx, conn); err != nil {
		return err
	}
	w.tell() // of what was written while nobody listened
	var full bool
	for {
		waiting, cancel := context.WithTimeout(ctx, every)
		_, err := conn.WaitForNotification(waiting)
		late := waiting.Err() != nil
		cancel()
		switch {
		case err == nil:
			w.tell()
		case ctx.Err() != nil:
			return ctx.Err()
		case !late:
			return err
		default:
			probe, cancel := context.WithTimeout(ctx, min(probeTimeout, o.timeout))
			var used float64
			err := conn.QueryRow(probe, "SELECT pg_notification_queue_usage()").Scan(&used)
			cancel()
			if err != nil {
				return fmt.Errorf("%s: the connection that listens is dead: %w", o.table, err)
			}
			if used >= queueFull && !full {
				o.log.Warn("couriersql: the server's queue of notifications fills, and once it is full every transaction that writes a message fails at its commit; a session that listens sits in a transaction or its client hangs: end it",
					"table", o.table, "full", used)
			}
			full = used >= queueFull
		}
	}
}

// probes is how often a connection is probed: a server that ends idle sessions is not
// to end this one.
func (w *waker) probes(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, min(probeTimeout, w.outbox.timeout))
	defer cancel()
	var idle int64 // in milliseconds
	err := conn.QueryRow(ctx, `SELECT coalesce(max(setting::bigint), 0) FROM pg_settings WHERE name = 'idle_session_timeout'`).Scan(&idle)
	if err != nil || idle == 0 {
		return w.probe, err
	}
	return min(w.probe, time.Duration(idle)*time.Millisecond/2), nil
}

// begin listens, and sees whether it hears anything. It is another connection
// that sends: a pooler may let through what the listening one sends itself.
func (w *waker) begin(ctx context.Context, conn *pgx.Conn) error {
	o := w.outbox
	ctx, cancel := context.WithTimeout(ctx, min(probeTimeout, o.timeout))
	defer cancel()
	if _, err := conn.Exec(ctx, o.sql(`LISTEN "{table}"`)); err != nil {
		return err
	}
	var triggered bool
	if err := conn.QueryRow(ctx, o.sql(firesTrigger)).Scan(&triggered); err != nil {
		return err
	}
	if !triggered {
		o.log.Warn("couriersql: the table has no trigger that sends notifications, or a disabled one, and the relay polls: call Migrate of an outbox made with WithWakeUp, or ALTER TABLE … ENABLE TRIGGER", "table", o.table)
	}
	echo := newOwner()
	if _, err := o.execute(ctx, `SELECT pg_notify($1, $2)`, o.name, echo); err != nil {
		return fmt.Errorf("sending a notification to itself over another connection of the pool: %w", err)
	}
	waiting, cancelWaiting := context.WithTimeout(ctx, echoTimeout)
	defer cancelWaiting()
	for {
		notification, err := conn.WaitForNotification(waiting)
		switch {
		case err == nil && notification.Payload == echo:
			w.heard.Store(true)
			return nil
		case err == nil:
			w.tell()
		case waiting.Err() != nil:
			return errCannotListen
		default:
			return err
		}
	}
}

const (
	theTrigger   = `SELECT FROM pg_trigger WHERE tgrelid = '{outbox}'::regclass AND tgname = '{table}_notify'`
	hasTrigger   = `SELECT EXISTS (` + theTrigger + `)`
	firesTrigger = `SELECT EXISTS (` + theTrigger + ` AND tgenabled IN ('O', 'A'))`

	createNotify = `CREATE OR REPLACE FUNCTION "{table}_notify"() RETURNS trigger LANGUAGE plpgsql
		AS $$ BEGIN PERFORM pg_notify('{table}', ''); RETURN NULL; END $$`
	createTrigger = `CREATE TRIGGER "{table}_notify" AFTER INSERT ON {outbox}
		FOR EACH STATEMENT EXECUTE FUNCTION "{table}_notify"()`
)

// addTrigger adds the trigger if there is none: to replace it would be to wait
// for every writer at each start of a program.
func (o *Outbox) addTrigger(ctx context.Context, conn *sql.Conn) error {
	var there bool
	if err := conn.QueryRowContext(ctx, o.sql(hasTrigger)).Scan(&there); err != nil || there {
		return err
	}
	for _, text := range []string{createNotify, createTrigger} {
		if _, err := conn.ExecContext(ctx, o.sql(text)); err != nil {
			return err
		}
	}
	return nil
}
