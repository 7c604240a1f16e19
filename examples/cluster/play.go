package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	streamName = "COURIER_CLUSTER"
	subject    = "courier.cluster.orders"

	// As short as the server takes it, so that what is delivered twice is seen
	// twice. A stream in production has a long one, and tells it by its ID.
	duplicateWindow = 100 * time.Millisecond

	patience = 60 * time.Second
)

// play is one run: it starts what is needed, lets relays be killed, and tells
// how it went.
func play(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	dsn, closeDatabase, err := database(ctx, o.pg, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeDatabase()) }()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	outbox := outboxOf(db, o.strict)
	if err := outbox.Migrate(ctx); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `CREATE TABLE orders (id text PRIMARY KEY)`); err != nil {
		return err
	}
	js, address, closeBroker, err := broker(ctx)
	if err != nil {
		return err
	}
	defer closeBroker()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	board := newBoard(o)
	reading, err := board.read(ctx, js)
	if err != nil {
		return err
	}
	defer reading.Stop()
	crew := &crew{stderr: &shared{w: stderr}, config: relayConfig{DSN: dsn, NATS: address, Batch: o.batch, Strict: o.strict}, board: board}
	defer crew.killAll()
	for range o.relays {
		if err := crew.hire(); err != nil {
			return err
		}
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	written := make(chan error, 1)
	group.Go(func() { written <- writeOrders(ctx, db, outbox, o.orders) })
	stopShow := board.show(stdout)
	defer stopShow()
	for i := range o.kills {
		if err := board.wait(ctx, (i+1)*o.orders/(o.kills+1)); err != nil {
			return err
		}
		if err := crew.replace(i % o.relays); err != nil {
			return err
		}
	}
	if err := <-written; err != nil {
		return err
	}
	if err := board.wait(ctx, o.orders); err != nil {
		return err
	}
	pending, err := drained(ctx, outbox)
	if err != nil {
		return err
	}
	stopShow()
	return board.verdict(stdout, pending)
}

// database returns a schema of its own on the server of the DSN, or on a private
// one.
func database(ctx context.Context, dsn string, stderr io.Writer) (schema string, closeAll func() error, err error) {
	s := &pgtest.Server{DSN: dsn}
	if dsn == "" {
		if s, err = pgtest.Start(); err != nil {
			return "", nil, err
		}
		_, _ = fmt.Fprintln(stderr, "cluster:", s.Note)
	}
	schema, drop, err := s.NewSchema(ctx)
	if err != nil {
		return "", nil, errors.Join(err, s.Stop())
	}
	return schema, func() error { return errors.Join(drop(), s.Stop()) }, nil
}

// broker starts a NATS server with JetStream in this process.
func broker(ctx context.Context) (_ jetstream.JetStream, address string, stop func(), _ error) {
	folder, err := os.MkdirTemp("", "courier-cluster-")
	if err != nil {
		return nil, "", nil, err
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: folder, NoLog: true, NoSigs: true})
	if err != nil {
		return nil, "", nil, errors.Join(err, os.RemoveAll(folder))
	}
	s.Start()
	halt := func() {
		s.Shutdown()
		s.WaitForShutdown()
		_ = os.RemoveAll(folder)
	}
	if !s.ReadyForConnections(10 * time.Second) {
		halt()
		return nil, "", nil, errors.New("the embedded NATS server does not start")
	}
	conn, err := nats.Connect(s.ClientURL())
	if err != nil {
		halt()
		return nil, "", nil, err
	}
	haltAll := func() { conn.Close(); halt() }
	js, err := jetstream.New(conn)
	if err == nil {
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: streamName, Subjects: []string{subject}, Duplicates: duplicateWindow})
	}
	if err != nil {
		haltAll()
		return nil, "", nil, err
	}
	return js, s.ClientURL(), haltAll, nil
}

// writeOrders is the outbox pattern: ten orders, and their messages, in each
// transaction.
func writeOrders(ctx context.Context, db *sql.DB, outbox *couriersql.Outbox, n int) error {
	for first := 1; first <= n; first += 10 {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		for i := first; i < min(first+10, n+1) && err == nil; i++ {
			id := fmt.Sprintf("order-%07d", i)
			if _, err = tx.ExecContext(ctx, `INSERT INTO orders VALUES ($1)`, id); err == nil {
				err = outbox.Write(ctx, tx, couriersql.Message{ID: id, Topic: "orders", Payload: fmt.Appendf(nil, `{"order":%d}`, i)})
			}
		}
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("writing orders: %w", err), tx.Rollback())
		}
	}
	return nil
}

// drained waits until the relays have marked what they delivered.
func drained(ctx context.Context, outbox *couriersql.Outbox) (pending int, err error) {
	for late := time.Now().Add(patience); ; {
		if pending, err = outbox.Pending(ctx); err != nil || pending == 0 || time.Now().After(late) {
			return pending, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// shared is an output that several processes write to.
type shared struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// crew is the relay processes.
type crew struct {
	config relayConfig
	board  *board
	stderr io.Writer
	hired  int
	relays []*worker
}

type worker struct {
	name string
	cmd  *exec.Cmd
}

func (c *crew) start() (*worker, error) {
	c.hired++
	config := c.config
	config.Name = fmt.Sprint("relay-", c.hired)
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), relayVariable+"="+string(text))
	cmd.Stderr = c.stderr
	if _, err := cmd.StdinPipe(); err != nil { // which Wait closes
		return nil, err
	}
	c.board.started(config.Name)
	return &worker{config.Name, cmd}, cmd.Start()
}

func (c *crew) hire() error {
	w, err := c.start()
	if err == nil {
		c.relays = append(c.relays, w)
	}
	return err
}

// replace kills a relay, and starts another.
func (c *crew) replace(i int) error {
	c.kill(c.relays[i])
	w, err := c.start()
	if err == nil {
		c.relays[i] = w
	}
	return err
}

func (c *crew) kill(w *worker) {
	c.board.killed(w.name)
	_ = w.cmd.Process.Kill() // SIGKILL: nothing is closed, flushed or deferred
	_ = w.cmd.Wait()
}

func (c *crew) killAll() {
	for _, w := range c.relays {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
	}
}
