package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"strconv"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

type job struct {
	id   int
	text string
}

// A table of one's own goes to Kafka by three functions, without an adapter. Records are
// produced one by one; the sink of courierkafka produces a batch at a time.
func Example_threeFunctions() {
	db, stop := jobsTable("resize", "crop", "rotate")
	defer stop()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "jobs"))
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	fetch := func(ctx context.Context) (jobs []job, err error) {
		rows, err := db.QueryContext(ctx, `SELECT id, text FROM jobs WHERE sent = 0 ORDER BY id LIMIT 100`)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		for rows.Next() {
			var j job
			if err := rows.Scan(&j.id, &j.text); err != nil {
				return nil, err
			}
			jobs = append(jobs, j)
		}
		return jobs, rows.Err()
	}
	send := func(ctx context.Context, j job) error {
		r := &kgo.Record{Topic: "jobs", Key: []byte(strconv.Itoa(j.id)), Value: []byte(j.text)}
		sent := make(chan error, 1)
		client.Produce(ctx, r, func(_ *kgo.Record, err error) { sent <- err })
		return <-sent
	}
	mark := func(ctx context.Context, done []job) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		for _, j := range done {
			if _, err := tx.ExecContext(ctx, `UPDATE jobs SET sent = 1 WHERE id = ?`, j.id); err != nil {
				return err
			}
		}
		return tx.Commit()
	}

	ctx, cancel := context.WithCancel(context.Background())
	coordinator := courier.SyncWithRetry(fetch, send, mark, 5, courier.WithFastPolling(), courier.WithLogger(slog.New(slog.DiscardHandler)))
	go func() { // a service would run on
		for coordinator.Stats().Marked < 3 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	fmt.Println(coordinator.Start(ctx))
	var left int
	err = db.QueryRow(`SELECT count(*) FROM jobs WHERE sent = 0`).Scan(&left)
	fmt.Println(left, "left,", cluster.PartitionInfo("jobs", 0).HighWatermark, "in the topic", err)
	// Output:
	// <nil>
	// 0 left, 3 in the topic <nil>
}

// jobsTable is a table of jobs that were not sent.
func jobsTable(texts ...string) (db *sql.DB, stop func()) {
	p, remove, err := makePlaces(context.Background(), "")
	if err != nil {
		log.Fatal(err)
	}
	if db, err = sql.Open(p.Driver, p.Orders); err != nil {
		log.Fatal(err)
	}
	_, err = db.Exec(`CREATE TABLE jobs (id INTEGER PRIMARY KEY, text TEXT NOT NULL, sent INTEGER NOT NULL DEFAULT 0)`)
	for _, text := range texts {
		if err == nil {
			_, err = db.Exec(`INSERT INTO jobs (text) VALUES (?)`, text)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	return db, func() { _ = errors.Join(db.Close(), remove()) }
}
