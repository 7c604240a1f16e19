package main

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	_ = os.Unsetenv("COURIER_DB")
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { pgtest.Exit(mytest.Stopped(code)) }))
}

// bed is a database of one kind.
type bed struct {
	t      *testing.T
	dsn    string
	db     *sql.DB
	outbox *couriersql.Outbox
	ids    map[string]string // of letters, by the names that the test gives them
}

func inEach(t *testing.T, test func(*testing.T, *bed)) {
	for name, make := range map[string]func(*testing.T) (driver, dsn, open string, dialect couriersql.Dialect){
		"sqlite": func(t *testing.T) (string, string, string, couriersql.Dialect) {
			path := filepath.Join(t.TempDir(), "orders.db")
			return "sqlite", path, couriersql.SQLiteDSN(path), couriersql.SQLite
		},
		"postgres": func(t *testing.T) (string, string, string, couriersql.Dialect) {
			dsn := pgtest.Schema(t)
			return "pgx", dsn, dsn, couriersql.Postgres
		},
		"mysql": func(t *testing.T) (string, string, string, couriersql.Dialect) {
			dsn := mytest.Database(t)
			return "mysql", "mysql:" + dsn, dsn + "?multiStatements=true", couriersql.MySQL
		},
	} {
		t.Run(name, func(t *testing.T) {
			driver, dsn, open, dialect := make(t)
			db, err := sql.Open(driver, open)
			require.NoError(t, err)
			outbox := couriersql.New(db, dialect, couriersql.WithKeep(), couriersql.WithBackoff(time.Hour, time.Hour))
			t.Cleanup(func() {
				require.NoError(t, outbox.Close())
				require.NoError(t, db.Close())
			})
			test(t, &bed{t, dsn, db, outbox, map[string]string{}})
		})
	}
}

// run is a call of the program, which must end with the status.
func (b *bed) run(status int, args ...string) (stdout string) {
	b.t.Helper()
	var out, errs bytes.Buffer
	all := []string{"-db", b.dsn}
	for _, arg := range args {
		if id, ok := b.ids[arg]; ok {
			arg = id
		}
		all = append(all, arg)
	}
	require.Equal(b.t, status, run(b.t.Context(), all, &out, &errs), "%s%s", &out, &errs)
	if status == 0 {
		require.Empty(b.t, errs.String())
		return b.short(out.String())
	}
	require.Regexp(b.t, "^courierctl: .*\n(\n|$)", errs.String())
	return b.short(out.String() + errs.String())
}

// know has the letters that there are be called by their number and version alone.
func (b *bed) know() {
	b.t.Helper()
	letters, err := b.outbox.DLQ().Receive(b.t.Context(), 100)
	require.NoError(b.t, err)
	for _, l := range letters {
		b.ids[l.ID[:strings.LastIndexByte(l.ID, '.')]] = l.ID
	}
}

// short is a text with the letters called so.
func (b *bed) short(text string) string {
	for short, id := range b.ids {
		text = strings.ReplaceAll(text, id, short)
	}
	return text
}

func (b *bed) json(into any, args ...string) {
	b.t.Helper()
	require.NoError(b.t, json.Unmarshal([]byte(b.run(0, append(args, "-json")...)), into))
}

// write commits messages.
func write(b *bed, messages ...couriersql.Message) {
	b.t.Helper()
	tx, err := b.db.BeginTx(b.t.Context(), nil)
	require.NoError(b.t, err)
	require.NoError(b.t, b.outbox.Write(b.t.Context(), tx, messages...))
	require.NoError(b.t, tx.Commit())
}

// migrated has tables, two pending rows, of which one failed, a kept one, and
// two dead letters.
func (b *bed) migrated() {
	b.t.Helper()
	b.run(0, "migrate")
	message := func(id string) couriersql.Message {
		return couriersql.Message{ID: id, Topic: "orders", Key: "k", Payload: []byte("payload of " + id), CreatedAt: time.Now().Add(-time.Hour)}
	}
	write(b, message("kept"), message("dead"), message("bytes"), message("failing"), message("fresh"))
	source := b.outbox.Source()
	rows, err := source.Fetch(b.t.Context(), 10)
	require.NoError(b.t, err)
	rows[2].Payload = []byte{0xff, 0}
	for _, row := range rows[1:3] {
		require.NoError(b.t, b.outbox.DLQ().Send(b.t.Context(), courier.DeadLetter[couriersql.Row]{
			Record: row, Error: &courier.RetryError{Reason: courier.ReasonExhausted, Attempts: 5, Last: errors.New("boom\nand more")}, Reason: courier.ReasonExhausted, Attempts: 5, FailedAt: time.Now(),
		}))
	}
	require.NoError(b.t, source.Mark(b.t.Context(), rows[:3]))
	require.NoError(b.t, source.Fail(b.t.Context(), []courier.FailedRecord[couriersql.Row]{{Record: rows[3], Error: errors.New("refused")}}))
	require.NoError(b.t, source.Release(b.t.Context(), rows[4:], 0))
	b.know()
}

func TestMigrate(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		latest := couriersql.SchemaVersion(b.outbox.Dialect())
		wakes, sqlite := b.outbox.Dialect() == couriersql.Postgres, b.outbox.Dialect() == couriersql.SQLite
		file := ""
		if sqlite {
			file = b.dsn + " would be created\n"
		}
		require.Equal(t, fmt.Sprintf("%scourier_outbox would go from schema version 0 to %d\n", file, latest), b.run(0, "migrate", "-dry-run"))
		if sqlite {
			left, err := os.ReadDir(filepath.Dir(b.dsn))
			require.NoError(t, err)
			require.Empty(t, left, "of the trial")
		}
		file = strings.Replace(file, "would be", "was", 1)
		require.Equal(t, fmt.Sprintf("%scourier_outbox went from schema version 0 to %d\n", file, latest), b.run(0, "migrate"))
		for _, args := range [][]string{{"migrate"}, {"migrate", "-dry-run"}} {
			require.Equal(t, fmt.Sprintf("courier_outbox has schema version %d already\n", latest), b.run(0, args...))
		}
		require.Contains(t, b.run(0, "migrate", "-table", "events", "-dry-run"), "events would go from")
		require.Contains(t, b.run(0, "migrate", "-table", "events"), "events went from")
		for _, args := range [][]string{{"migrate", "-wake-up", "-dry-run"}, {"migrate", "-wake-up"}} {
			if !wakes {
				require.Contains(t, b.run(exitCannotRun, args...), "WithWakeUp is for PostgreSQL")
			} else {
				require.Contains(t, b.run(0, args...), "the trigger that wakes relays ")
			}
		}
	})
}

// A trial refuses what the migration refuses, in the same words.
func TestMigrateDryRunPromisesNothing(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.run(0, "migrate")
		for _, text := range []string{
			`UPDATE courier_migrations SET version = 77 WHERE version = 1`,
			`UPDATE courier_migrations SET version = 1 WHERE version = 77; DROP TABLE courier_outbox`,
			`DELETE FROM courier_migrations; CREATE TABLE courier_outbox (id INTEGER PRIMARY KEY, body TEXT NOT NULL)`,
		} {
			_, err := b.db.ExecContext(t.Context(), text)
			require.NoError(t, err)
			trial := b.run(exitCannotRun, "migrate", "-dry-run")
			require.Equal(t, strings.Replace(trial, "trying to migrate", "migrating", 1), b.run(exitCannotRun, "migrate"))
		}
	})
	nowhere := filepath.Join(t.TempDir(), "missing", "orders.db")
	b := &bed{t: t, dsn: nowhere}
	require.Contains(t, b.run(exitCannotRun, "migrate", "-dry-run"), "the file could not be created")
	require.Contains(t, b.run(exitCannotRun, "migrate"), "does the folder exist")
	b.dsn = t.TempDir()
	require.Contains(t, b.run(exitCannotRun, "migrate", "-dry-run"), "this is a folder")
	require.Contains(t, b.run(exitCannotRun, "migrate"), "this is a folder")
}

// A prune that fails says how far it came.
func TestAPruneThatFails(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.run(0, "migrate")
		source := b.outbox.Source()
		settle := func(ids ...string) {
			var messages []couriersql.Message
			for _, id := range ids {
				messages = append(messages, couriersql.Message{ID: id, Topic: "t"})
			}
			write(b, messages...)
			rows, err := source.Fetch(t.Context(), len(ids))
			require.NoError(t, err)
			require.NoError(t, source.Mark(t.Context(), rows))
		}
		var ids []string
		for i := range 1000 { // in a transaction
			ids = append(ids, fmt.Sprint(i))
		}
		settle(ids...)
		settle("kept for ever")
		refuse := []string{`CREATE TRIGGER refuse BEFORE DELETE ON courier_outbox WHEN old.id = 'kept for ever' BEGIN SELECT raise(ABORT, 'refused'); END`}
		if b.outbox.Dialect() == couriersql.Postgres {
			refuse = []string{
				`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$`,
				`CREATE TRIGGER refuse BEFORE DELETE ON courier_outbox FOR EACH ROW WHEN (OLD.id = 'kept for ever') EXECUTE FUNCTION refuse()`,
			}
		}
		if b.outbox.Dialect() == couriersql.MySQL {
			refuse = []string{`CREATE TRIGGER refuse BEFORE DELETE ON courier_outbox FOR EACH ROW
				IF OLD.id = 'kept for ever' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'; END IF`}
		}
		for _, text := range refuse {
			_, err := b.db.ExecContext(t.Context(), text)
			require.NoError(t, err)
		}
		require.Regexp(t, `^1000 rows of courier_outbox delivered before .* were deleted\ncourierctl: not all of them: .*refused`, b.run(exitPartly, "prune", "-older-than", "1ns"))
		require.Regexp(t, `^courierctl: couriersql: pruning courier_outbox .*refused`, b.run(exitCannotRun, "prune", "-older-than", "1ns"))
	})
}

// everyCommand is one call of each command that needs an outbox.
var everyCommand = [][]string{
	{"status"}, {"dlq", "list"}, {"dlq", "show", "1.1"}, {"dlq", "requeue", "1.1"}, {"dlq", "requeue", "-all"}, {"dlq", "delete", "1.1"},
	{"dlq", "delete", "-all", "-dry-run"}, {"prune", "-older-than", "1h"}, {"prune", "-older-than", "1h", "-dry-run"},
}

// A missing outbox is told in one way, and so is one of another version.
func TestAMissingOutbox(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		each := func(want string, flags ...string) {
			t.Helper()
			for _, args := range everyCommand {
				want := want
				if strings.HasPrefix(want, "there is no outbox") && (args[0] == "status" || args[0] == "dlq") {
					want += ", or with -dlq the table of a queue that NewDLQ made"
				}
				require.Equal(t, "courierctl: "+want+"\n", b.run(exitCannotRun, append(flags, args...)...), args)
			}
		}
		missing := func(table string) string {
			return "there is no outbox " + table + " in this database: run courierctl migrate, or pass another -table or -db"
		}
		if b.outbox.Dialect() == couriersql.SQLite {
			each("-db " + b.dsn + ": there is no such file: pass the path of a SQLite file, or a DSN such as postgres://user@host/database or mysql:user@tcp(host)/database; courierctl migrate creates a file")
			require.NoError(t, b.db.PingContext(t.Context())) // creates it
		}
		each(missing("courier_outbox"))
		b.run(0, "migrate")
		each(missing("events"), "-table", "events")

		version := func(text string) {
			_, err := b.db.ExecContext(t.Context(), text)
			require.NoError(t, err)
		}
		latest := couriersql.SchemaVersion(b.outbox.Dialect())
		if latest > 1 { // in MySQL there is no former one
			version(fmt.Sprintf(`DELETE FROM courier_migrations WHERE version = %d`, latest))
			each(fmt.Sprintf("the outbox courier_outbox has schema version %d, and this program works with version %d: run courierctl migrate", latest-1, latest))
		}
		version(`UPDATE courier_migrations SET version = 77 WHERE version = 1`)
		each(fmt.Sprintf("the outbox courier_outbox has schema version 77, and this program works with version %d: run a newer courierctl", latest))
		version(fmt.Sprintf(`UPDATE courier_migrations SET version = %d WHERE version = 77; DROP TABLE courier_outbox_dlq; DROP TABLE courier_outbox`, latest))
		each(missing("courier_outbox"))
	})
}

// A database of a former version, with letters, is upgraded.
func TestMigrateFromAFormerVersion(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		latest := couriersql.SchemaVersion(b.outbox.Dialect())
		if b.outbox.Dialect() == couriersql.MySQL {
			require.Equal(t, 1, latest, "MySQL has a former version now: upgrade it here")
			return
		}
		former := latest - 3 // before rows knew since when they had been put back
		for _, text := range []string{
			fmt.Sprintf(`DELETE FROM courier_migrations WHERE version > %d`, former), `ALTER TABLE courier_outbox DROP COLUMN requeued_at`,
		} {
			_, err := b.db.ExecContext(t.Context(), text)
			require.NoError(t, err)
		}
		require.Contains(t, b.run(exitCannotRun, "status"), "run courierctl migrate")
		require.Equal(t, fmt.Sprintf("courier_outbox would go from schema version %d to %d\n", former, latest), b.run(0, "migrate", "-dry-run"))
		require.Equal(t, fmt.Sprintf("courier_outbox went from schema version %d to %d\n", former, latest), b.run(0, "migrate"))
		require.Contains(t, b.run(0, "dlq", "list"), "2 of 2 dead letters")
	})
}

func TestStatus(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		var report statusReport
		b.json(&report, "status")
		require.InDelta(t, 3600, report.OldestSeconds, 300)
		report.OldestSeconds = 0
		require.Equal(t, statusReport{Table: "courier_outbox", SchemaVersion: couriersql.SchemaVersion(b.outbox.Dialect()), Pending: 2, Due: 1,
			DeadLetters: 2, Failing: []failingReport{{"failing", 1, "refused"}}}, report)
		text := b.run(0, "status", "-max-lag", "2h", "-max-dead", "2")
		require.Contains(t, text, "failing         failing")
		require.Contains(t, text, "1 attempt: refused")
		require.Contains(t, b.run(exitFinding, "status", "-max-lag", "1m"), "longer than -max-lag 1m0s")
		require.Contains(t, b.run(0, "status", "-max-lag", "1d"), "the age of the oldest")
		require.Contains(t, b.run(exitFinding, "status", "-max-dead", "1"), "the outbox has 2 dead letters, more than -max-dead 1")
	})
}

func TestDeadLetters(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		var letters []letterReport
		b.json(&letters, "dlq", "list")
		require.Len(t, letters, 2)
		require.Equal(t, []string{"1.1", "dead", "courier: gave up after 5 attempts (exhausted): boom\nand more", "exhausted"}, []string{letters[0].ID, letters[0].MessageID, letters[0].Error, letters[0].Reason})
		text := b.run(0, "dlq", "list", "-limit", "1")
		require.Contains(t, text, "exhausted  boom and more\n", "the error without the words of other columns")
		require.Contains(t, text, "1 of 2 dead letters; see more with -after 1.1\n")
		require.Contains(t, b.run(0, "dlq", "list", "-limit", "1", "-after", "1.1"), "1 dead letter after 1.1, of 2 in all\n")
		b.json(&letters, "dlq", "list", "-after", "1.1")
		require.Len(t, letters, 1)

		var one letterReport
		b.json(&one, "dlq", "show", "1.1")
		require.Equal(t, "payload of dead", one.Payload)
		one = letterReport{}
		b.json(&one, "dlq", "show", "2.1")
		require.Equal(t, []byte{0xff, 0}, one.Bytes)
		require.Contains(t, b.run(0, "dlq", "show", "2.1"), `payload       "\xff\x00"`)
		require.Contains(t, b.run(exitFinding, "dlq", "show", "9.1"), "no dead letter has the ID 9.1")
		require.Contains(t, b.run(exitCannotRun, "dlq", "show"), "pass the ID of one letter")
	})
}

func TestRequeueAndDelete(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		left := func() int {
			n, err := b.outbox.DLQ().Count(t.Context())
			require.NoError(t, err)
			return n
		}
		for _, command := range []string{"requeue", "delete"} {
			require.Contains(t, b.run(exitCannotRun, "dlq", command), "pass the IDs of letters, or -all")
			require.Contains(t, b.run(exitCannotRun, "dlq", command, "1.1", "-all"), "pass the IDs of letters or -all, not both")
			require.Contains(t, b.run(exitCannotRun, "dlq", command, "1.1", "-branch", "x"), "-branch, -key and -reason: go with -all")
			require.Contains(t, b.run(exitCannotRun, "dlq", command, "1.1", "-key", "x"), "-branch, -key and -reason: go with -all")
			require.Contains(t, b.run(exitCannotRun, "dlq", command, "1.1", "-reason", "permanent"), "-branch, -key and -reason: go with -all")
			for _, id := range []string{"7.7", "1.2", "0.1", "-1.1", "x", "1", "", "01.1"} {
				require.Contains(t, b.run(exitFinding, "dlq", command, "--", "1.1", id), "no dead letter has the ID "+id)
			}
			require.Contains(t, b.run(0, "dlq", command, "-all", "-dry-run"), "2 dead letters would be ")
			require.Contains(t, b.run(0, "dlq", command, "1.1", "1.1", "-dry-run"), "1 dead letter would be ")
			require.Equal(t, 2, left())
		}
		require.Equal(t, "1 dead letter was put back into the outbox\n", b.run(0, "dlq", "requeue", "1.1", "1.1"))
		var report changeReport
		b.json(&report, "dlq", "delete", "2.1", "2.1")
		require.Equal(t, []string{"2.1"}, report.Letters)
		require.Zero(t, left())
		require.Equal(t, "0 dead letters were put back into the outbox\n", b.run(0, "dlq", "requeue", "-all"))
		pending, err := b.outbox.Pending(t.Context())
		require.NoError(t, err)
		require.Equal(t, 3, pending)
		var status statusReport
		b.json(&status, "status")
		require.InDelta(t, 3600, status.OldestSeconds, 300, "of the row that was never a letter")
		require.Equal(t, []failingReport{{"failing", 1, "refused"}}, status.Failing)
	})
}

// The culprits among many letters are found by the reason, and a key's letters by the key.
func TestLettersAreChosenByKeyAndReason(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		queue := b.outbox.DLQ()
		for i, letter := range []courier.DeadLetter[couriersql.Row]{
			{Key: "customer 1", Reason: courier.ReasonPermanent}, {Key: "customer 1", Reason: courier.ReasonKeyParked}, {Key: "customer 2", Reason: courier.ReasonPermanent},
			{Key: "customer 1", Reason: courier.ReasonKeyParked, Branch: "search"}, // which has a key and order of its own
		} {
			letter.Record = couriersql.Row{ID: fmt.Sprintf("m%d", i), Topic: "t", Key: fmt.Sprintf("order %d", i)}
			letter.Error, letter.FailedAt = errors.New("bad"), time.Now()
			require.NoError(t, queue.Send(t.Context(), letter))
		}
		var letters []letterReport
		b.json(&letters, "dlq", "list", "-key", "customer 1", "-reason", "key parked", "-branch", "")
		require.Len(t, letters, 1)
		require.Equal(t, "m1", letters[0].MessageID)
		require.Contains(t, b.run(0, "dlq", "list", "-key", "customer 1"), "3 dead letters of the key customer 1, of 6 in all")
		require.Contains(t, b.run(0, "dlq", "list", "-reason", "permanent"), "with the reason permanent, of 6 in all")
		require.Contains(t, b.run(0, "dlq", "list", "-key", "order 2"), "1 dead letter of the key order 2, of 6 in all")
		for _, args := range [][]string{{letters[0].ID}, {"-all", "-reason", "key parked"}, {"-all", "-reason", "key parked", "-dry-run"}, {letters[0].ID, "-dry-run"}} {
			require.Contains(t, b.run(exitFinding, append([]string{"dlq", "requeue"}, args...)...), `1 of the 2 letters of the key "customer 1": a key stays parked`)
		}
		require.Contains(t, b.run(0, "dlq", "delete", letters[0].ID, "-dry-run"), "1 dead letter would be deleted")
		require.Equal(t, "2 dead letters would be put back into the outbox\n", b.run(0, "dlq", "requeue", "-all", "-branch", "", "-key", "customer 1", "-dry-run"))
		require.Equal(t, "2 dead letters were put back into the outbox\n", b.run(0, "dlq", "requeue", "-all", "-branch", "", "-key", "customer 1"))
	})
}

// What was a dead letter for a week is not a week late once it is put back.
func TestARequeuedRowIsNew(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.run(0, "migrate")
		write(b, couriersql.Message{ID: "old", Topic: "t", CreatedAt: time.Now().Add(-7 * day)})
		source := b.outbox.Source()
		rows, err := source.Fetch(t.Context(), 1)
		require.NoError(t, err)
		require.NoError(t, b.outbox.DLQ().Send(t.Context(), courier.DeadLetter[couriersql.Row]{Record: rows[0], Error: errors.New("boom"), Attempts: 5, FailedAt: time.Now()}))
		require.NoError(t, source.Mark(t.Context(), rows))
		b.know()
		b.run(0, "dlq", "requeue", "1.1")
		require.NotContains(t, b.run(0, "status", "-max-lag", "1h", "-max-dead", "0"), "failing")
	})
}

// branched has letters of the branches: 1.1 of none, 2.1 and 3.1 of search and
// mail, all of one message, 4.1 of mail.
func (b *bed) branched() {
	b.t.Helper()
	b.run(0, "migrate")
	for i, branch := range []string{"", "search", "mail", "mail"} {
		row := couriersql.Row{Seq: int64(i), ID: []string{"a", "a", "a", "b"}[i], Topic: "orders", CreatedAt: time.Now().UnixMicro()}
		require.NoError(b.t, b.outbox.DLQ().Send(b.t.Context(), courier.DeadLetter[couriersql.Row]{
			Record: row, Branch: branch, Error: errors.New("boom"), Reason: courier.ReasonExhausted, FailedAt: time.Now(),
		}))
	}
	b.know()
}

func TestLettersOfBranches(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.branched()
		require.Regexp(t, `^ID +BRANCH +MESSAGE .*\n1.1 +a .*\n2.1 +search +a .*\n3.1 +mail +a .*\n4.1 +mail +b .*\n4 of 4 dead letters\n$`, b.run(0, "dlq", "list"))
		require.Regexp(t, `^ID .*\n3.1 .*\n4.1 .*\n2 dead letters of the branch mail, of 4 in all\n$`, b.run(0, "dlq", "list", "-branch", "mail"))
		require.Regexp(t, `^ID .*\n3.1 .*\n1 dead letter of the branch mail, of 4 in all; see more with -after 3.1\n$`, b.run(0, "dlq", "list", "-branch", "mail", "-limit", "1"))
		require.Regexp(t, `^ID .*\n4.1 .*\n1 dead letter of the branch mail after 3.1, of 4 in all\n$`, b.run(0, "dlq", "list", "-branch=mail", "-after", "3.1", "-limit", "1"))
		require.Regexp(t, `^ID .*\n1.1 .*\n1 dead letter of no branch, of 4 in all\n$`, b.run(0, "dlq", "list", "-branch", ""))
		require.Equal(t, "0 dead letters of the branch sea, of 4 in all\n", b.run(0, "dlq", "list", "-branch", "sea"))
		require.Contains(t, b.run(0, "dlq", "show", "2.1"), "branch        search\n")

		const advice = ", because a row of the outbox goes to all branches: redrive each letter with courier.Redrive, the applier of its branch and a Match by Branch"
		require.Equal(t, `0 dead letters were put back into the outbox
courierctl: no dead letter was put back into the outbox: 2 dead letters of a branch ("mail", "search") were refused`+advice+"\n",
			b.run(exitFinding, "dlq", "requeue", "2.1", "4.1"))
		for _, dry := range []bool{true, false} {
			were, was := "were", "was"
			args := []string{"dlq", "requeue", "-all"}
			if dry {
				were, was = "would be", "would be"
				args = append(args, "-dry-run")
			}
			require.Equal(t, "1 dead letter "+was+" put back into the outbox\ncourierctl: 1 of 4 dead letters "+was+
				` put back into the outbox: 3 dead letters of a branch ("mail", "search") `+were+" refused"+advice+"\n", b.run(exitPartly, args...))
		}
		require.Contains(t, b.run(0, "dlq", "delete", "-all", "-branch", "mail", "-dry-run"), "2 dead letters would be deleted")
		require.Equal(t, "2 dead letters were deleted\n", b.run(0, "dlq", "delete", "-all", "-branch", "mail"))
		require.Equal(t, "1 dead letter was deleted\n", b.run(0, "dlq", "delete", "2.1"))
		require.Equal(t, "0 dead letters were put back into the outbox\n", b.run(0, "dlq", "requeue", "-all", "-branch", ""))
	})
}

// What happens to letters between the look at them and the change is told.
func TestLettersThatChangeMeanwhile(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		change := func(i *invocation, meanwhile func(ids []string)) error {
			return changing(t.Context(), i, "deleted", true, func(ctx context.Context, _ *couriersql.Outbox, dlq *couriersql.DLQ[couriersql.Row], ids []string) ([]string, error) {
				meanwhile(ids)
				return dlq.Remove(ctx, ids...)
			})
		}
		var out bytes.Buffer
		all := &invocation{db: b.dsn, table: couriersql.DefaultTable, timeout: time.Minute, all: true, json: true, stdout: &out}
		err := change(all, func(ids []string) { require.NoError(t, b.outbox.DLQ().Delete(t.Context(), ids[0])) })
		require.ErrorIs(t, err, errPartly)
		require.Equal(t, b.short(err.Error()), "1 of 2 dead letters was deleted: 1 dead letter changed meanwhile, or a relay has the row in hand (1.1)")
		var report changeReport
		require.NoError(t, json.Unmarshal([]byte(b.short(out.String())), &report))
		require.Equal(t, changeReport{Letters: []string{"2.1"}, Left: []string{"1.1"}}, report)

		require.NoError(t, b.outbox.DLQ().Send(t.Context(), courier.DeadLetter[couriersql.Row]{Record: couriersql.Row{ID: "x", Topic: "t"}, FailedAt: time.Now()}))
		b.know()
		err = change(all, func(ids []string) { require.NoError(t, b.outbox.DLQ().Delete(t.Context(), ids...)) })
		require.ErrorIs(t, err, errFinding)
		require.Equal(t, b.short(err.Error()), "no dead letter was deleted: 1 dead letter changed meanwhile, or a relay has the row in hand (3.1)")
	})
}

func TestPrune(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		require.Contains(t, b.run(exitCannotRun, "prune"), "-older-than: pass the time")
		require.Contains(t, b.run(exitCannotRun, "prune", "-older-than", "0s"), "-older-than: pass a time above 0, such as 7d")
		require.Contains(t, b.run(0, "prune", "-older-than", "1h"), "0 rows of courier_outbox delivered before ")
		require.Contains(t, b.run(0, "prune", "-older-than", "1ns", "-dry-run"), "3 rows of courier_outbox delivered before ")
		var report struct {
			Rows   int
			DryRun bool `json:"dry_run"`
		}
		b.json(&report, "prune", "-older-than", "1ns")
		require.Equal(t, 3, report.Rows)
		require.False(t, report.DryRun)
		require.Contains(t, b.run(0, "prune", "-older-than", "1ns"), "0 rows")
	})
}

func TestWhatCannotRun(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.db")
	for want, args := range map[string][]string{
		"-db: pass the DSN":       {"status"},
		"there is no such file":   {"status", "-db", missing},
		"is not a plain name":     {"status", "-db", "host=nowhere", "-table", "a b"},
		"is the server up":        {"status", "-db", "host=" + t.TempDir()},
		"-limit: pass 1":          {"dlq", "list", "-limit", "0"},
		"-timeout: pass a time":   {"status", "-timeout", "0s"},
		"-timeout 1ns has passed": {"status", "-timeout", "1ns", "-db", "host=" + t.TempDir()},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, exitCannotRun, run(t.Context(), args, &out, &errs), want)
		require.Regexp(t, "^courierctl: .*"+want+".*\n$", errs.String())
		require.Empty(t, out.String())
	}
	require.NoFileExists(t, missing)
}

// Who calls the program wrongly is told where the right call is described, in one line.
func TestWrongUse(t *testing.T) {
	for _, c := range []struct {
		args       []string
		want, help string
	}{
		{nil, "no command is given", ""},
		{[]string{"-json"}, "no command is given", ""},
		{[]string{"sing", "loud", "x"}, `there is no command "sing loud"`, ""},
		{[]string{"help", "sing"}, `there is no command "sing"`, ""},
		{[]string{"sing", "-h"}, `there is no command "sing"`, ""},
		{[]string{"-nope"}, "there is no flag -nope", ""},
		{[]string{"-nope", "status"}, "there is no flag -nope", "status"},
		{[]string{"status", "--nope=1"}, "there is no flag -nope", "status"},
		{[]string{"status", "-limit", "1"}, "flag provided but not defined: -limit", "status"},
		{[]string{"status", "-db"}, "flag needs an argument: -db", "status"},
		{[]string{"status", "-max-dead", "few"}, `invalid value "few" for flag -max-dead`, "status"},
		{[]string{"prune", "-older-than", "1w"}, `invalid value "1w" for flag -older-than: want a time without a sign, such as 7d, 1d12h or 90s`, "prune"},
		{[]string{"prune", "-older-than", "-5m"}, `invalid value "-5m" for flag -older-than: want a time without a sign, such as`, "prune"},
		{[]string{"dlq", "requeue", "-all", "-reason", "keyparked"}, `invalid value "keyparked" for flag -reason: want exhausted, permanent, "key parked" or crashed`, "dlq requeue"},
		{[]string{"dlq", "list", "-reason", ""}, `invalid value "" for flag -reason: want exhausted, permanent, "key parked" or crashed`, "dlq list"},
		{[]string{"status", "x"}, `unexpected argument "x"`, "status"},
		{[]string{"status", "--", "-json"}, `unexpected argument "-json"`, "status"},
		{[]string{"dlq"}, `"dlq" needs one more word`, "dlq"},
		{[]string{"dlq", "sing"}, `there is no command "dlq sing"`, ""},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, exitCannotRun, run(t.Context(), c.args, &out, &errs), c.args)
		require.Regexp(t, "^courierctl: "+c.want+".* \\(see: "+strings.TrimSpace("courierctl help "+c.help)+"\\)\n$", errs.String(), c.args)
		require.Empty(t, out.String())
	}
}

func TestHelp(t *testing.T) {
	for want, lines := range map[string][][]string{
		"Usage: courierctl COMMAND [flags]\n":                 {{"-h"}, {"-help"}, {"--help"}, {"help"}, {"-json", "-h"}},
		"Exit status, and a line on stderr":                   {{"help"}, {"-h"}},
		"Usage: courierctl status [flags]\n":                  {{"status", "-h"}, {"-h", "status"}, {"help", "status"}, {"status", "-json", "--help"}},
		"-max-lag TIME":                                       {{"status", "-h"}},
		"Usage: courierctl dlq requeue ID… | -all [flags]\n":  {{"help", "dlq", "requeue"}, {"dlq", "requeue", "1.1", "-h"}, {"dlq", "-h", "requeue"}},
		"Usage: courierctl dlq COMMAND [flags]\n\n  dlq list": {{"dlq", "-h"}, {"help", "dlq"}},
		"-older-than TIME":                                    {{"prune", "-h"}},
	} {
		for _, args := range lines {
			var out, errs bytes.Buffer
			require.Zero(t, run(t.Context(), args, &out, &errs), args)
			require.Contains(t, out.String(), want, args)
			require.Empty(t, errs.String())
		}
	}
}

// Flags are understood wherever they stand.
func TestFlagsStandAnywhere(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.migrated()
		want := b.run(0, "dlq", "list", "-limit", "1", "-json")
		parts := [][]string{{"-json"}, {"-limit", "1"}, {"-db", b.dsn}}
		for n := range 3 * 3 * 3 { // each before, between or behind the words
			places := [3][]string{}
			for i, part := range parts {
				at := n / []int{1, 3, 9}[i] % 3
				places[at] = append(places[at], part...)
			}
			args := slices.Concat(places[0], []string{"dlq"}, places[1], []string{"list"}, places[2])
			var out, errs bytes.Buffer
			require.Zero(b.t, run(b.t.Context(), args, &out, &errs), "%q: %s", args, &errs)
			require.Equal(b.t, want, b.short(out.String()), args)
		}
		require.Equal(b.t, want, b.run(0, "--limit=1", "dlq", "--json=true", "list"))
		require.Contains(b.t, b.run(exitFinding, "-dry-run", "dlq", "delete", "--", "-1.1"), "no dead letter has the ID -1.1")
	})
}

// Before the command is known, a name tells whether a value follows.
func TestAFlagTakesAValueInAllCommandsOrInNone(t *testing.T) {
	switches := map[string]bool{}
	for _, c := range commands {
		c.flagSet(new(invocation)).VisitAll(func(f *flag.Flag) {
			was, known := switches[f.Name]
			require.True(t, !known || was == isSwitch(f), f.Name)
			switches[f.Name] = isSwitch(f)
		})
	}
}

// The version is that of the module that the program was built from.
func TestVersion(t *testing.T) {
	info, ok := debug.ReadBuildInfo()
	require.True(t, ok)
	var out, errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"version"}, &out, &errs), &errs)
	require.Equal(t, fmt.Sprintf("courierctl %s (%s), schema version %d in PostgreSQL, %d in SQLite and %d in MySQL\n", cmp.Or(info.Main.Version, "(devel)"), info.GoVersion,
		couriersql.SchemaVersion(couriersql.Postgres), couriersql.SchemaVersion(couriersql.SQLite), couriersql.SchemaVersion(couriersql.MySQL)), out.String())
	out.Reset()
	require.Zero(t, run(t.Context(), []string{"version", "-json"}, &out, &errs), &errs)
	var report struct {
		Version string
		Schema  map[string]int
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &report))
	require.Equal(t, couriersql.SchemaVersion(couriersql.SQLite), report.Schema["sqlite"])
	require.NotEmpty(t, report.Version)
}

func TestTheEnvironmentNamesTheDatabase(t *testing.T) {
	t.Setenv("COURIER_DB", filepath.Join(t.TempDir(), "orders.db"))
	var out, errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"migrate"}, &out, &errs), &errs)
	require.Zero(t, run(t.Context(), []string{"status"}, &out, &errs), &errs)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, exitCannotRun, run(ctx, []string{"status"}, &out, &errs))
}

// The letters of a queue of records are looked at and deleted as those of an outbox, and
// are put back into none.
func TestLettersOfAQueueOfRecords(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		type order struct{ ID string }
		queue := couriersql.NewDLQ(b.db, b.outbox.Dialect(), couriersql.DLQConfig[order]{Table: "dead_orders", Identity: func(o order) string { return o.ID }})
		require.NoError(t, b.db.PingContext(t.Context())) // which creates a file of SQLite
		require.Contains(t, b.run(exitCannotRun, "dlq", "list", "-dlq", "dead_orders"), "there is no queue dead_orders in this database: its Migrate creates the table; or pass another -dlq or -db")
		require.NoError(t, queue.Migrate(t.Context()))
		require.Equal(t, "0 of 0 dead letters\n", b.run(0, "dlq", "list", "-dlq", "dead_orders"))
		for _, id := range []string{"A-1", "A-2", "A-3"} {
			require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[order]{
				Record: order{id}, Key: "k", Error: errors.New("boom"), Reason: courier.ReasonExhausted, Attempts: 5, FailedAt: time.Now(),
			}))
		}
		sent, err := queue.Receive(t.Context(), 10)
		require.NoError(t, err)
		for _, l := range sent {
			b.ids[l.ID[:strings.LastIndexByte(l.ID, '.')]] = l.ID
		}
		require.Regexp(t, `^ID +BRANCH +RECORD +KEY +FAILED AT .*\n1.1 +A-1 +k +2.*boom\n2.1 .*\n2 of 3 dead letters; see more with -after 2.1\n$`, b.run(0, "dlq", "list", "-dlq", "dead_orders", "-limit", "2"))
		require.Regexp(t, `(?s)^letter +2.1\nbranch\nrecord +A-2\nkey +k\nreason .*redriven +0\nfirst failed [^\n]+\nlast failed [^\n]+\npayload +\{"ID":"A-2"\}\n$`, b.run(0, "dlq", "show", "-dlq", "dead_orders", "2.1"))
		var one map[string]any
		b.json(&one, "dlq", "show", "2.1", "-dlq", "dead_orders")
		require.Equal(t, `{"ID":"A-2"}`, one["payload"])
		require.NotContains(t, one, "topic")
		require.NotContains(t, one, "created_at")
		require.Equal(t, "table         dead_orders\ndead letters  3\n", b.run(0, "status", "-dlq", "dead_orders", "-max-dead", "3"))
		require.Contains(t, b.run(exitFinding, "status", "-dlq", "dead_orders", "-max-dead", "2"), "the queue has 3 dead letters, more than -max-dead 2")
		var report queueReport
		b.json(&report, "status", "-dlq", "dead_orders")
		require.Equal(t, queueReport{"dead_orders", 3}, report)
		require.Contains(t, b.run(exitCannotRun, "status", "-dlq", "dead_orders", "-max-lag", "5m"), "-max-lag: the queue of -dlq has no rows that wait")
		require.Contains(t, b.run(exitCannotRun, "status", "-dlq", "dead_items"), "there is no queue dead_items in this database")
		require.Contains(t, b.run(exitCannotRun, "status"), "or with -dlq the table of a queue that NewDLQ made")
		require.Contains(t, b.run(exitFinding, "dlq", "requeue", "-all", "-dlq", "dead_orders"), "the letters of dead_orders are of no outbox into which they could be put back: redrive them with courier.Redrive")
		require.Equal(t, "1 dead letter was deleted\n", b.run(0, "dlq", "delete", "2.1", "-dlq", "dead_orders"))
		require.Contains(t, b.run(exitFinding, "dlq", "delete", "2.1", "-dlq", "dead_orders"), "no dead letter has the ID 2.1")
		require.Equal(t, "2 dead letters were deleted\n", b.run(0, "dlq", "delete", "-all", "-dlq", "dead_orders"))
		require.Contains(t, b.run(exitCannotRun, "dlq", "list", "-dlq", "a;b"), `DLQConfig.Table "a;b" is not a plain name`)
	})
}

// The status of an outbox in strict order tells which relay leads.
func TestStatusTellsWhoLeads(t *testing.T) {
	dsn := pgtest.Schema(t)
	db, err := sql.Open("pgx", dsn+" application_name=relay-7")
	require.NoError(t, err)
	outbox := couriersql.New(db, couriersql.Postgres, couriersql.WithStrictOrder())
	t.Cleanup(func() {
		require.NoError(t, outbox.Close())
		require.NoError(t, db.Close())
	})
	b := &bed{t: t, dsn: dsn, db: db, outbox: outbox, ids: map[string]string{}}
	b.run(0, "migrate")
	require.NotContains(t, b.run(0, "status"), "leader")
	_, err = outbox.Source().Fetch(t.Context(), 1)
	require.NoError(t, err)
	require.Regexp(t, `\nleader +\d+ +relay-7\n`, b.run(0, "status"))
	var report statusReport
	b.json(&report, "status")
	require.Equal(t, "relay-7", report.Leader.Application)
	require.Positive(t, report.Leader.Backend)
}

// An outbox in a schema that is not in the search_path is named with it.
func TestAnOutboxInASchemaOfItsOwn(t *testing.T) {
	dsn := pgtest.Schema(t)
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	var schema string
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT current_schema() || '_other'`).Scan(&schema))
	b := &bed{t: t, dsn: dsn, db: db, ids: map[string]string{}}
	require.Contains(t, b.run(exitCannotRun, "migrate", "-table", schema+".orders"), "create the schema first")
	_, err = db.ExecContext(t.Context(), `CREATE SCHEMA `+schema)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), `DROP SCHEMA `+schema+` CASCADE`)
		require.NoError(t, err)
	})
	require.Contains(t, b.run(exitCannotRun, "status", "-table", schema+".orders"), "there is no outbox "+schema+".orders in this database")
	require.Contains(t, b.run(0, "migrate", "-table", schema+".orders", "-wake-up"), schema+".orders went from schema version 0 to ")
	require.Contains(t, b.run(0, "status", "-table", schema+".orders"), "pending         0 ")
	require.Equal(t, "0 of 0 dead letters\n", b.run(0, "dlq", "list", "-table", schema+".orders"))
	require.Contains(t, b.run(exitCannotRun, "status", "-table", "orders"), "there is no outbox orders")
}
