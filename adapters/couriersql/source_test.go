package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

var keeping = map[string][]Option{"delete": nil, "keep": {WithKeep()}}

func TestFetchNeverAcknowledges(t *testing.T) { inEach(t, testFetchNeverAcknowledges) }

func testFetchNeverAcknowledges(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	write(t, o, named("a", "b", "c")...)
	require.Equal(t, []string{"a", "b"}, idsOf(fetch(t, o, 2)))
	require.Equal(t, []string{"a", "b", "c"}, idsOf(fetch(t, o, 1_000_000)))
	require.Empty(t, fetch(t, o, 0))
	require.Empty(t, fetch(t, o, -1))
	n, err := o.Pending(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, n)
}

func TestMarkAnySubsetInAnyOrderTwice(t *testing.T) { inEach(t, testMarkAnySubsetInAnyOrderTwice) }

func testMarkAnySubsetInAnyOrderTwice(t *testing.T, newOutbox maker) {
	for name, opts := range keeping {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, opts...)
			write(t, o, named("a", "b", "c", "d")...)
			source := o.Source()
			rows := take(t, source, 10)
			for range 2 {
				require.NoError(t, source.Mark(t.Context(), []Row{rows[3], rows[1]}))
				require.Equal(t, []string{"a", "c"}, pendingOf(t, o))
			}
			require.NoError(t, source.Mark(t.Context(), []Row{rows[1], rows[0], {Seq: 99}}))
			require.Equal(t, []string{"c"}, pendingOf(t, o))
			require.NoError(t, source.Mark(t.Context(), nil))
			n, err := o.Pending(t.Context())
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	}
}

func TestMarkDeletes(t *testing.T) { inEach(t, testMarkDeletes) }

func testMarkDeletes(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	write(t, o, named("a")...)
	source := o.Source()
	require.NoError(t, source.Mark(t.Context(), take(t, source, 10)))
	require.Zero(t, count(t, o.db, "SELECT count(*) FROM courier_outbox"))
}

func TestMarkKeepsTheFirstTime(t *testing.T) {
	clock := &fixed{start}
	o := newOutbox(t, WithKeep(), WithClock(clock))
	write(t, o, named("a")...)
	rows := fetch(t, o, 10)
	require.NoError(t, o.Source().Mark(t.Context(), rows))
	clock.now = start.AddDate(1, 0, 0)
	require.NoError(t, o.Source().Mark(t.Context(), rows))
	require.EqualValues(t, start.UnixMicro(), count(t, o.db, "SELECT processed_at FROM courier_outbox"))
}

// A seq that came back would let a repeated mark take a row nobody applied.
func TestMarkRepeatedLateTakesNoNewRow(t *testing.T) { inEach(t, testMarkRepeatedLateTakesNoNewRow) }

func testMarkRepeatedLateTakesNoNewRow(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	write(t, o, named("a")...)
	source := o.Source()
	old := take(t, source, 10)
	require.NoError(t, source.Mark(t.Context(), old))
	write(t, o, named("b")...)
	require.NoError(t, source.Mark(t.Context(), old))
	require.Equal(t, []string{"b"}, idsOf(fetch(t, o, 10)))
}

func TestMarkIsOneStatement(t *testing.T) {
	for name, opts := range keeping {
		for _, size := range []int{1, 40_000} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				executed := new(atomic.Int64)
				db := sql.OpenDB(counting{SQLiteDSN(filepath.Join(t.TempDir(), "test.db")), executed})
				defer db.Close()
				o := outboxIn(t, db, opts...)
				execute(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?)
					INSERT INTO courier_outbox (id, topic, key, payload, headers, trace, created_at)
					SELECT 'id' || i, 'orders', '', x'', '', '', 0 FROM n`, size)
				rows := make([]Row, size)
				for i := range rows {
					rows[i].Seq, rows[i].ID = int64(i+1), fmt.Sprint("id", i+1)
				}
				before := executed.Load()
				require.NoError(t, o.Source().Mark(t.Context(), rows))
				require.EqualValues(t, 1, executed.Load()-before)
				require.Empty(t, fetch(t, o, 1))
			})
		}
	}
}

func TestMarkAllOrNothing(t *testing.T) {
	for name, opts := range keeping {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, opts...)
			write(t, o, named("a", "b", "c")...)
			execute(t, o.db, `CREATE TRIGGER refuse_delete BEFORE DELETE ON courier_outbox WHEN old.id = 'c' BEGIN SELECT raise(ABORT, 'refused'); END`)
			execute(t, o.db, `CREATE TRIGGER refuse_update BEFORE UPDATE ON courier_outbox WHEN old.id = 'c' BEGIN SELECT raise(ABORT, 'refused'); END`)
			err := o.Source().Mark(t.Context(), fetch(t, o, 10))
			require.ErrorContains(t, err, "couriersql: marking 3 rows of courier_outbox (all or none; to be marked again): ")
			require.ErrorContains(t, err, "refused")
			require.Equal(t, []string{"a", "b", "c"}, idsOf(fetch(t, o, 10)))
		})
	}
}

// A row that shows up below one that is marked must be handed out.
func TestFetchHandsOutARowThatAppearsLate(t *testing.T) {
	inEach(t, testFetchHandsOutARowThatAppearsLate)
}

func testFetchHandsOutARowThatAppearsLate(t *testing.T, newOutbox maker) {
	for name, opts := range keeping {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, opts...)
			write(t, o, named("a", "b")...)
			source := o.Source()
			rows := take(t, source, 10)
			require.NoError(t, source.Mark(t.Context(), rows[1:]))
			require.NoError(t, source.Release(t.Context(), rows[:1], 0))
			execute(t, o.db, `DELETE FROM courier_outbox WHERE id = 'a'`)
			execute(t, o.db, `INSERT INTO courier_outbox (seq, id, topic, "key", payload, headers, trace, created_at)
				VALUES ($1, 'late', 'orders', '', $2, '', '', $3)`, rows[0].Seq, []byte{}, o.grammar.time(0))
			require.Equal(t, []string{"late"}, idsOf(fetch(t, o, 10)))
		})
	}
}

func TestWriterWaitsForAnother(t *testing.T) {
	o := newOutbox(t)
	long, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, o.Write(t.Context(), long, named("first")...))
	done := make(chan error)
	go func() {
		tx, err := o.db.BeginTx(context.Background(), nil)
		if err == nil {
			if err = o.Write(context.Background(), tx, named("second")...); err == nil {
				err = tx.Commit()
			}
		}
		done <- err
	}()
	require.Empty(t, fetch(t, o, 10), "a reader neither waits nor sees what is not committed")
	require.NoError(t, long.Commit())
	require.NoError(t, <-done)
	require.Equal(t, []string{"first", "second"}, idsOf(fetch(t, o, 10)))
}

func TestKeptRowsDoNotSlowTheFetch(t *testing.T) {
	o := newOutbox(t, WithKeep())
	rows, err := o.db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+o.fetch.text, 100, 1, 0, 0, 1, 0, "[]")
	require.NoError(t, err)
	defer rows.Close()
	var plan string
	for rows.Next() {
		var id, parent, unused int
		var step string
		require.NoError(t, rows.Scan(&id, &parent, &unused, &step))
		plan += step + "\n"
	}
	require.NoError(t, rows.Err())
	require.Contains(t, plan, "INDEX courier_outbox_failed")
	require.Contains(t, plan, "USING INDEX courier_outbox_pending")
	for _, small := range []string{"SCAN due\nUSE TEMP B-TREE FOR GROUP BY", "SCAN failed\nUSE TEMP B-TREE FOR ORDER BY"} {
		plan = strings.Replace(plan, small, "", 1) // numbers of what is returned
	}
	require.NotContains(t, plan, "TEMP B-TREE")
}

func TestCanceledContext(t *testing.T) { inEach(t, testCanceledContext) }

func testCanceledContext(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	write(t, o, named("a")...)
	rows := fetch(t, o, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := o.Source().Fetch(ctx, 10)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, o.Source().Mark(ctx, rows), context.Canceled)
	require.ErrorIs(t, o.Migrate(ctx), context.Canceled)
	_, err = o.Pending(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []string{"a"}, idsOf(fetch(t, o, 10)))
}

func TestCloseIsNotTheEnd(t *testing.T) { inEach(t, testCloseIsNotTheEnd) }

func testCloseIsNotTheEnd(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	require.NoError(t, o.Close())
	write(t, o, named("a")...)
	require.Len(t, fetch(t, o, 10), 1)
	require.NoError(t, o.Close())
	require.NoError(t, o.Close())
	require.NoError(t, o.Source().Mark(t.Context(), fetch(t, o, 10)))
}

func TestConcurrentUse(t *testing.T) { inEach(t, testConcurrentUse) }

func testConcurrentUse(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	write(t, o, named("a", "b", "c", "d")...)
	errs := make(chan error)
	for i := range 4 {
		go func() {
			rows, err := o.Source().Fetch(context.Background(), 10)
			if err == nil && len(rows) > i {
				err = o.Source().Mark(context.Background(), rows[i:i+1])
			}
			errs <- err
		}()
	}
	for range 4 {
		require.NoError(t, <-errs)
	}
}

func TestFetchAllocations(t *testing.T) {
	o := newOutbox(t)
	messages := make([]Message, 1000)
	for i := range messages {
		messages[i] = Message{Topic: "orders", Key: "key", Payload: make([]byte, 256)}
	}
	write(t, o, messages...)
	per := testing.AllocsPerRun(10, func() { fetch(t, o, 1000) }) / 1000
	// The driver's: the text or bytes, and the boxed value, of each column.
	require.Less(t, per, 15.0)
}

// The payloads of a fetch are apart, also where they share memory: to append to one
// changes no other.
func TestPayloadsAreTheCallers(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			var want []string
			for i := range 20 {
				want = append(want, fmt.Sprint("payload ", i))
				write(t, o, Message{Topic: "t", Payload: []byte(want[i])})
			}
			rows := take(t, o.Source(), 100)
			var got []string
			for _, row := range rows {
				_ = append(row.Payload, "!!!"...)
			}
			for _, row := range rows {
				got = append(got, string(row.Payload))
			}
			require.Equal(t, want, got)
		})
	}
}

func TestReopenedFileStillHasWhatWasNotMarked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	first := New(open(t, path), SQLite)
	require.NoError(t, first.Migrate(t.Context()))
	write(t, first, named("a", "b", "c", "d")...)
	require.NoError(t, first.Source().Mark(t.Context(), fetch(t, first, 2)))

	// A process that is killed closes nothing: the second one opens the file,
	// with its write-ahead log, while the first still has a transaction open.
	lost, err := first.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, first.Write(t.Context(), lost, named("lost")...))
	second := New(open(t, path), SQLite)
	require.Equal(t, []string{"c", "d"}, idsOf(fetch(t, second, 10)))
	require.NoError(t, lost.Rollback())

	require.NoError(t, second.Migrate(t.Context()))
	require.NoError(t, second.Source().Mark(t.Context(), fetch(t, second, 1)))
	require.Equal(t, []string{"d"}, idsOf(fetch(t, first, 10)))
}

func TestIdentityIsTheID(t *testing.T) {
	require.Equal(t, "a", newOutbox(t).Source().Identity(Row{Seq: 1, ID: "a"}))
}

// A misconfigured outbox is found before anything is fetched.
func TestValidate(t *testing.T) {
	outbox := New(nil, SQLite)
	for name, part := range map[string]courier.Validator{"source": outbox.Source(), "dlq": outbox.DLQ()} {
		require.ErrorIs(t, part.Validate(), courier.ErrConfig, name)
	}
	none := courier.ProcessFunc(func(context.Context, Row) error { return nil })
	require.ErrorIs(t, courier.NewPollingCoordinator(outbox.Source(), none).Start(t.Context()), courier.ErrConfig)
}

// resting is a clock whose long waits are ended by the test.
type resting struct {
	fixed
	rests chan rest
}

type rest struct {
	length time.Duration
	end    chan time.Time
}

func (c *resting) After(d time.Duration) <-chan time.Time {
	if d < time.Hour {
		return nil
	}
	r := rest{d, make(chan time.Time, 1)}
	c.rests <- r
	return r.end
}

// counted is a source whose fetches are counted.
type counted struct {
	*Source
	fetches atomic.Int64
}

func (c *counted) Fetch(ctx context.Context, limit int) ([]Row, error) {
	c.fetches.Add(1)
	return c.Source.Fetch(ctx, limit)
}

// Without wake-up, what is committed while the relay rests is delivered by the
// very next fetch, which the interval ends: it waits for no longer than that.
func TestAMessageWaitsForNoMoreThanTheInterval(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			source := &counted{Source: o.Source()}
			clock := &resting{fixed{start}, make(chan rest, 10)}
			const interval = 10 * time.Hour
			arrived := make(chan string, 10)
			deliver := courier.ProcessFunc(func(_ context.Context, r Row) error { arrived <- r.ID; return nil })
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				done <- courier.NewPollingCoordinator(source, deliver, courier.WithInterval(interval), courier.WithClock(clock)).Start(ctx)
			}()
			for i := range 3 {
				rest := event(t, clock.rests)
				require.EqualValues(t, i+1, source.fetches.Load())
				id := fmt.Sprint("message ", i)
				write(t, o, named(id)...)
				require.Empty(t, arrived)
				require.InDelta(t, interval, rest.length, float64(interval/10), "it is spread by a tenth")
				rest.end <- start
				require.Equal(t, id, event(t, arrived))
				require.EqualValues(t, i+2, source.fetches.Load())
			}
			stop()
			require.NoError(t, <-done)
		})
	}
}

// event waits for what is bound to come.
func event[T any](t *testing.T, events <-chan T) (e T) {
	t.Helper()
	select {
	case e = <-events:
	case <-time.After(20 * time.Second):
		t.Fatal("it did not come")
	}
	return e
}
