package couriersql

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
)

// The trial of a migration creates nothing, and tells what is wrong with what is there.
func TestCheckMigrateInMySQL(t *testing.T) {
	db := databaseOf(t, MySQL)
	o := New(db, MySQL)
	tables := func() int {
		return count(t, db, `SELECT count(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()`)
	}
	require.NoError(t, o.CheckMigrate(t.Context()))
	require.Zero(t, tables())
	execute(t, db, `CREATE TABLE courier_outbox (id INT)`)
	require.ErrorContains(t, o.CheckMigrate(t.Context()), "the table courier_outbox is not one of this package")
	execute(t, db, `DROP TABLE courier_outbox`)
	require.NoError(t, o.Migrate(t.Context()))
	require.NoError(t, o.CheckMigrate(t.Context()))
	require.Equal(t, 5, tables(), "the outbox, its letters, failures, leases and versions")
	execute(t, db, `ALTER TABLE courier_outbox DROP COLUMN requeued_at`)
	require.ErrorContains(t, o.CheckMigrate(t.Context()), "column requeued_at BIGINT is missing")
	execute(t, db, `UPDATE courier_migrations SET version = 77`)
	require.ErrorContains(t, o.CheckMigrate(t.Context()), "trying to migrate courier_outbox: the database has schema version 77")
}

// Whatever a session is set to, texts arrive and are read back as they are.
func TestAnOutboxInSessionsOfMySQL(t *testing.T) {
	dsn := mytest.Database(t)
	message := Message{ID: "1 ä 😀 '\\ a", Topic: "orders'\\ä", Key: "A é", Payload: []byte{0xff, 0, '\\'}, Headers: map[string]string{"ü": `"\'`}, Trace: map[string]string{"t": "ä"}}
	for name, settings := range map[string]map[string]string{
		"ANSI":                 spelledAsElsewhere,
		"latin1":               {"character_set_client": "latin1", "character_set_connection": "latin1"},
		"no backslash escapes": {"sql_mode": "'NO_BACKSLASH_ESCAPES'"},
		"neither strict":       {"sql_mode": "''", "tx_isolation": "'SERIALIZABLE'"},
		"another time zone":    {"time_zone": "'+09:00'"},
	} {
		t.Run(name, func(t *testing.T) {
			table := "outbox_" + strings.ReplaceAll(strings.ToLower(name), " ", "_")
			o := outboxIn(t, openMySQL(t, dsn, settings), WithTable(table), WithStrictOrder(), WithClock(nil))
			write(t, o, message, Message{ID: "1 ä 😀 '\\ A", Topic: "t", Key: "a é", NotBefore: time.Now().Add(time.Hour)})
			s := o.Source()
			rows := take(t, s, 10)
			require.Len(t, rows, 1)
			got, err := rows[0].Message()
			require.NoError(t, err)
			got.CreatedAt = time.Time{}
			require.Equal(t, message, got)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom ä"), rows...)))
			makeDueIn(t, o, table)
			rows = take(t, s, 10)
			require.Len(t, rows, 2)
			require.Equal(t, []int{1, 0}, []int{rows[0].Attempts, rows[1].Attempts})
			require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
			require.NoError(t, s.Mark(t.Context(), rows))
			letters, err := o.DLQ().Receive(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			requeued, err := o.Requeue(t.Context(), letters[0].ID)
			require.NoError(t, err)
			require.Len(t, requeued, 1)
			rows = take(t, s, 10)
			require.Len(t, rows, 1)
			require.Equal(t, message.ID, rows[0].ID)
			require.NoError(t, s.Mark(t.Context(), rows))
			for _, beside := range []string{"", "_courier"} {
				require.Zero(t, count(t, o.db, `SELECT count(*) FROM `+table+beside), "nothing is left")
			}
			require.Equal(t, 1, count(t, o.db, `SELECT count(*) FROM `+table+`_courier_batches`), "the turn")
		})
	}
}

// What a relay has in hand is free as soon as its outbox is closed, also where one delivers at
// a time.
func TestCloseEndsLeases(t *testing.T) {
	o := newMySQL(t, WithStrictOrder())
	other := New(o.db, MySQL, WithStrictOrder()).Source()
	write(t, o, named("a", "b")...)
	s := o.Source()
	rows := take(t, s, 1)
	require.Empty(t, take(t, other, 10), "one delivers at a time")
	require.NoError(t, o.Close())
	require.Equal(t, []string{"a", "b"}, idsOf(take(t, other, 10)))
	require.NoError(t, s.Mark(t.Context(), rows), "it is passed over")
	require.Equal(t, []string{"a", "b"}, pendingOf(t, o))
}

// A message whose number is lower than those that were delivered is delivered once its
// transaction is committed, and holds up no others until then, nor the deletion of old rows.
func TestAWriterOfMySQLThatCommitsLate(t *testing.T) {
	o := newMySQL(t, WithKeep(), WithClock(nil))
	s := o.Source()
	late, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer func() { _ = late.Rollback() }()
	require.NoError(t, o.Write(t.Context(), late, named("late")...))
	write(t, o, named("a", "b")...)
	rows := take(t, s, 10)
	require.Equal(t, []string{"a", "b"}, idsOf(rows))
	require.NoError(t, s.Mark(t.Context(), rows))
	pruned, err := o.Prune(t.Context(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, 2, pruned)
	require.Empty(t, take(t, s, 10))
	require.NoError(t, late.Commit())
	require.Equal(t, []string{"late"}, idsOf(take(t, s, 10)))
}

// Old rows are deleted without a lock on where new ones come to be.
func TestPruningInMySQLHoldsUpNoWriter(t *testing.T) {
	o := newMySQL(t, WithKeep(), WithClock(nil))
	s := o.Source()
	write(t, o, named("a", "b")...)
	require.NoError(t, s.Mark(t.Context(), take(t, s, 10)))
	execute(t, o.db, `CREATE TABLE pruning (id INT)`)
	// While a row is deleted, another one is written.
	execute(t, o.db, `CREATE TRIGGER slow BEFORE DELETE ON courier_outbox FOR EACH ROW INSERT INTO pruning SELECT SLEEP(0.2)`)
	var group sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	group.Go(func() {
		if _, err := o.Prune(ctx, time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
	})
	tx, err := o.db.BeginTx(ctx, nil)
	require.NoError(t, err)
	defer func() { _ = tx.Rollback() }()
	for i := range 20 {
		require.NoError(t, o.Write(ctx, tx, named(fmt.Sprint("new ", i))...))
	}
	group.Wait() // before the commit
	require.NoError(t, tx.Commit())
	require.Len(t, pendingOf(t, o), 20)
}

// Several strict relays deliver everything in the order of writing.
func TestStrictRelaysInMySQL(t *testing.T) {
	o := newMySQL(t, WithStrictOrder(), WithClock(nil))
	var want []string
	for i := range 200 {
		want = append(want, fmt.Sprint(i))
	}
	write(t, o, named(want...)...)
	var mu sync.Mutex
	var got []string
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			err := courier.NewPollingCoordinator(New(o.db, MySQL, WithStrictOrder()).Source(), courier.ProcessFunc(func(_ context.Context, row Row) error {
				mu.Lock()
				defer mu.Unlock()
				if got = append(got, row.ID); len(got) == len(want) {
					stop()
				}
				return nil
			}), courier.WithBatchSize(7), courier.WithInterval(time.Millisecond)).Start(ctx)
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.Equal(t, want, got)
	require.Empty(t, pendingOf(t, o))
}

// A row that is given back, though that cannot be noted, comes again before the rows behind it,
// and stays in nobody's hand while another of its batch is in work.
func TestWhatIsGivenBackInVain(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	eachTable(t, 4, func(t *testing.T, r *relayed) {
		for what, giveBack := range map[string]func(s *TableSource[happening], rows []happening) error{
			"fail":    func(s *TableSource[happening], rows []happening) error { return s.Fail(ended, failing(nil, rows...)) },
			"release": func(s *TableSource[happening], rows []happening) error { return s.Release(ended, rows, 0) },
		} {
			s := r.relaySource()
			rows, names := fetchNames(t, s, 2)
			require.Equal(t, []string{"1", "2"}, names)
			require.Error(t, giveBack(s, rows[:1]))
			again, names := fetchNames(t, s, 2)
			require.Equal(t, []string{"1", "3"}, names, what)
			require.NoError(t, s.Release(t.Context(), append(again, rows[1]), 0))
		}
		require.Zero(t, r.count(r.state()+"_batches"))
	})
}

// A row that came anew while it was given back in vain is in work, and stays.
func TestWhatIsGivenBackWhileItComesAnew(t *testing.T) {
	eachTable(t, 1, func(t *testing.T, r *relayed) {
		s := r.relaySource()
		rows, _ := fetchNames(t, s, 1)
		was, batches := s.batchesOf(rows)
		execute(t, r.db, `DELETE FROM `+r.state()+`_batches`)
		anew, names := fetchNames(t, s, 1)
		require.Equal(t, []string{"1"}, names)
		s.owe(rows, was, batches) // what the database did not take before
		_, names = fetchNames(t, s, 1)
		require.Empty(t, names)
		require.NoError(t, s.Mark(t.Context(), anew))
	})
}

// A row that was lost before it could be parked is no more lost when it comes anew.
func TestAMySQLOutboxParksARowThatComesAnew(t *testing.T) {
	o := newMySQL(t)
	write(t, o, named("a")...)
	s := o.Source()
	s.RenewEvery()
	rows := take(t, s, 1)
	execute(t, o.db, `DELETE FROM courier_outbox_courier_batches`)
	require.ErrorIs(t, s.DLQ().Send(t.Context(), letterFor(rows[0])), ErrLeaseLost)
	anew := take(t, s, 1)
	require.Equal(t, []string{"a"}, idsOf(anew))
	require.NoError(t, s.Renew(t.Context(), anew))
	require.NoError(t, s.Mark(t.Context(), anew))
	require.Empty(t, pendingOf(t, o))
}

// What an operator deletes holds up nobody: neither what waits behind it, nor a relay that has
// it in hand.
func TestAMySQLOutboxWithoutARowThatWasDeleted(t *testing.T) {
	o := newMySQL(t, WithStrictOrder(), WithClock(nil))
	write(t, o, Message{ID: "a", Topic: "t", Key: "k", NotBefore: time.Now().Add(time.Hour)}, Message{ID: "b", Topic: "t", Key: "k"})
	s := o.Source()
	require.Empty(t, take(t, s, 10))
	execute(t, o.db, `DELETE FROM courier_outbox WHERE id = 'a'`)
	rows := take(t, s, 10)
	require.Equal(t, []string{"b"}, idsOf(rows))
	s.RenewEvery()
	execute(t, o.db, `DELETE FROM courier_outbox WHERE id = 'b'`)
	require.NoError(t, s.Renew(t.Context(), rows))
	require.ErrorIs(t, s.DLQ().Send(t.Context(), letterFor(rows[0])), ErrLeaseLost)
	require.ErrorIs(t, s.Renew(t.Context(), rows), ErrLeaseLost)
}

func TestAMySQLOutboxWithAKeyOfSpaces(t *testing.T) {
	o := newMySQL(t, WithStrictOrder(), WithClock(nil))
	write(t, o, Message{ID: "a", Topic: "t", Key: " "}, Message{ID: "b", Topic: "t", Key: " "}, Message{ID: "c", Topic: "t"})
	s := o.Source()
	rows := take(t, s, 10)
	require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[0])))
	require.NoError(t, s.Release(t.Context(), rows[1:], 0))
	require.Equal(t, []string{"c"}, idsOf(take(t, s, 10)))
}

// A batch of long errors is one statement, and no longer than the server takes.
func TestAMySQLOutboxNotesLongErrors(t *testing.T) {
	o := newMySQL(t, WithClock(nil))
	messages := make([]Message, 1000)
	for i := range messages {
		messages[i].Topic = "t"
	}
	write(t, o, messages...)
	s := o.Source()
	require.NoError(t, s.Fail(t.Context(), failedWith(errors.New(strings.Repeat("ä", 5000)), take(t, s, 1000)...)))
	var longest int
	require.NoError(t, o.db.QueryRowContext(t.Context(), `SELECT max(char_length(last_error)) FROM courier_outbox_courier`).Scan(&longest))
	require.Equal(t, longestNote/2, longest)
}

func TestAMySQLOutboxInSessionsThatConvert(t *testing.T) {
	dsn := mytest.Database(t)
	require.NoError(t, outboxIn(t, openMySQL(t, dsn, nil)).Close())
	for setting, value := range map[string]string{"collation_connection": "utf8mb3_general_ci", "character_set_client": "latin1"} {
		db := openMySQL(t, dsn, map[string]string{setting: value})
		o := New(db, MySQL)
		_, fetched := o.Source().Fetch(t.Context(), 1)
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		written := o.Write(t.Context(), tx, named("a")...)
		require.NoError(t, tx.Rollback())
		q := NewDLQ(db, MySQL, DLQConfig[string]{Table: "letters"})
		require.NoError(t, q.Migrate(t.Context()))
		parked := q.Send(t.Context(), courier.DeadLetter[string]{Record: "a", Error: errors.New("bad")})
		for _, err := range []error{fetched, written, parked} {
			require.ErrorIs(t, err, courier.ErrConfig)
			require.ErrorContains(t, err, "character_set_client")
		}
		require.NoError(t, o.Close())
	}
}

// The rights that the README names are enough.
func TestTheRightsOfAMySQLOutbox(t *testing.T) {
	grants := grantsInREADME(t, "GRANT SELECT, INSERT ON courier_outbox TO writer;")
	for name, opts := range map[string][]Option{"deleted": nil, "kept, strict": {WithKeep(), WithStrictOrder()}} {
		t.Run(name, func(t *testing.T) {
			admin := openMySQL(t, mytest.Database(t), nil)
			outboxIn(t, admin, opts...)
			home := namesIn(t, admin, "SELECT DATABASE()")[0]
			in := make(map[string]*Outbox)
			text := strings.ReplaceAll(grants, " ON ", " ON "+home+".")
			for _, who := range []string{"writer", "relay", "operator"} {
				user := who + "_" + home[len("courier_"):]
				text = grantedTo(text, who, user)
				execute(t, admin, "CREATE USER "+user+" IDENTIFIED BY 'secret'")
				t.Cleanup(func() { _, _ = admin.ExecContext(context.Background(), "DROP USER "+user) })
			}
			for line := range strings.Lines(text) {
				statement, _, _ := strings.Cut(line, ";")
				execute(t, admin, statement)
			}
			for _, who := range []string{"writer", "relay", "operator"} {
				in[who] = outboxIn(t, openMySQLAs(t, admin, nil, func(c *mysql.Config) { c.User, c.Passwd = who+"_"+home[len("courier_"):], "secret" }), opts...)
			}
			write(t, in["writer"], named("a", "b", "c", "d")...)
			write(t, in["writer"], Message{ID: "later", Topic: "orders", NotBefore: start.Add(time.Hour)})
			require.ErrorIs(t, tryWrite(t, in["writer"], named("e", "a")...), ErrDuplicateID)

			workAsRelay(t, in["relay"].Source())
			_, err := in["operator"].Source().Lag(t.Context())
			require.NoError(t, err)
			workAsOperator(t, in["operator"])
		})
	}
}

func TestADuplicateIDInAnotherLanguage(t *testing.T) {
	o := newMySQL(t)
	write(t, o, named("a")...)
	for _, language := range []string{"de_DE", "ja_JP", "hu_HU", "cs_CZ", "sk_SK", "zh_CN", "hi_IN"} {
		tx, err := o.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = tx.ExecContext(t.Context(), `SET lc_messages = '`+language+`'`)
		require.NoError(t, err)
		require.ErrorIs(t, o.Write(t.Context(), tx, named("a")...), ErrDuplicateID, language)
		require.NoError(t, tx.Rollback())
	}
	require.False(t, mysqlDuplicate.MatchString(`Duplicate entry ''courier_id'' for key 'other'`))
}

// Which ID is the duplicate is told also to a transaction whose snapshot does not have it.
func TestADuplicateIDBehindASnapshot(t *testing.T) {
	o := newMySQL(t)
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	var n int
	require.NoError(t, tx.QueryRowContext(t.Context(), `SELECT count(*) FROM courier_outbox`).Scan(&n))
	write(t, o, named("b")...)
	require.ErrorContains(t, o.Write(t.Context(), tx, named("a", "b")...), `was written before: "b";`)
	require.NoError(t, tx.Rollback())
}
