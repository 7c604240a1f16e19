package crash

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"
)

// This room is the child: a relay in a process of its own, which is the test
// binary, told by the environment what to be. It delivers to the parent over a
// socket and tells it what it has in hand, in lines:
//
//	fetched id id …
//	deliver id           answered by a line: then it is delivered
//	parked id            answered by a line: then its mark goes on
//	marked id id …
//	released id id …     or failed
//
// A relay of the chaos delivers to JetStream instead, and tells of it:
//
//	trying id id …
//	deliver id id …      acked, and answered by a line
//	ready                or with a reason why it is not

const relayVariable = "COURIER_CRASH_RELAY"

// relayConfig is what a child is told.
type relayConfig struct {
	Name, Driver, DSN, Socket string
	Hold                      string // "", "lease" or "strict"
	Failures                  int    // one in so many applies fails; 0 is none
	Seed                      uint64
	Slack                     int          // how many times as long as alone on a machine a healthy call may take; 0 is once
	Chaos                     *chaosConfig // nil delivers to the parent
}

const batchSize = 20

// poison is the topic of messages that nobody can deliver.
const poison = "poison"

// big is the topic of messages that are poison while the broker takes no large ones.
const big = "big"

// leaseTime is short, as what a killed relay leased waits for so long.
const leaseTime = 3 * time.Second

// manyCrashes is more than there are: where relays are killed at random, no row is to blame.
const manyCrashes = 1000

// dialects are those of drivers.
var dialects = map[string]couriersql.Dialect{"sqlite": couriersql.SQLite, "pgx": couriersql.Postgres, "mysql": couriersql.MySQL}

// sql is a statement with the placeholders of the database.
func (c relayConfig) sql(text string) string {
	if c.Driver != "mysql" {
		return text
	}
	return strings.NewReplacer("$1", "?", "$2", "?").Replace(text)
}

// childOf is what a process of its own is told, and its database. The process ends with its
// parent.
func childOf(text string) (config relayConfig, db *sql.DB) {
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		panic(err)
	}
	endWithParent()
	db, err := sql.Open(config.Driver, config.DSN)
	if err != nil {
		panic(err)
	}
	return config, db
}

// slack is a time that a healthy call has to keep to.
func (c relayConfig) slack(d time.Duration) time.Duration { return time.Duration(max(1, c.Slack)) * d }

func (c relayConfig) outbox(db *sql.DB, more ...couriersql.Option) *couriersql.Outbox {
	opts := []couriersql.Option{couriersql.WithBackoff(20*time.Millisecond, 100*time.Millisecond)}
	if c.Driver == "pgx" {
		opts = append(opts, couriersql.WithWakeUp())
	}
	if c.Chaos != nil {
		opts = append(opts, couriersql.WithQueryTimeout(c.slack(queryTimeout)))
	}
	switch {
	case c.Driver == "mysql": // in which each way to hold rows is by leases
		opts = append(opts, couriersql.WithLease(c.slack(leaseTime)))
		if c.Hold == "strict" {
			opts = append(opts, couriersql.WithStrictOrder())
		}
	case c.Hold == "lease":
		opts = append(opts, couriersql.WithLease(c.slack(leaseTime)), couriersql.WithMaxCrashes(manyCrashes))
	case c.Hold == "strict":
		opts = append(opts, couriersql.WithStrictOrder())
	}
	return couriersql.New(db, dialects[c.Driver], append(opts, more...)...)
}

// relayMain runs a relay until it is killed, or the parent is gone.
func relayMain(text string) {
	var config relayConfig
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		panic(err)
	}
	conn, err := net.Dial("unix", config.Socket)
	if err != nil {
		panic(err)
	}
	endWithParent()
	line := &line{conn: conn, answers: bufio.NewReader(conn), random: rand.New(rand.NewPCG(config.Seed, 1)), failures: config.Failures}
	line.tell("name", config.Name)
	db, err := sql.Open(config.Driver, config.DSN)
	if err != nil {
		panic(err)
	}
	if config.Chaos != nil {
		panic(config.relay(line, db))
	}
	source := tell(config.outbox(db).Source(), line)
	parking := courier.NewDLQApplier(courier.ProcessFunc(line.deliver), courier.DLQ[couriersql.Row](toldDLQ{source.DLQ(), line}), courier.DLQPolicy[couriersql.Row]{})
	apply := courier.ProcessFunc(func(ctx context.Context, r couriersql.Row) error {
		if line.fails() {
			return errors.New("a failure that was asked for")
		}
		return parking.Apply(ctx, r)
	})
	err = courier.NewPollingCoordinator(source, apply, courier.WithBatchSize(batchSize),
		courier.WithInterval(20*time.Millisecond), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(context.Background())
	panic(err)
}

// endWithParent ends the process with its parent, which holds standard input open while it
// lives.
func endWithParent() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
}

// line is the way to the parent.
type line struct {
	asking   sync.Mutex
	mu       sync.Mutex
	conn     net.Conn
	answers  *bufio.Reader
	random   *rand.Rand
	failures int
}

func (l *line) tell(words ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := fmt.Fprintln(l.conn, strings.Join(words, " ")); err != nil {
		os.Exit(3) // the parent is gone
	}
}

// ask is tell for what the parent answers.
func (l *line) ask(words ...string) {
	l.asking.Lock()
	defer l.asking.Unlock()
	l.tell(words...)
	if _, err := l.answers.ReadString('\n'); err != nil {
		os.Exit(3)
	}
}

func (l *line) fails() bool { return l.failures > 0 && l.random.IntN(l.failures) == 0 }

func (l *line) deliver(_ context.Context, r couriersql.Row) error {
	if r.Topic == poison {
		return courier.Permanent(errors.New("poison"))
	}
	l.ask("deliver", r.ID)
	return nil
}

// toldDLQ is a queue that tells the parent what it took, and waits to be heard.
type toldDLQ struct {
	*couriersql.DLQ[couriersql.Row]
	line *line
}

func (q toldDLQ) Send(ctx context.Context, letter courier.DeadLetter[couriersql.Row]) error {
	err := q.DLQ.Send(ctx, letter)
	if err == nil {
		q.line.ask("parked", letter.Record.ID)
	}
	return err
}

// told is a source that tells the parent what is in hand.
type told struct {
	*couriersql.Source
	fetch func(context.Context, int) ([]couriersql.Row, error) // the source's or a stream's
	line  *line
}

func tell(source *couriersql.Source, line *line) *told { return &told{source, source.Fetch, line} }

func ids(rows []couriersql.Row) []string {
	list := make([]string, len(rows))
	for i, r := range rows {
		list[i] = r.ID
	}
	return list
}

func (t *told) Fetch(ctx context.Context, limit int) ([]couriersql.Row, error) {
	rows, err := t.fetch(ctx, limit)
	if len(rows) > 0 {
		t.line.tell(append([]string{"fetched"}, ids(rows)...)...)
	}
	return rows, err
}

func (t *told) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := t.Source.Mark(ctx, rows)
	if err == nil {
		t.line.tell(append([]string{"marked"}, ids(rows)...)...)
	}
	return err
}

func (t *told) Release(ctx context.Context, rows []couriersql.Row, after time.Duration) error {
	t.line.tell(append([]string{"released"}, ids(rows)...)...)
	return t.Source.Release(ctx, rows, after)
}

func (t *told) Fail(ctx context.Context, failed []courier.FailedRecord[couriersql.Row]) error {
	words := []string{"released"}
	for _, f := range failed {
		words = append(words, f.Record.ID)
	}
	t.line.tell(words...)
	return t.Source.Fail(ctx, failed)
}
