package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/courierttest"
)

// payment is a record whose effect is a row of the table payments.
type payment string

func (p payment) name() string { return string(p) }

func payments(from, to int) (list []payment) {
	for n := from; n < to; n++ {
		list = append(list, payment(fmt.Sprintf("p%05d", n)))
	}
	return list
}

// writer writes in the transaction of an effect.
type writer func(ctx context.Context, text string, args ...any) error

// effectKind is a database and a form of the appliers of effects.
type effectKind struct {
	dialect Dialect
	applier func(i *Inbox, effect effectOf) courier.BatchApplier[payment]
}

func sqlWriter(tx *sql.Tx, dialect Dialect) writer {
	return func(ctx context.Context, text string, args ...any) error {
		if dialect == MySQL {
			text = placeholder.ReplaceAllString(text, "?")
		}
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	}
}

func pgxWriter(tx pgx.Tx) writer {
	return func(ctx context.Context, text string, args ...any) error {
		_, err := tx.Exec(ctx, text, args...)
		return err
	}
}

type effectOf func(ctx context.Context, write writer, fresh []payment) error

var effectKinds = map[string]effectKind{
	"sqlite":         {SQLite, eachBySQL},
	"sqlite batch":   {SQLite, batchBySQL},
	"mysql":          {MySQL, eachBySQL}, // what is one statement for a batch is the same code
	"postgres":       {Postgres, eachBySQL},
	"postgres batch": {Postgres, batchBySQL},
	"pgx": {Postgres, func(i *Inbox, effect effectOf) courier.BatchApplier[payment] {
		return PgxEffects(i, payment.name, func(ctx context.Context, tx pgx.Tx, p payment) error {
			return effect(ctx, pgxWriter(tx), []payment{p})
		})
	}},
	"pgx batch": {Postgres, func(i *Inbox, effect effectOf) courier.BatchApplier[payment] {
		return PgxBatchEffects(i, payment.name, func(ctx context.Context, tx pgx.Tx, fresh []payment) error {
			return effect(ctx, pgxWriter(tx), fresh)
		})
	}},
}

func eachBySQL(i *Inbox, effect effectOf) courier.BatchApplier[payment] {
	return Effects(i, payment.name, func(ctx context.Context, tx *sql.Tx, p payment) error {
		return effect(ctx, sqlWriter(tx, i.dialect), []payment{p})
	})
}

func batchBySQL(i *Inbox, effect effectOf) courier.BatchApplier[payment] {
	return BatchEffects(i, payment.name, func(ctx context.Context, tx *sql.Tx, fresh []payment) error {
		return effect(ctx, sqlWriter(tx, i.dialect), fresh)
	})
}

// bank is a database with an inbox and the table that effects write to, one row for each.
type bank struct {
	t     *testing.T
	db    *sql.DB
	inbox *Inbox
	kind  effectKind
}

func openBank(t *testing.T, kind effectKind, config InboxConfig) *bank {
	t.Helper()
	b := &bank{t: t, db: databaseOf(t, kind.dialect), kind: kind}
	execute(t, b.db, `CREATE TABLE payments (id text NOT NULL)`) // which takes a payment twice
	b.inbox = b.open(config)
	require.NoError(t, b.inbox.Migrate(t.Context()))
	return b
}

func (b *bank) open(config InboxConfig) *Inbox {
	if config.Consumer == "" {
		config.Consumer = "bank"
	}
	return NewInbox(b.db, b.kind.dialect, config)
}

func (b *bank) applier(effect effectOf) courier.BatchApplier[payment] {
	return b.kind.applier(b.inbox, effect)
}

// pay writes a row for each payment.
func pay(ctx context.Context, write writer, fresh []payment) error {
	for _, p := range fresh {
		if err := write(ctx, `INSERT INTO payments (id) VALUES ($1)`, string(p)); err != nil {
			return err
		}
	}
	return nil
}

// paid lists what is in the table, in the order of the names.
func (b *bank) paid() (list []payment) {
	b.t.Helper()
	rows, err := b.db.QueryContext(b.t.Context(), `SELECT id FROM payments ORDER BY id`)
	require.NoError(b.t, err)
	defer func() { require.NoError(b.t, rows.Close()) }()
	for rows.Next() {
		var p payment
		require.NoError(b.t, rows.Scan(&p))
		list = append(list, p)
	}
	require.NoError(b.t, rows.Err())
	return list
}

func inEachKind(t *testing.T, test func(t *testing.T, kind effectKind)) {
	for name, kind := range effectKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

func TestConformance_Effects(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		poison := errors.New("no such account")
		courierttest.TestBatchApplier(t, func(t *testing.T) courierttest.ApplierFixture[payment] {
			b := openBank(t, kind, InboxConfig{})
			return courierttest.ApplierFixture[payment]{
				Applier: b.applier(func(ctx context.Context, write writer, fresh []payment) error {
					for _, p := range fresh {
						if strings.HasPrefix(string(p), "poison") {
							return courier.Permanent(poison)
						}
					}
					return pay(ctx, write, fresh)
				}),
				Record: func(n int) payment { return payment(fmt.Sprintf("p%05d", n)) },
				Name:   payment.name,
				Applied: func() (names []string) {
					for _, p := range b.paid() {
						names = append(names, string(p))
					}
					return names
				},
				Poison: func(n int) payment { return payment(fmt.Sprintf("poison%05d", n)) },
				Down: func() (up func()) {
					execute(t, b.db, `ALTER TABLE courier_inbox RENAME TO gone`)
					return func() { execute(t, b.db, `ALTER TABLE gone RENAME TO courier_inbox`) }
				},
			}
		}, courierttest.ApplierFeatures{Idempotent: true, Concurrent: true, Permanent: true, Isolated: true, Patience: time.Minute})
	})
}

// However often a record comes, also twice in a batch, its effect happens once.
func TestEffects_HappenOnce(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		b := openBank(t, kind, InboxConfig{})
		applier := b.applier(pay)
		require.NoError(t, applier.ApplyBatch(t.Context(), payments(0, 10)))
		require.Zero(t, b.inbox.Skipped())
		require.NoError(t, applier.ApplyBatch(t.Context(), payments(5, 15)))
		require.EqualValues(t, 5, b.inbox.Skipped())
		require.NoError(t, applier.Apply(t.Context(), payments(3, 4)[0]))
		require.NoError(t, applier.ApplyBatch(t.Context(), append(payments(15, 20), payments(14, 18)...)))
		require.EqualValues(t, 10, b.inbox.Skipped())
		require.Equal(t, payments(0, 20), b.paid())

		other := kind.applier(b.open(InboxConfig{Consumer: "audit"}), pay)
		require.NoError(t, other.ApplyBatch(t.Context(), payments(0, 1)))
		require.Len(t, b.paid(), 21, "another consumer has its own effects")
	})
}

// Of a batch with records that fail, the others are done, and what the failed ones wrote is
// taken back.
func TestEffects_OfABatchThatFailsInPart(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		b := openBank(t, kind, InboxConfig{})
		closed := map[payment]error{"p00005": errors.New("five"), "p00011": errors.New("eleven"), "p00012": errors.New("twelve")}
		refuse := true
		calls := 0
		applier := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
			calls++
			if err := pay(ctx, write, fresh); err != nil {
				return err
			}
			for _, p := range fresh {
				if err := closed[p]; err != nil && refuse {
					return err
				}
			}
			return nil
		})
		batch := append(payments(0, 64), "p00005", "")
		err := applier.ApplyBatch(t.Context(), batch)
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		got := make(map[int]string)
		for _, f := range list.Failures {
			got[f.Index] = f.Err.Error()
		}
		require.Equal(t, map[int]string{5: "five", 11: "eleven", 12: "twelve", 64: "five", 65: errUnnamed.Error()}, got)
		require.Len(t, b.paid(), 61)
		require.Less(t, calls, 500, "the batch is halved, and not taken apart at once")
		require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), errUnnamed))
		require.Zero(t, b.inbox.Skipped(), "a record that failed is not done, however often it is in the batch")

		refuse = false
		require.NoError(t, applier.ApplyBatch(t.Context(), payments(0, 64)))
		require.EqualValues(t, 61, b.inbox.Skipped())
		require.Equal(t, payments(0, 64), b.paid(), "what was rolled back is not taken for done")
	})
}

// Several processes have the same records in hand, in any order.
func TestEffects_OfSeveralProcesses(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		b := openBank(t, kind, InboxConfig{})
		var all sync.WaitGroup
		for process := range 4 {
			applier := kind.applier(b.open(InboxConfig{}), pay)
			all.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(process)))
				for range 20 {
					batch := payments(0, 40)
					random.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
					for _, part := range [][]payment{batch[:25], batch[15:]} {
						if err := applier.ApplyBatch(t.Context(), part); err != nil {
							t.Errorf("process %d: %v", process, err)
						}
					}
				}
			})
		}
		all.Wait()
		require.Equal(t, payments(0, 40), b.paid())
	})
}

// A transaction that the database ends because another was in the way is tried again.
func TestEffects_AreTriedAgainAfterAConflict(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		for code, conflict := range map[Dialect]map[string]error{ // SQLite has one writer at a time
			Postgres: {"40001": &pgconn.PgError{Code: "40001"}, "40P01": &pgconn.PgError{Code: "40P01"}},
			MySQL:    {"1213": &mysql.MySQLError{Number: 1213}, "1205": &mysql.MySQLError{Number: 1205}},
		}[kind.dialect] {
			b := openBank(t, kind, InboxConfig{})
			conflicts := 3
			applier := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
				if err := pay(ctx, write, fresh); err != nil {
					return err
				}
				if conflicts--; conflicts >= 0 {
					return fmt.Errorf("pay: %w", conflict)
				}
				return nil
			})
			require.NoError(t, applier.Apply(t.Context(), "a"))
			require.Equal(t, []payment{"a"}, b.paid())
			conflicts = 4
			require.ErrorContains(t, applier.Apply(t.Context(), "b"), code)
			require.NoError(t, applier.Apply(t.Context(), "b"))
			require.Equal(t, []payment{"a", "b"}, b.paid())
		}
	})
}

// If the answer to a commit does not come, the next try finds out whether it is done.
func TestEffects_OfACommitOfUnknownOutcome(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		if kind.dialect != Postgres {
			return // there is no server whose answer could be lost
		}
		b := openBank(t, kind, InboxConfig{QueryTimeout: 300 * time.Millisecond})
		// A commit that takes longer than the client waits for it.
		execute(t, b.db, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.id = 'slow' THEN PERFORM pg_sleep(1); END IF; RETURN NULL; END $$;
			CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()`)
		var calls atomic.Int64
		effect := func(ctx context.Context, write writer, fresh []payment) error {
			calls.Add(1)
			return pay(ctx, write, fresh)
		}
		applier := b.applier(effect)
		err := applier.ApplyBatch(t.Context(), []payment{"a", "slow"})
		require.ErrorIs(t, err, ErrQueryTimeout)
		require.ErrorContains(t, err, "it is not known whether they are done")
		var list *courier.BatchError
		require.NotErrorAs(t, err, &list)
		tried := calls.Load()
		patient := kind.applier(b.open(InboxConfig{}), effect)
		require.NoError(t, patient.ApplyBatch(t.Context(), []payment{"slow", "a"}))
		require.Equal(t, []payment{"a", "slow"}, b.paid())
		if calls.Load() != tried { // the server saw that the client was gone, and took it back
			t.Log("the effect was called again")
		}
	})
}

// The time of a call does not count what the effect takes, only waiting for the database.
func TestEffects_QueryTimeout(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		const timeout = 500 * time.Millisecond
		b := openBank(t, kind, InboxConfig{QueryTimeout: timeout})
		slow := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
			select {
			case <-time.After(2 * timeout):
			case <-ctx.Done():
			}
			return pay(ctx, write, fresh)
		})
		require.NoError(t, slow.Apply(t.Context(), "slow"))
		require.Equal(t, []payment{"slow"}, b.paid())
		if kind.dialect != Postgres {
			return // whose driver waits for the lock of the file by a time of its own
		}
		tx, err := b.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = tx.ExecContext(t.Context(), `INSERT INTO courier_inbox (consumer, id) VALUES ('bank', 'held')`)
		require.NoError(t, err)
		err = b.applier(pay).ApplyBatch(t.Context(), []payment{"held", "other"})
		require.ErrorIs(t, err, ErrQueryTimeout)
		require.ErrorContains(t, err, "noting 2 records as done in courier_inbox")
		require.NoError(t, tx.Rollback())
		require.NoError(t, b.applier(pay).ApplyBatch(t.Context(), []payment{"held", "other"}))
		require.Equal(t, []payment{"held", "other", "slow"}, b.paid())
	})
}

// Once its context has ended, a batch is not divided.
func TestEffects_EndWithTheirContext(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		b := openBank(t, kind, InboxConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		err := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
			calls++
			err := pay(ctx, write, fresh)
			cancel()
			return errors.Join(err, ctx.Err())
		}).ApplyBatch(ctx, payments(0, 8))
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, calls)
		require.Empty(t, b.paid())
	})
}

// A transaction that ends with its context was not ended by the effect.
func TestEffects_OfATransactionThatEndsWithItsContext(t *testing.T) {
	b := openBank(t, effectKinds["sqlite"], InboxConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	err := Effects(b.inbox, payment.name, func(ctx context.Context, tx *sql.Tx, p payment) (err error) {
		cancel()
		for err == nil {
			_, err = tx.ExecContext(context.WithoutCancel(ctx), `SELECT 1`)
		}
		return err
	}).Apply(ctx, "a")
	require.ErrorIs(t, err, sql.ErrTxDone)
	require.NotErrorIs(t, err, errEnded)
}

// Whenever the context of a batch ends while the batch is divided, what is not reported as
// failed is done: a record that was not tried any more fails too.
func TestEffects_OfABatchWhoseContextEndsInPart(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		for last, more := 1, true; more; last++ {
			b := openBank(t, kind, InboxConfig{})
			ctx, cancel := context.WithCancel(t.Context())
			calls := 0
			err := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
				if calls++; calls == last {
					cancel()
				}
				if slices.Contains(fresh, "p00003") {
					return errors.New("no such account")
				}
				return pay(ctx, write, fresh)
			}).ApplyBatch(ctx, payments(0, 8))
			more = ctx.Err() != nil
			cancel()
			var list *courier.BatchError
			if !errors.As(err, &list) {
				require.Error(t, err)
				require.Empty(t, b.paid(), "of a context that ends in call %d", last)
				continue
			}
			done := payments(0, 8)
			for _, f := range list.Failures {
				done[f.Index] = ""
			}
			require.Equal(t, slices.DeleteFunc(done, func(p payment) bool { return p == "" }), b.paid(), "of a context that ends in call %d", last)
		}
	})
}

// A connection that is lost in the middle takes all back.
func TestEffects_OfAConnectionThatIsLost(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		if kind.dialect != Postgres {
			return
		}
		b := openBank(t, kind, InboxConfig{})
		calls := 0
		applier := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
			if err := pay(ctx, write, fresh); err != nil {
				return err
			}
			if calls++; calls == 1 {
				execute(t, b.db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '%payments%' AND pid <> pg_backend_pid()
						AND pid IN (SELECT pid FROM pg_locks WHERE relation = 'payments'::regclass)`)
			}
			return nil
		})
		// An effect that meets with the loss itself fails, and the rest of the batch with it,
		// unless a new connection does better.
		for err := errEnded; err != nil; {
			before := calls
			if err = applier.ApplyBatch(t.Context(), payments(0, 4)); err != nil {
				require.Zero(t, before)
				require.Empty(t, b.paid())
			}
		}
		require.Greater(t, calls, 1)
		require.Equal(t, payments(0, 4), b.paid())
	})
}

// A database that leaves the note out, and says nothing, is not believed: the record would
// be taken for done.
func TestEffects_OfASuppressedNote(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		if kind.dialect == MySQL {
			return // which leaves no insert out without an error
		}
		b := openBank(t, kind, InboxConfig{})
		require.NoError(t, b.applier(pay).Apply(t.Context(), "a"))
		audit := kind.applier(b.open(InboxConfig{Consumer: "audit"}), func(context.Context, writer, []payment) error { return nil })
		require.NoError(t, audit.Apply(t.Context(), "b"), "whose note is not that of the bank")
		if kind.dialect == Postgres {
			execute(t, b.db, `CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
				CREATE TRIGGER quiet BEFORE INSERT ON courier_inbox FOR EACH ROW EXECUTE FUNCTION quiet()`)
		} else {
			execute(t, b.db, `CREATE TRIGGER quiet BEFORE INSERT ON courier_inbox BEGIN SELECT raise(IGNORE); END`)
		}
		err := b.applier(pay).ApplyBatch(t.Context(), []payment{"a", "b"})
		require.ErrorIs(t, err, ErrSuppressed)
		require.ErrorContains(t, err, "1 of 2")
		require.Equal(t, []payment{"a"}, b.paid())
		require.NoError(t, b.applier(pay).Apply(t.Context(), "a"))
	})
}

// Any text can be the name of a record.
func TestEffects_OfOddNames(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		b := openBank(t, kind, InboxConfig{})
		odd := []payment{"\x00", "\xff", "\xfe", " ", "'", `"`, `\`, "ä", payment(strings.Repeat("x", 10_000)), payment(strings.Repeat("x", 10_001))}
		n := 0
		applier := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
			n += len(fresh)
			return pay(ctx, write, payments(n-len(fresh), n))
		})
		for range 2 {
			require.NoError(t, applier.ApplyBatch(t.Context(), odd))
		}
		require.Len(t, b.paid(), len(odd))
	})
}

// An effect that panics, or ends the transaction, leaves neither a connection nor a note.
func TestEffects_ThatMisbehave(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		b := openBank(t, kind, InboxConfig{})
		b.db.SetMaxOpenConns(1)
		require.PanicsWithValue(t, "oops", func() {
			_ = b.applier(func(ctx context.Context, write writer, fresh []payment) error {
				_ = pay(ctx, write, fresh)
				panic("oops")
			}).Apply(t.Context(), "a")
		})
		require.Zero(t, b.db.Stats().InUse)
		require.Empty(t, b.paid())
		require.NoError(t, b.applier(pay).Apply(t.Context(), "a"))
		require.Equal(t, []payment{"a"}, b.paid())
	})
	for name, commit := range map[string]bool{"commit": true, "rollback": false} {
		t.Run(name, func(t *testing.T) {
			b := openBank(t, effectKinds["sqlite"], InboxConfig{})
			err := Effects(b.inbox, payment.name, func(ctx context.Context, tx *sql.Tx, p payment) error {
				if commit {
					return tx.Commit()
				}
				return tx.Rollback()
			}).ApplyBatch(t.Context(), payments(0, 2))
			require.ErrorIs(t, err, errEnded)
			b = openBank(t, effectKinds["pgx"], InboxConfig{})
			err = PgxEffects(b.inbox, payment.name, func(ctx context.Context, tx pgx.Tx, p payment) error {
				if commit {
					return tx.Commit(ctx)
				}
				return tx.Rollback(ctx)
			}).Apply(t.Context(), "a")
			require.ErrorIs(t, err, errEnded)
		})
	}
}

// A constraint that is looked at when the transaction is committed refuses its record alone.
func TestEffects_OfADeferredConstraint(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		if kind.dialect == MySQL {
			return // which looks at constraints at once
		}
		b := openBank(t, kind, InboxConfig{})
		execute(t, b.db, `CREATE TABLE accounts (id text PRIMARY KEY)`)
		execute(t, b.db, `CREATE TABLE orders (account text REFERENCES accounts (id) DEFERRABLE INITIALLY DEFERRED)`)
		if kind.dialect == SQLite {
			b.db.SetMaxOpenConns(1)
			execute(t, b.db, `PRAGMA foreign_keys = on`)
		}
		execute(t, b.db, `INSERT INTO accounts (id) VALUES ('p00000'), ('p00002')`)
		err := b.applier(func(ctx context.Context, write writer, fresh []payment) error {
			for _, p := range fresh {
				if err := write(ctx, `INSERT INTO orders (account) VALUES ($1)`, string(p)); err != nil {
					return err
				}
			}
			return nil
		}).ApplyBatch(t.Context(), payments(0, 3))
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.Len(t, list.Failures, 1)
		require.Equal(t, 1, list.Failures[0].Index)
		require.ErrorContains(t, list.Failures[0].Err, "committing effects, which are rolled back")
		require.Equal(t, 2, count(t, b.db, `SELECT count(*) FROM orders`))
	})
}

func TestEffects_Validate(t *testing.T) {
	db := databaseOf(t, SQLite)
	inbox := NewInbox(db, SQLite, InboxConfig{Consumer: "bank"})
	effect := func(context.Context, *sql.Tx, payment) error { return nil }
	for name, test := range map[string]struct {
		applier courier.BatchApplier[payment]
		field   string
	}{
		"no inbox":      {Effects(nil, payment.name, effect), "inbox"},
		"zero inbox":    {Effects(new(Inbox), payment.name, effect), "inbox"},
		"no identity":   {Effects(inbox, nil, effect), "identity"},
		"no effect":     {Effects[payment](inbox, payment.name, nil), "effect"},
		"no consumer":   {Effects(NewInbox(db, SQLite, InboxConfig{}), payment.name, effect), "InboxConfig.Consumer"},
		"bad table":     {Effects(NewInbox(db, SQLite, InboxConfig{Consumer: "c", Table: "a b"}), payment.name, effect), "InboxConfig.Table"},
		"bad timeout":   {Effects(NewInbox(db, SQLite, InboxConfig{Consumer: "c", QueryTimeout: -1}), payment.name, effect), "InboxConfig.QueryTimeout"},
		"no database":   {Effects(NewInbox(nil, SQLite, InboxConfig{Consumer: "c"}), payment.name, effect), "db"},
		"pgx of SQLite": {PgxEffects(inbox, payment.name, func(context.Context, pgx.Tx, payment) error { return nil }), "db"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, err := range []error{
				test.applier.(courier.Validator).Validate(),
				test.applier.Apply(t.Context(), "a"),
			} {
				var config *courier.ConfigError
				require.ErrorAs(t, err, &config)
				require.Equal(t, test.field, config.Field)
			}
		})
	}
	require.NoError(t, Effects(inbox, payment.name, effect).(courier.Validator).Validate())
	other := PgxEffects(NewInbox(db, Postgres, InboxConfig{Consumer: "c"}), payment.name, func(context.Context, pgx.Tx, payment) error { return nil })
	require.ErrorIs(t, other.Apply(t.Context(), "a"), errNoPgx, "the driver is another one")
}

// Effects are read committed whatever the default of the database: a repeated note is then seen,
// and is no serialization failure.
func TestEffects_AreReadCommitted(t *testing.T) {
	b := openBank(t, effectKinds["postgres"], InboxConfig{})
	b.db = openPostgres(t, pgtest.Shared(t).DSN+" search_path="+schemaNamed(t, b.db)+" default_transaction_isolation=serializable")
	b.inbox = b.open(InboxConfig{})
	var levels []string
	require.NoError(t, Effects(b.inbox, payment.name, func(ctx context.Context, tx *sql.Tx, _ payment) error {
		levels = append(levels, "")
		return tx.QueryRowContext(ctx, `SHOW transaction_isolation`).Scan(&levels[0])
	}).Apply(t.Context(), "a"))
	require.NoError(t, PgxEffects(b.inbox, payment.name, func(ctx context.Context, tx pgx.Tx, _ payment) error {
		levels = append(levels, "")
		return tx.QueryRow(ctx, `SHOW transaction_isolation`).Scan(&levels[1])
	}).Apply(t.Context(), "b"))
	require.Equal(t, []string{"read committed", "read committed"}, levels)
}
