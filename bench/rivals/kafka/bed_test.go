// Package kafka measures Courier on both sides of Kafka, beside the loops that one would
// write by hand with the same client. The broker is kfake, in a process of its own.
package kafka

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
	"github.com/erfanmomeniii/courier/bench/rivals/internal/full"
)

// brokerVariable makes the test binary a broker.
const brokerVariable = "COURIER_BENCH_BROKER"

var rows = flag.Int("rows", 50_000, "how many rows a relay moves")

func TestMain(m *testing.M) {
	if os.Getenv(brokerVariable) != "" {
		broker()
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(pgtest.Exit))
}

const (
	batchSize  = 1000
	partitions = 6
)

// broker serves until its standard input ends, and prints where.
func broker() {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "orders"))
	if err == nil {
		err = c.CreateTopic("orders.dead", 1, map[string]string{"max.message.bytes": "4000000"}) // what is too large for orders
	}
	if err != nil {
		panic(err)
	}
	fmt.Println(strings.Join(c.ListenAddrs(), ","))
	_, _ = io.Copy(io.Discard, os.Stdin)
	c.Close()
}

// startBroker returns the address of a new broker.
func startBroker(tb testing.TB) string {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), brokerVariable+"=1")
	stdin, err := cmd.StdinPipe()
	require.NoError(tb, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() { _ = errors.Join(stdin.Close(), cmd.Wait()) })
	var address string
	_, err = fmt.Fscanln(stdout, &address)
	require.NoError(tb, err)
	return address
}

func newClient(tb testing.TB, address string, opts ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(address))...)
	require.NoError(tb, err)
	return client
}

// bed is a full outbox in SQLite and an empty topic.
type bed struct {
	db      *sql.DB
	outbox  *couriersql.Outbox
	address string
}

func newBed(b *testing.B) *bed {
	db, outbox := full.Outbox(b, *rows, func(i int) string { return fmt.Sprint("customer-", i%100) })
	return &bed{db, outbox, startBroker(b)}
}

// cpu is the time that this process has computed for.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure relays a full outbox once an operation, and checks that the topic has all of it.
func measure(b *testing.B, relay func(*bed)) {
	var computed time.Duration
	for range b.N {
		b.StopTimer()
		bed := newBed(b)
		before := cpu()
		b.StartTimer()
		relay(bed)
		b.StopTimer()
		computed += cpu() - before
		require.Equal(b, *rows, count(b, bed.address, "orders"))
		pending, err := bed.outbox.Pending(context.Background())
		require.NoError(b, err)
		require.Zero(b, pending)
	}
	b.ReportMetric(float64(computed.Nanoseconds())/float64(b.N)/float64(*rows), "cpu-ns/record")
	meter.Time(b, *rows)
}

// count reads a topic.
func count(tb testing.TB, address, topic string) int { return len(read(tb, address, topic)) }

// read returns the records of a topic that come within a second of each other.
func read(tb testing.TB, address, topic string) (all []*kgo.Record) {
	client := newClient(tb, address, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	defer client.Close()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		got := client.PollFetches(ctx).Records()
		cancel()
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
	}
}
