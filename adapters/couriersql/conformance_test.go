package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/courierttest"
)

// conforming are the ways to hold rows, and what each has beyond the contract.
var conforming = map[string]struct {
	dialect  Dialect
	opts     []Option
	features courierttest.SourceFeatures
	streams  bool
}{
	"sqlite shared": {SQLite, nil, courierttest.SourceFeatures{}, true},
	"sqlite leased": {SQLite, []Option{WithLease(time.Minute), WithMaxCrashes(-1)}, courierttest.SourceFeatures{Lease: time.Minute, Fenced: true}, true},
	"locked":        {Postgres, nil, courierttest.SourceFeatures{}, false},
	"locked waking": {Postgres, []Option{WithWakeUp()}, courierttest.SourceFeatures{Waker: true}, false},
	"leased":        {Postgres, []Option{WithLease(time.Minute), WithMaxCrashes(-1)}, courierttest.SourceFeatures{Lease: time.Minute, Fenced: true}, true},
	"elected":       {Postgres, []Option{WithStrictOrder(), WithWakeUp()}, courierttest.SourceFeatures{Waker: true}, true},
	"mysql":         {MySQL, []Option{WithLease(time.Minute)}, courierttest.SourceFeatures{Lease: time.Minute, Fenced: true}, true},
	"mysql strict":  {MySQL, []Option{WithStrictOrder(), WithLease(time.Minute)}, courierttest.SourceFeatures{Lease: time.Minute, Fenced: true}, false}, // of two streams, the second would wait
}

func TestConformance_Source(t *testing.T)       { conform(t, false) }
func TestConformance_StreamSource(t *testing.T) { conform(t, true) }

func conform(t *testing.T, stream bool) {
	test := courierttest.TestSource[Row]
	if stream {
		test = courierttest.TestStreamSource[Row]
	}
	for name, c := range conforming {
		if stream && !c.streams {
			continue
		}
		f := c.features
		f.Patience = time.Minute // the cases run side by side
		f.Ordered, f.Releaser, f.ReleasesAtOnce, f.Failer, f.Renewer, f.Lagger, f.Identifier = true, true, true, true, true, true, true
		for keep, opts := range keeping {
			if keep != "delete" && (stream || f.Waker) {
				continue // these take their time, and mark in no other way
			}
			t.Run(name+" "+keep, func(t *testing.T) {
				t.Parallel()
				test(t, func(t *testing.T) courierttest.SourceFixture[Row] {
					return sourceFixture(t, c.dialect, stream, slices.Concat(c.opts, opts))
				}, f)
			})
		}
	}
}

// ticking is a clock that is set.
type ticking struct {
	mu sync.Mutex
	fixed
}

func (c *ticking) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *ticking) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func databaseOf(t testing.TB, dialect Dialect) *sql.DB {
	t.Helper()
	switch dialect {
	case Postgres:
		return openPostgres(t, pgtest.Schema(t))
	case MySQL:
		return openMySQL(t, mytest.Database(t), spelledAsElsewhere)
	}
	return open(t, filepath.Join(t.TempDir(), "test.db"))
}

// refusing are statements that have marks fail of the rows that are in the table
// refused. They leave claims alone.
func refusing(dialect Dialect) []string {
	if dialect == Postgres {
		return []string{
			`CREATE TABLE refused (seq bigint)`,
			`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF (TG_OP = 'DELETE' OR NEW.processed_at IS NOT NULL) AND EXISTS (SELECT FROM refused WHERE seq = OLD.seq)
				THEN RAISE 'refused'; END IF;
				RETURN COALESCE(NEW, OLD);
			END $$`,
			`CREATE TRIGGER refuse BEFORE DELETE OR UPDATE ON courier_outbox FOR EACH ROW EXECUTE FUNCTION refuse()`,
		}
	}
	if dialect == MySQL {
		const signal = ` ON courier_outbox FOR EACH ROW IF %s OLD.seq IN (SELECT seq FROM refused) THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'; END IF`
		return []string{
			`CREATE TABLE refused (seq bigint)`,
			`CREATE TRIGGER refuse_delete BEFORE DELETE` + fmt.Sprintf(signal, ""),
			`CREATE TRIGGER refuse_update BEFORE UPDATE` + fmt.Sprintf(signal, "NEW.processed_at IS NOT NULL AND"),
		}
	}
	const raise = ` ON courier_outbox WHEN %s old.seq IN (SELECT seq FROM refused) BEGIN SELECT raise(ABORT, 'refused'); END`
	return []string{
		`CREATE TABLE refused (seq integer)`,
		`CREATE TRIGGER refuse_delete BEFORE DELETE` + fmt.Sprintf(raise, ""),
		`CREATE TRIGGER refuse_update BEFORE UPDATE` + fmt.Sprintf(raise, "new.processed_at IS NOT NULL AND"),
	}
}

func sourceFixture(t *testing.T, dialect Dialect, stream bool, opts []Option) courierttest.SourceFixture[Row] {
	t.Helper()
	db := databaseOf(t, dialect)
	clock := &ticking{fixed: fixed{start}}
	opts = append(opts, WithClock(clock), WithLogger(slog.New(slog.DiscardHandler)))
	o := outboxIn(t, db, opts...)
	for _, text := range refusing(dialect) {
		execute(t, db, text)
	}
	sourceOf := func(o *Outbox) courier.Source[Row] {
		if stream {
			return o.Stream(5 * time.Millisecond)
		}
		return o.Source()
	}
	var written []string
	return courierttest.SourceFixture[Row]{
		Source: sourceOf(o),
		Add: func(n int) []string {
			for range n {
				written = append(written, fmt.Sprintf("message %d", len(written)))
			}
			added := slices.Clone(written[len(written)-n:])
			write(t, o, named(added...)...)
			return added
		},
		Name: func(row Row) string { return row.ID },
		Reopen: func() courier.Source[Row] {
			if o.strict && o.dialect == Postgres { // there is one at a time
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			}
			return sourceOf(outboxIn(t, db, opts...))
		},
		Marked: func() []string {
			marked := slices.Clone(written)
			rows, err := db.QueryContext(t.Context(), `SELECT id FROM courier_outbox WHERE processed_at IS NULL`)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			for rows.Next() {
				var id string
				if err := rows.Scan(&id); err != nil {
					t.Fatal(err)
				}
				marked = slices.DeleteFunc(marked, func(name string) bool { return name == id })
			}
			return marked
		},
		FailMarks: func(row Row) func() {
			execute(t, db, `INSERT INTO refused VALUES ($1)`, row.Seq)
			return func() { execute(t, db, `DELETE FROM refused`) }
		},
		Advance: func(d time.Duration) {
			clock.advance(d)
			switch dialect { // a server's own clock is the one that counts
			case Postgres:
				execute(t, db, `UPDATE courier_outbox SET available_at = available_at - $1 * interval '1 microsecond'`, d.Microseconds())
			case MySQL:
				execute(t, db, `UPDATE courier_outbox_courier SET available_at = available_at - $1`, d.Microseconds())
				execute(t, db, `UPDATE courier_outbox_courier_batches SET until = until - $1 WHERE id > 1`, d.Microseconds())
			}
		},
	}
}

// parking is a source's queue whose records are in the source's hand when they
// are sent, and are marked afterwards: one at a time, as a row is not handed out
// that comes before one in hand.
type parking struct {
	*DLQ[Row]
	t      *testing.T
	source *Source
	mu     *sync.Mutex
}

func (p parking) Send(ctx context.Context, letter courier.DeadLetter[Row]) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	row, err := p.take(letter.Record)
	if err != nil {
		return err
	}
	letter.Record = row
	if err := p.DLQ.Send(ctx, letter); err != nil {
		return err
	}
	return p.source.Mark(p.t.Context(), []Row{row})
}

// take writes a row and fetches it.
func (p parking) take(r Row) (Row, error) {
	o := p.source.outbox
	execute(p.t, o.db, `INSERT INTO courier_outbox (seq, id, topic, "key", payload, headers, trace, created_at) VALUES ($1, $2, $3, '', $4, '', '', $5)`,
		r.Seq, r.ID, r.Topic, r.Payload, o.grammar.time(r.CreatedAt))
	rows, err := p.source.Fetch(p.t.Context(), 1)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("fetched %v", rows)
	}
	if err != nil {
		return Row{}, err
	}
	return rows[0], nil
}

func (p parking) SameQueue(other courier.DeadLetterSink[Row]) bool {
	o, ok := other.(parking)
	return ok && p.DLQ.SameQueue(o.DLQ)
}

func TestConformance_SourceDLQ(t *testing.T) {
	queueOf := func(t *testing.T, o *Outbox) courier.DLQ[Row] {
		s := o.Source()
		s.RenewEvery()
		return parking{s.DLQ(), t, s, new(sync.Mutex)}
	}
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			courierttest.TestDLQ(t, func(t *testing.T) courierttest.DLQFixture[Row] {
				o := newOutbox(t)
				again := func(opts ...Option) *Outbox {
					return outboxIn(t, o.db, append(opts, func(other *Outbox) { other.lease, other.strict = o.lease, o.strict })...)
				}
				return courierttest.DLQFixture[Row]{
					DLQ:       queueOf(t, o),
					Record:    conformingRecord,
					Name:      nameOfColumns,
					Reopen:    func() courier.DLQ[Row] { return queueOf(t, again()) },
					Other:     func() courier.DLQ[Row] { return queueOf(t, again(WithTable("events"))) },
					FailSends: func() func() { return takeDLQAway(t, o.db) },
				}
			}, courierttest.DLQFeatures{Identity: true, Keyed: true, Shared: true})
		})
	}
}

func conformingRecord(n int) Row {
	return Row{Seq: int64(n + 1), ID: fmt.Sprintf("message %d", n), Topic: "orders", Payload: []byte{0xff, byte(n)}, CreatedAt: start.UnixMicro()}
}

func nameOfColumns(row Row) string {
	type columns Row // which are all printed
	return fmt.Sprintf("%+v", columns(row))
}

// takeDLQAway makes a queue fail until it is brought back.
func takeDLQAway(t *testing.T, db *sql.DB) (back func()) {
	t.Helper()
	execute(t, db, `ALTER TABLE courier_outbox_dlq RENAME TO away`)
	return func() { execute(t, db, `ALTER TABLE away RENAME TO courier_outbox_dlq`) }
}

func TestConformance_DLQ(t *testing.T) {
	for name, dialect := range map[string]Dialect{"sqlite": SQLite, "postgres": Postgres, "mysql": MySQL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			courierttest.TestDLQ(t, func(t *testing.T) courierttest.DLQFixture[Row] {
				db := databaseOf(t, dialect)
				o := outboxIn(t, db)
				return courierttest.DLQFixture[Row]{
					DLQ:       o.DLQ(),
					Record:    conformingRecord,
					Name:      nameOfColumns,
					Reopen:    func() courier.DLQ[Row] { return outboxIn(t, db).DLQ() },
					Other:     func() courier.DLQ[Row] { return outboxIn(t, db, WithTable("events")).DLQ() },
					FailSends: func() func() { return takeDLQAway(t, db) },
				}
			}, courierttest.DLQFeatures{Identity: true, Keyed: true, Shared: true})
		})
	}
}
