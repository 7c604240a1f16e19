package crash

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// chaosConfig is what a relay of the chaos is told besides.
type chaosConfig struct {
	NATS        string // address
	Credentials string // file with the user and the password, in two words
	Log         string // file
	Stream      bool   // a streaming coordinator
	Prefetch    int    // of a polling one
}

// These are short, so that what they bound is over soon. A healthy call has to take
// less, but for the slack on a busy machine. A breaker opens after five timeouts of acks.
const (
	queryTimeout = time.Second
	ackTimeout   = 500 * time.Millisecond
)

// relay relays to JetStream as the READMEs of both adapters show it.
func (c relayConfig) relay(line *line, db *sql.DB) error {
	file, err := os.OpenFile(c.Chaos.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(file, nil)).With("relay", c.Name)
	log.Info("chaos: begins", "dsn", c.DSN, "stream", c.Chaos.Stream, "prefetch", c.Chaos.Prefetch)
	conn := c.Chaos.connect(line, log)
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	outbox := c.outbox(db, couriersql.WithLogger(log))
	sink := couriernats.NewSink(js, c.message, couriernats.WithAckTimeout(c.slack(ackTimeout)))
	stack := func(source *told) courier.Applier[couriersql.Row] {
		applier, _ := courier.ResilientApplier[couriersql.Row](&toldSink{sink, line}, &courier.ResilientConfig[couriersql.Row]{
			DLQ:     toldDLQ{source.DLQ(), line},
			Retry:   courier.RetryPolicy{InitialDelay: 20 * time.Millisecond},
			Breaker: courier.BreakerPolicy{OpenFor: 200 * time.Millisecond, MaxOpenFor: 2 * time.Second},
			Parking: courier.DLQPolicy[couriersql.Row]{MaxParkRate: courier.AnyParkRate},
		})
		return applier
	}
	options := []courier.Option{courier.WithBatchSize(batchSize), courier.WithLogger(log)}
	if c.Hold == "strict" {
		options = append(options, courier.WithOrderKey(func(r couriersql.Row) string { return r.Key }))
	} else if !c.Chaos.Stream {
		options = append(options, courier.WithPrefetch(c.Chaos.Prefetch))
	}
	var coordinator interface {
		Start(context.Context) error
		Ready() error
	}
	if c.Chaos.Stream {
		stream := outbox.Stream(50 * time.Millisecond)
		source := &told{stream.Source, stream.Fetch, line}
		coordinator = courier.NewStreamingCoordinator(source, stack(source), options...)
	} else {
		source := tell(outbox.Source(), line)
		options = append(options, courier.WithInterval(50*time.Millisecond))
		coordinator = courier.NewPollingCoordinator(source, stack(source), options...)
	}
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			line.ready(coordinator.Ready())
		}
	}()
	return coordinator.Start(context.Background())
}

// connect is what a program does at its start: it is not ready meanwhile.
func (c *chaosConfig) connect(line *line, log *slog.Logger) *nats.Conn {
	credentials := func() (user, password string) {
		text, _ := os.ReadFile(c.Credentials)
		_, _ = fmt.Sscan(string(text), &user, &password)
		return user, password
	}
	for {
		conn, err := nats.Connect(c.NATS, append(couriernats.ConnOptions(), nats.UserInfoHandler(credentials),
			nats.ReconnectWait(50*time.Millisecond), nats.Timeout(time.Second),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Debug("nats", "error", err) }))...)
		if err == nil {
			return conn
		}
		line.ready(err)
		time.Sleep(50 * time.Millisecond)
	}
}

func (l *line) ready(err error) {
	if err == nil {
		l.tell("ready")
		return
	}
	l.tell("ready", strings.ReplaceAll(err.Error(), "\n", " "))
}

// groups are the names of the relays that share an outbox, by how they hold rows.
var groups = map[string]string{"": "locked", "lease": "leased", "strict": "strict"}

// message has a subject that no server takes for poison.
func (c relayConfig) message(r couriersql.Row) (*nats.Msg, error) {
	subject := "orders." + groups[c.Hold] + "." + r.Topic
	if r.Topic == poison {
		subject = "orders.*"
	}
	return couriernats.NewMsg(subject, r.ID, r.Payload)
}

// toldSink tells the parent what it tries, and of what was acked before that is marked.
type toldSink struct {
	*couriernats.Sink[couriersql.Row]
	line *line
}

func (s *toldSink) Apply(ctx context.Context, r couriersql.Row) error {
	s.line.tell("trying", r.ID)
	err := s.Sink.Apply(ctx, r)
	if err == nil {
		s.line.ask("deliver", r.ID)
	}
	return err
}

func (s *toldSink) ApplyBatch(ctx context.Context, rows []couriersql.Row) error {
	s.line.tell(append([]string{"trying"}, ids(rows)...)...)
	err := s.Sink.ApplyBatch(ctx, rows)
	failed := make(map[int]bool)
	var listed *courier.BatchError
	if errors.As(err, &listed) {
		for _, f := range listed.Failures {
			failed[f.Index] = true
		}
	} else if err != nil {
		return err
	}
	words := []string{"deliver"}
	for i, r := range rows {
		if !failed[i] {
			words = append(words, r.ID)
		}
	}
	if len(words) > 1 {
		s.line.ask(words...)
	}
	return err
}
