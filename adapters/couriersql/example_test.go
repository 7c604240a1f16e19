package couriersql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	_ "modernc.org/sqlite"
)

// openExample opens a database in a folder that cleanup removes.
func openExample() (db *sql.DB, cleanup func()) {
	folder, err := os.MkdirTemp("", "couriersql")
	if err != nil {
		log.Fatal(err)
	}
	db, err = sql.Open("sqlite", couriersql.SQLiteDSN(filepath.Join(folder, "orders.db")))
	if err != nil {
		log.Fatal(err)
	}
	return db, func() {
		_ = db.Close()
		_ = os.RemoveAll(folder)
	}
}

// A message is written with the business row, and relayed once both are
// committed.
func Example() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	outbox := couriersql.New(db, couriersql.SQLite)
	defer outbox.Close()
	if err := outbox.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	if _, err := db.ExecContext(ctx, `CREATE TABLE orders (id TEXT PRIMARY KEY, total INTEGER)`); err != nil {
		log.Fatal(err)
	}

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders VALUES ('A-1', 42)`); err != nil {
		log.Fatal(err)
	}
	err = outbox.Write(ctx, tx, couriersql.Message{Topic: "orders", Key: "A-1", Payload: []byte(`{"total":42}`)})
	if err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	publish := courier.ProcessFunc(func(ctx context.Context, m couriersql.Message) error {
		fmt.Printf("%s %s: %s\n", m.Topic, m.Key, m.Payload)
		return nil
	})
	source := outbox.Source()
	relay := courier.NewDLQApplier(
		courier.NewDecodingApplier(publish, couriersql.Row.Message),
		source.DLQ(),
		courier.DLQPolicy[couriersql.Row]{},
	)
	fetch := func(ctx context.Context) ([]couriersql.Row, error) { return source.Fetch(ctx, 100) }
	if err := courier.RunOnce(ctx, fetch, relay.Apply, source.Mark); err != nil {
		log.Fatal(err)
	}
	pending, err := outbox.Pending(ctx)
	fmt.Println("pending:", pending, err)
	// Output:
	// orders A-1: {"total":42}
	// pending: 0 <nil>
}

// Dead letters are looked at, redriven once what was wrong is mended, and
// deleted when nobody wants them any more.
func ExampleDLQ() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	outbox := couriersql.New(db, couriersql.SQLite)
	if err := outbox.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	dlq := outbox.DLQ()
	for _, id := range []string{"A-1", "A-2"} {
		err := dlq.Send(ctx, courier.DeadLetter[couriersql.Row]{
			Record:   couriersql.Row{ID: id, Topic: "orders"},
			Error:    fmt.Errorf("publishing: %w", os.ErrPermission),
			Reason:   courier.ReasonExhausted,
			Attempts: 5,
		})
		if err != nil {
			log.Fatal(err)
		}
	}

	publish := courier.ProcessFunc(func(_ context.Context, r couriersql.Row) error {
		if r.ID == "A-2" {
			return fmt.Errorf("publishing: %w", os.ErrPermission)
		}
		return nil
	})
	result, err := courier.Redrive(ctx, dlq, publish, nil)
	fmt.Println("redriven:", result.Attempted, "succeeded:", result.Succeeded, err)

	for letter, err := range courier.Letters(ctx, dlq) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%v, redriven %d times: %v\n", letter.Record, letter.FailedRedrives, letter.Error)
		if err := dlq.Delete(ctx, letter.ID); err != nil {
			log.Fatal(err)
		}
	}
	left, err := dlq.Count(ctx)
	fmt.Println("left:", left, err)
	// Output:
	// redriven: 2 succeeded: 1 <nil>
	// message "A-2" (topic "orders", key ""), redriven 1 times: publishing: permission denied
	// left: 0 <nil>
}

// A call that the database does not answer in time ends, and says so.
func ExampleWithQueryTimeout() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()

	outbox := couriersql.New(db, couriersql.SQLite, couriersql.WithQueryTimeout(10*time.Second))
	if err := outbox.Migrate(ctx); err != nil {
		panic(err)
	}
	switch pending, err := outbox.Pending(ctx); {
	case errors.Is(err, couriersql.ErrQueryTimeout):
		fmt.Println("the database is frozen, or out of reach")
	case err != nil:
		panic(err)
	default:
		fmt.Println(pending, "rows are pending")
	}
	// Output: 0 rows are pending
}

// Records of any type are parked in a table, and redriven after a restart.
func ExampleNewDLQ() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	type Order struct {
		ID    string `json:"id"`
		Total int    `json:"total"`
	}
	letters := couriersql.NewDLQ(db, couriersql.SQLite, couriersql.DLQConfig[Order]{
		Table:    "dead_orders",
		Identity: func(o Order) string { return o.ID },
	})
	if err := letters.Migrate(ctx); err != nil {
		log.Fatal(err)
	}

	ship := courier.ProcessFunc(func(_ context.Context, o Order) error {
		return courier.Permanent(errors.New("no such address"))
	})
	applier, _ := courier.ResilientApplier(ship, &courier.ResilientConfig[Order]{DLQ: letters})
	if err := applier.Apply(ctx, Order{ID: "A-1", Total: 42}); err != nil {
		log.Fatal(err)
	}

	mended := courier.ProcessFunc(func(_ context.Context, o Order) error {
		fmt.Printf("shipped %s for %d\n", o.ID, o.Total)
		return nil
	})
	result, err := courier.Redrive(ctx, letters, mended, nil)
	fmt.Println("succeeded:", result.Succeeded, err)
	// Output:
	// shipped A-1 for 42
	// succeeded: 1 <nil>
}

func ExampleEffects() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	if _, err := db.ExecContext(ctx, `CREATE TABLE invoices (customer TEXT, total INTEGER)`); err != nil {
		log.Fatal(err)
	}
	type Order struct {
		ID, Customer string
		Total        int
	}
	inbox := couriersql.NewInbox(db, couriersql.SQLite, couriersql.InboxConfig{Consumer: "billing"})
	if err := inbox.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	bill := couriersql.Effects(inbox, func(o Order) string { return o.ID },
		func(ctx context.Context, tx *sql.Tx, o Order) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO invoices (customer, total) VALUES ($1, $2)`, o.Customer, o.Total)
			return err
		})

	for range 3 { // however often it is delivered
		if err := bill.Apply(ctx, Order{ID: "A-1", Customer: "Ada", Total: 42}); err != nil {
			log.Fatal(err)
		}
	}
	var invoices int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM invoices`).Scan(&invoices); err != nil {
		log.Fatal(err)
	}
	fmt.Println(invoices, "invoice;", inbox.Skipped(), "deliveries skipped")
	// Output: 1 invoice; 2 deliveries skipped
}

// An outbox that is there already is relayed as it is. Its rows that nobody can deliver are
// parked.
func ExampleNewTable() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	for _, text := range []string{
		`CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, sent_at INTEGER)`,
		`CREATE INDEX events_pending ON events (id) WHERE sent_at IS NULL`,
		`INSERT INTO events (kind, body) VALUES ('paid', 'order 1'), ('shipped', ''), ('paid', 'order 2')`,
	} {
		if _, err := db.ExecContext(ctx, text); err != nil {
			log.Fatal(err)
		}
	}

	type Event struct {
		ID         int64
		Kind, Body string
	}
	table := couriersql.NewTable(db, couriersql.SQLite, couriersql.TableConfig[Event]{
		Table:   "events",
		Key:     []string{"id"},
		KeyOf:   func(e Event) []any { return []any{e.ID} },
		Columns: []string{"id", "kind", "body"},
		Scan: func(scan func(dest ...any) error) (e Event, err error) {
			return e, scan(&e.ID, &e.Kind, &e.Body)
		},
		Pending: "sent_at IS NULL",
		Mark:    "sent_at = unixepoch()",
	})
	letters := couriersql.NewDLQ(db, couriersql.SQLite, couriersql.DLQConfig[Event]{
		Table:    "dead_events",
		Identity: func(e Event) string { return fmt.Sprint(e.ID) },
	})
	for _, migrate := range []func(context.Context) error{table.Migrate, letters.Migrate} {
		if err := migrate(ctx); err != nil {
			log.Fatal(err)
		}
	}

	deliver := courier.ProcessFunc(func(_ context.Context, e Event) error {
		if e.Body == "" {
			return courier.Permanent(errors.New("it has no body"))
		}
		fmt.Println(e.Kind, e.Body)
		return nil
	})
	relay, _ := courier.ResilientApplier(deliver, &courier.ResilientConfig[Event]{DLQ: letters})
	coordinator := courier.NewPollingCoordinator(table.Source(), relay)
	if err := coordinator.RunOnce(ctx); err != nil { // Start, in a service
		log.Fatal(err)
	}
	pending, err := table.Pending(ctx)
	parked, _ := letters.Count(ctx)
	fmt.Println(pending, "pending,", parked, "parked", err)
	// Output:
	// paid order 1
	// paid order 2
	// 0 pending, 1 parked <nil>
}

// Records are written to a table of the program's own, and update the rows that have them.
func ExampleNewSink() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	if _, err := db.ExecContext(ctx, `CREATE TABLE orders (id TEXT PRIMARY KEY, total INTEGER CHECK (total >= 0))`); err != nil {
		log.Fatal(err)
	}
	type Order struct {
		ID    string
		Total int
	}
	sink := couriersql.NewSink(db, couriersql.SQLite, couriersql.SinkConfig[Order]{
		Table:   "orders",
		Columns: []string{"id", "total"},
		Values:  func(o Order) ([]any, error) { return []any{o.ID, o.Total}, nil },
		Key:     []string{"id"},
	})
	if err := sink.Check(ctx); err != nil {
		log.Fatal(err)
	}

	err := sink.ApplyBatch(ctx, []Order{{"A-1", 42}, {"A-2", -1}, {"A-3", 7}, {"A-1", 43}})
	var failed *courier.BatchError
	if errors.As(err, &failed) {
		for _, f := range failed.Failures {
			fmt.Printf("record %d: %s\n", f.Index, courier.Classify(ctx, f.Err))
		}
	}
	var orders, total int
	if err := db.QueryRowContext(ctx, `SELECT count(*), sum(total) FROM orders`).Scan(&orders, &total); err != nil {
		log.Fatal(err)
	}
	fmt.Println(orders, "orders of", total)
	// Output:
	// record 1: permanent
	// 2 orders of 50
}

// A table of jobs, each of which is done once: the effect and the mark are one transaction.
func ExampleTableSource_Effects() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	for _, text := range []string{
		`CREATE TABLE jobs (id TEXT PRIMARY KEY, amount INTEGER NOT NULL)`,
		`CREATE TABLE balance (cents INTEGER NOT NULL)`,
		`INSERT INTO balance VALUES (0)`,
		`INSERT INTO jobs VALUES ('a', 40), ('b', 2)`,
	} {
		if _, err := db.ExecContext(ctx, text); err != nil {
			log.Fatal(err)
		}
	}

	type Job struct {
		ID     string
		Amount int
	}
	table := couriersql.NewTable(db, couriersql.SQLite, couriersql.TableConfig[Job]{
		Table:   "jobs",
		Key:     []string{"id"},
		KeyOf:   func(j Job) []any { return []any{j.ID} },
		Columns: []string{"id", "amount"},
		Scan:    func(scan func(dest ...any) error) (j Job, err error) { return j, scan(&j.ID, &j.Amount) },
		Pending: "true",
		Mark:    "", // deletes the row
	})
	if err := table.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	source := table.Source()
	book := source.Effects(func(ctx context.Context, tx *sql.Tx, j Job) error {
		_, err := tx.ExecContext(ctx, `UPDATE balance SET cents = cents + $1`, j.Amount)
		return err
	})
	if err := courier.NewPollingCoordinator(source, book).RunOnce(ctx); err != nil { // Start, in a service
		log.Fatal(err)
	}
	var cents int
	if err := db.QueryRowContext(ctx, `SELECT cents FROM balance`).Scan(&cents); err != nil {
		log.Fatal(err)
	}
	left, err := table.Pending(ctx)
	fmt.Println(cents, "cents,", left, "jobs left", err)
	// Output: 42 cents, 0 jobs left <nil>
}

// Delivered rows are kept for a week. While the relay runs, it deletes older ones.
func ExampleWithRetention() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	outbox := couriersql.New(db, couriersql.SQLite, couriersql.WithRetention(7*24*time.Hour))
	defer outbox.Close()
	if err := outbox.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	if err := outbox.Write(ctx, tx, couriersql.Message{Topic: "orders"}); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	source := outbox.Source()
	publish := courier.ProcessFunc(func(context.Context, couriersql.Row) error { return nil })
	if err := courier.NewPollingCoordinator(source, publish).RunOnce(ctx); err != nil {
		log.Fatal(err)
	}
	pending, err := outbox.Pending(ctx)
	if err != nil {
		log.Fatal(err)
	}
	kept, err := outbox.Prunable(ctx, time.Now().Add(time.Minute))
	fmt.Println(pending, "pending,", kept, "kept", err)
	// Output: 0 pending, 1 kept <nil>
}

// A reminder is written with its order, and delivered a day later.
func ExampleMessage_notBefore() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	outbox := couriersql.New(db, couriersql.SQLite)
	defer outbox.Close()
	if err := outbox.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	err = outbox.Write(ctx, tx,
		couriersql.Message{Topic: "orders", Payload: []byte("A-1")},
		couriersql.Message{Topic: "reminders", Payload: []byte("A-1"), NotBefore: time.Now().Add(24 * time.Hour)})
	if err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	publish := courier.ProcessFunc(func(_ context.Context, r couriersql.Row) error {
		fmt.Println("published to", r.Topic)
		return nil
	})
	if err := courier.NewPollingCoordinator(outbox.Source(), publish).RunOnce(ctx); err != nil {
		log.Fatal(err)
	}
	pending, err := outbox.Pending(ctx)
	fmt.Println(pending, "pending", err)
	// Output:
	// published to orders
	// 1 pending <nil>
}
