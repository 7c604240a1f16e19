package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	streamName    = "COURIER_DEMO"
	subjectPrefix = "courier.demo."

	// For as long as this after a crash, the stream tells a row that is
	// delivered again.
	duplicateWindow = time.Hour

	brokerTimeout = 10 * time.Second
)

// broker is a NATS server with JetStream on file storage, in this process.
type broker struct {
	options *server.Options
	server  *server.Server
	log     *slog.Logger
}

func startBroker(folder string, log *slog.Logger) (*broker, error) {
	b := &broker{log: log, options: &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: folder, NoSigs: true,
	}}
	if err := b.start(); err != nil {
		return nil, err
	}
	// A restart has to be where the clients look for it.
	b.options.Port = b.server.Addr().(*net.TCPAddr).Port
	return b, nil
}

func (b *broker) start() error {
	s, err := server.NewServer(b.options)
	if err != nil {
		return fmt.Errorf("the embedded NATS server: %w", err)
	}
	fault := make(fatalLog, 1)
	s.SetLogger(fault, false, false)
	s.Start()
	for late := time.After(brokerTimeout); !s.ReadyForConnections(100 * time.Millisecond); {
		var reason string
		select {
		case reason = <-fault:
		case <-late:
			reason = "it takes too long"
		default:
			continue
		}
		s.Shutdown()
		s.WaitForShutdown()
		return fmt.Errorf("the embedded NATS server does not start: %s: is its store %s writable, and its port free?", reason, b.options.StoreDir)
	}
	b.server = s
	return nil
}

func (b *broker) stop() {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

func (b *broker) address() string { return b.server.ClientURL() }

// outage takes the server down when begin is closed, and up again.
func (b *broker) outage(ctx context.Context, begin <-chan struct{}, d time.Duration) error {
	select {
	case <-begin:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil
	}
	b.log.Warn("the demo takes the broker down", "for", d)
	b.stop()
	select {
	case <-time.After(d):
	case <-ctx.Done(): // at once: what is in the stream is yet to be read back
	}
	b.log.Warn("the demo starts the broker again")
	return b.start()
}

// fatalLog takes from a server's log why it does not start, which it tells
// nowhere else.
type fatalLog chan string

func (l fatalLog) Fatalf(format string, v ...any) {
	select {
	case l <- fmt.Sprintf(format, v...):
	default: // the first reason is enough
	}
}
func (fatalLog) Errorf(string, ...any)  {}
func (fatalLog) Warnf(string, ...any)   {}
func (fatalLog) Noticef(string, ...any) {}
func (fatalLog) Debugf(string, ...any)  {}
func (fatalLog) Tracef(string, ...any)  {}

// connect returns JetStream over a connection that outlasts any outage.
func connect(address string, log *slog.Logger) (jetstream.JetStream, error) {
	conn, err := nats.Connect(address,
		nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil is our own Close
				log.Warn("the connection to the broker is lost", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("the NATS client", "error", err) }),
		nats.ReconnectHandler(func(*nats.Conn) { log.Warn("the connection to the broker is back") }),
	)
	if err != nil {
		return nil, fmt.Errorf("no connection to %s: %w: start a server there (nats-server -js), or leave out -out", redacted(address), err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return js, nil
}

// redacted is an address without its password.
func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the server"
	}
	return u.Redacted()
}

// openStream creates the stream, or finds that of an earlier run.
func openStream(ctx context.Context, js jetstream.JetStream) (jetstream.Stream, error) {
	want := jetstream.StreamConfig{Name: streamName, Subjects: []string{subjectPrefix + ">"}, Duplicates: duplicateWindow}
	address := js.Conn().ConnectedUrlRedacted()
	stream, err := js.Stream(ctx, streamName)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, want)
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return nil, fmt.Errorf("the server at %s has no JetStream: start it with nats-server -js", address)
	case err != nil:
		return nil, fmt.Errorf("the stream %s at %s: %w", streamName, address, err)
	}
	if have := stream.CachedInfo().Config; !slices.Equal(have.Subjects, want.Subjects) {
		return nil, fmt.Errorf("the server at %s has a stream %s of another program, with subjects %q: rename that stream, or pass another -out", address, streamName, have.Subjects)
	}
	return stream, nil
}

// reconnected waits for the client to notice that the server is back.
func reconnected(conn *nats.Conn) bool {
	changed := conn.StatusChanged(nats.CONNECTED)
	defer conn.RemoveStatusListener(changed)
	if conn.IsConnected() {
		return true
	}
	select {
	case <-changed:
		return true
	case <-time.After(brokerTimeout):
		return false
	}
}
