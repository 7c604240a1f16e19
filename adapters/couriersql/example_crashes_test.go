package couriersql_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// ahead is a clock that is set.
type ahead struct{ by time.Duration }

func (a *ahead) Now() time.Time                         { return time.Now().Add(a.by) }
func (a *ahead) After(d time.Duration) <-chan time.Time { return time.After(d) }

// A message that kills every process that delivers it is parked by the source.
func ExampleWithMaxCrashes() {
	ctx := context.Background()
	db, cleanup := openExample()
	defer cleanup()
	clock := new(ahead)
	outbox := couriersql.New(db, couriersql.SQLite, couriersql.WithLease(time.Minute), couriersql.WithMaxCrashes(2),
		couriersql.WithClock(clock), couriersql.WithLogger(slog.New(slog.DiscardHandler)))
	defer outbox.Close()
	if err := outbox.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	if err := outbox.Write(ctx, tx, couriersql.Message{ID: "huge", Topic: "reports"}, couriersql.Message{ID: "small", Topic: "reports"}); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	// Each source is a process of its own, which "huge" ends.
	for process := 1; process <= 4; process++ {
		source := outbox.Source()
		for {
			rows, err := source.Fetch(ctx, 10)
			if err != nil {
				log.Fatal(err)
			}
			if len(rows) == 0 {
				break
			}
			if rows[0].ID == "huge" {
				fmt.Printf("process %d dies with %d in hand\n", process, len(rows))
				clock.by += time.Minute + time.Second // its lease ends
				break
			}
			fmt.Printf("process %d delivers %s\n", process, rows[0].ID)
			if err := source.Mark(ctx, rows); err != nil {
				log.Fatal(err)
			}
		}
	}
	for letter, err := range courier.Letters(ctx, outbox.DLQ()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(letter.Record.ID, letter.Reason, letter.Attempts)
	}
	// Output:
	// process 1 dies with 2 in hand
	// process 2 dies with 1 in hand
	// process 3 delivers small
	// process 3 dies with 1 in hand
	// huge crashed 2
}
