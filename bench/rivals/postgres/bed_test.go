// Package postgres measures Courier as an outbox relay from PostgreSQL to
// JetStream on file storage, beside the loops that one would write by hand for
// the same guarantees, and beside other libraries.
//
//	go test ./bench/rivals/postgres -run '^$' -bench . -benchtime 1x
package postgres

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"database/sql"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

var (
	rows      = flag.Int("rows", 100_000, "relay `N` rows")
	rivalRows = flag.Int("rival-rows", 10_000, "have the other libraries relay `N` rows")
	kept      = flag.Int("kept", 5_000_000, "measure a fetch beside `N` kept rows")
)

const batchSize = 1000

// brokerVariable makes this binary the NATS server, with its store in the folder
// that is the value. In a process of its own, its work is not counted as that of
// a relay.
const brokerVariable = "BENCH_BROKER"

func TestMain(m *testing.M) {
	if folder := os.Getenv(brokerVariable); folder != "" {
		broker(folder)
	}
	pgtest.Exit(m.Run())
}

func broker(folder string) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: folder, NoLog: true, NoSigs: true})
	if err != nil {
		panic(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		panic("the server does not start")
	}
	fmt.Println(s.ClientURL())
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the parent is gone
	s.Shutdown()
	s.WaitForShutdown()
	os.Exit(0)
}

// bed is a full outbox and an empty stream.
type bed struct {
	b      testing.TB
	dsn    string
	pool   *pgxpool.Pool
	db     *sql.DB // over the pool
	outbox *couriersql.Outbox
	js     jetstream.JetStream
	stream jetstream.Stream
	sink   *couriernats.Sink[couriersql.Message]
}

func newBed(b testing.TB, opts ...couriersql.Option) *bed {
	ctx := context.Background()
	dsn := pgtest.Schema(b)
	pool, err := pgxpool.New(ctx, dsn+" pool_max_conns=10")
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	db := stdlib.OpenDBFromPool(pool)
	db.SetMaxIdleConns(10)
	b.Cleanup(func() { _ = db.Close() })
	outbox := couriersql.New(db, couriersql.Postgres, opts...)
	b.Cleanup(func() { _ = outbox.Close() })
	require.NoError(b, outbox.Migrate(ctx))

	js := connect(b)
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}, Storage: jetstream.FileStorage})
	require.NoError(b, err)
	return &bed{b: b, dsn: dsn, pool: pool, db: db, outbox: outbox, js: js, stream: stream, sink: couriernats.NewSink(js, message)}
}

func connect(b testing.TB) jetstream.JetStream {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), brokerVariable+"="+b.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	url, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	conn, err := nats.Connect(url[:len(url)-1])
	require.NoError(b, err)
	b.Cleanup(func() {
		conn.Close()
		_ = in.Close()
		_ = cmd.Wait()
	})
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(4*batchSize))
	require.NoError(b, err)
	return js
}

func message(m couriersql.Message) (*nats.Msg, error) {
	return couriernats.NewMsg(m.Topic, m.ID, m.Payload, m.Headers, m.Trace)
}

// fill writes n messages of 256 bytes.
func (bed *bed) fill(n int) {
	_, err := bed.pool.Exec(context.Background(), `INSERT INTO courier_outbox (id, topic, payload)
		SELECT lpad(to_hex(i), 32, '0'), 'orders', convert_to(repeat('abcdefgh', 32), 'UTF8') FROM generate_series(1, $1) AS i`, n)
	require.NoError(bed.b, err)
	_, err = bed.pool.Exec(context.Background(), `ANALYZE courier_outbox`)
	require.NoError(bed.b, err)
	_, err = bed.pool.Exec(context.Background(), `CHECKPOINT`)
	require.NoError(bed.b, err)
}

func (bed *bed) pending() (n int) {
	require.NoError(bed.b, bed.pool.QueryRow(context.Background(), `SELECT count(*) FROM courier_outbox WHERE processed_at IS NULL`).Scan(&n))
	return n
}

// cpu is the time that this process has computed for.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure relays a full outbox once an operation, and checks that the stream has
// all of it.
func measure(b *testing.B, n int, opts []couriersql.Option, relay func(*bed)) {
	var computed time.Duration
	for range b.N {
		b.StopTimer()
		bed := newBed(b, opts...)
		bed.fill(n)
		before := cpu()
		b.StartTimer()
		relay(bed)
		b.StopTimer()
		computed += cpu() - before
		info, err := bed.stream.Info(context.Background())
		require.NoError(b, err)
		require.EqualValues(b, n, info.State.Msgs)
		require.Zero(b, bed.pending())
	}
	report(b, n, computed)
}

func report(b *testing.B, n int, computed time.Duration) {
	b.ReportMetric(float64(computed.Nanoseconds())/float64(n*b.N), "cpu-ns/record")
	meter.Time(b, n)
}
