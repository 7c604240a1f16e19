package postgres

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	wmessage "github.com/ThreeDotsLabs/watermill/message"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/stretchr/testify/require"
	"github.com/vgarvardt/gue/v5"
	"github.com/vgarvardt/gue/v5/adapter/pgxv5"
)

// BenchmarkRivals is the libraries that one would use in the place of an outbox
// relay, tuned for throughput. Each is handed one job or message at a time, and
// publishes it before it takes the next; several workers make up for that. Courier
// and a loop by hand are here again, as what is compared is to be measured in the
// same minute.
func BenchmarkRivals(b *testing.B) {
	b.Run("by-hand", func(b *testing.B) { measure(b, *rows, nil, (*bed).selectDelete) })
	b.Run("courier", func(b *testing.B) { measure(b, *rows, nil, func(bed *bed) { bed.courier(1) }) })
	b.Run("river", benchmarkRiver)
	b.Run("courier-leader", func(b *testing.B) {
		measure(b, *rows, []couriersql.Option{couriersql.WithStrictOrder()}, (*bed).courierStream)
	})
	b.Run("watermill-sql", benchmarkWatermill)
	b.Run("gue", benchmarkGue)
}

// rival measures what takes the jobs that fill has made, and calls publish with
// the ID of each.
func rival(b *testing.B, fill func(*bed), relay func(*bed, func(ctx context.Context, id string, payload []byte) error, <-chan struct{})) {
	var computed time.Duration
	for range b.N {
		b.StopTimer()
		bed := newBed(b)
		fill(bed)
		done := make(chan struct{})
		var left atomic.Int64
		left.Store(int64(*rivalRows))
		publish := func(ctx context.Context, id string, payload []byte) error {
			_, err := bed.js.PublishMsg(ctx, &nats.Msg{Subject: "orders", Data: payload, Header: nats.Header{jetstream.MsgIDHeader: {id}}})
			if err == nil && left.Add(-1) == 0 {
				close(done)
			}
			return err
		}
		before := cpu()
		b.StartTimer()
		relay(bed, publish, done)
		b.StopTimer()
		computed += cpu() - before
		info, err := bed.stream.Info(context.Background())
		require.NoError(b, err)
		require.EqualValues(b, *rivalRows, info.State.Msgs)
	}
	report(b, *rivalRows, computed)
}

func payload() []byte {
	p := make([]byte, 256)
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return p
}

type riverArgs struct {
	ID      string
	Payload []byte
}

func (riverArgs) Kind() string { return "relay" }

type riverWorker struct {
	river.WorkerDefaults[riverArgs]
	publish func(context.Context, string, []byte) error
}

func (w *riverWorker) Work(ctx context.Context, job *river.Job[riverArgs]) error {
	return w.publish(ctx, job.Args.ID, job.Args.Payload)
}

func benchmarkRiver(b *testing.B) {
	ctx := context.Background()
	rival(b, func(bed *bed) {
		migrator, err := rivermigrate.New(riverpgxv5.New(bed.pool), nil)
		require.NoError(b, err)
		_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
		require.NoError(b, err)
		client, err := river.NewClient(riverpgxv5.New(bed.pool), &river.Config{})
		require.NoError(b, err)
		for first := 0; first < *rivalRows; first += batchSize {
			var jobs []river.InsertManyParams
			for i := first; i < min(first+batchSize, *rivalRows); i++ {
				jobs = append(jobs, river.InsertManyParams{Args: riverArgs{fmt.Sprint(i), payload()}})
			}
			_, err := client.InsertManyFast(ctx, jobs)
			require.NoError(b, err)
		}
	}, func(bed *bed, publish func(context.Context, string, []byte) error, done <-chan struct{}) {
		workers := river.NewWorkers()
		river.AddWorker(workers, &riverWorker{publish: publish})
		client, err := river.NewClient(riverpgxv5.New(bed.pool), &river.Config{
			Workers: workers, Logger: quiet, FetchCooldown: time.Millisecond, FetchPollInterval: 10 * time.Millisecond,
			Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 1000}},
		})
		require.NoError(b, err)
		require.NoError(b, client.Start(ctx))
		<-done
		require.NoError(b, client.Stop(ctx))
	})
}

func benchmarkWatermill(b *testing.B) {
	ctx := context.Background()
	schema := wsql.DefaultPostgreSQLSchema{SubscribeBatchSize: 1000}
	rival(b, func(bed *bed) {
		publisher, err := wsql.NewPublisher(wsql.BeginnerFromPgx(bed.pool), wsql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}, watermill.NopLogger{})
		require.NoError(b, err)
		for first := 0; first < *rivalRows; first += batchSize {
			var messages []*wmessage.Message
			for i := first; i < min(first+batchSize, *rivalRows); i++ {
				messages = append(messages, wmessage.NewMessage(fmt.Sprint(i), fmt.Appendf(nil, `{"payload":"%s"}`, payload())))
			}
			require.NoError(b, publisher.Publish("orders", messages...))
		}
	}, func(bed *bed, publish func(context.Context, string, []byte) error, done <-chan struct{}) {
		subscriber, err := wsql.NewSubscriber(wsql.BeginnerFromPgx(bed.pool), wsql.SubscriberConfig{
			ConsumerGroup: "relay", PollInterval: 10 * time.Millisecond, SchemaAdapter: schema,
			OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
		}, watermill.NopLogger{})
		require.NoError(b, err)
		messages, err := subscriber.Subscribe(ctx, "orders")
		require.NoError(b, err)
		for running := true; running; {
			select {
			case m := <-messages:
				require.NoError(b, publish(ctx, m.UUID, m.Payload))
				m.Ack()
			case <-done:
				running = false
			}
		}
		require.NoError(b, subscriber.Close())
	})
}

func benchmarkGue(b *testing.B) {
	ctx := context.Background()
	rival(b, func(bed *bed) {
		_, err := bed.pool.Exec(ctx, gueSchema)
		require.NoError(b, err)
		client, err := gue.NewClient(pgxv5.NewConnPool(bed.pool))
		require.NoError(b, err)
		for first := 0; first < *rivalRows; first += batchSize { // a statement takes 65,535 parameters
			var jobs []*gue.Job
			for range min(batchSize, *rivalRows-first) {
				jobs = append(jobs, &gue.Job{Type: "relay", Args: payload()})
			}
			require.NoError(b, client.EnqueueBatch(ctx, jobs))
		}
	}, func(bed *bed, publish func(context.Context, string, []byte) error, done <-chan struct{}) {
		client, err := gue.NewClient(pgxv5.NewConnPool(bed.pool))
		require.NoError(b, err)
		workers, err := gue.NewWorkerPool(client, gue.WorkMap{"relay": func(ctx context.Context, j *gue.Job) error {
			return publish(ctx, j.ID.String(), j.Args)
		}}, 8, gue.WithPoolPollInterval(10*time.Millisecond), gue.WithPoolPollStrategy(gue.RunAtPollStrategy))
		require.NoError(b, err)
		running, stop := context.WithCancel(ctx)
		go func() { <-done; stop() }()
		require.NoError(b, workers.Run(running))
	})
}

// gueSchema is migrations/schema.sql of the module.
const gueSchema = `CREATE TABLE gue_jobs (
	job_id TEXT NOT NULL PRIMARY KEY, priority SMALLINT NOT NULL, run_at TIMESTAMPTZ NOT NULL, job_type TEXT NOT NULL,
	args BYTEA NOT NULL, error_count INTEGER NOT NULL DEFAULT 0, last_error TEXT, queue TEXT NOT NULL,
	created_at TIMESTAMPTZ NOT NULL, updated_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX idx_gue_jobs_selector ON gue_jobs (queue, run_at, priority)`
