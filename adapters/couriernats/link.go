package couriernats

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/nats-io/nats.go"
)

// ErrClosed is what Apply and ApplyBatch return once nothing can be published any
// more: the program has closed or drained the connection, or closed the sink. It is
// a [*courier.ConfigError] too. The records stay pending, the coordinator backs off,
// and its Ready returns the error. Where the client closed the connection, the sink
// connects again instead, see [WithConnect].
var ErrClosed = errors.New("couriernats: nothing can be published any more")

var (
	errConnClosed = fmt.Errorf("%w: %w", ErrClosed, &courier.ConfigError{
		Field: "js", Problem: "has a connection that this program closed or drained: stop the coordinator before that",
	})
	errSinkClosed = fmt.Errorf("%w: %w", ErrClosed, &courier.ConfigError{
		Field: "Sink", Problem: "was closed: stop the coordinator before that",
	})
)

// ConnOptions returns the options that suit a connection that only sinks use, for
// [nats.Connect]: the client reconnects until the program closes the connection,
// whatever the servers answer it; it keeps no message back while it has no server,
// which it would send long after the sink gave the message up; it finds out within
// a minute that an idle connection is dead; and a write that the network does
// not take fails after 5 seconds. The result is the caller's to change.
func ConnOptions() []nats.Option {
	return []nats.Option{
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1),
		nats.PingInterval(20 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.FlusherTimeout(5 * time.Second),
	}
}

// link is the connection that a sink publishes over: the caller's, and after the
// client has closed that for good, one of the sink's own.
type link struct {
	given   *nats.Conn
	connect func(context.Context) (*nats.Conn, error)
	timeout time.Duration // of connect
	conn    atomic.Pointer[nats.Conn]
	busy    atomic.Bool // somebody connects
	closed  atomic.Bool // the sink was

	patience time.Duration // with a connection on which nothing comes
	mu       sync.Mutex
	mute     time.Time // since when nothing has come; zero once something did
}

func newLink(given *nats.Conn, c config) *link {
	l := &link{given: given, connect: c.connect, timeout: c.ackTimeout, patience: c.patience}
	if l.connect == nil {
		l.connect = l.again
	}
	l.conn.Store(given)
	return l
}

// again connects with the options of the caller's connection, and without ever
// giving up.
func (l *link) again(context.Context) (*nats.Conn, error) {
	options := l.given.Opts
	options.AllowReconnect = true
	options.MaxReconnect = -1
	options.RetryOnFailedConnect = true
	options.IgnoreAuthErrorAbort = true
	return options.Connect()
}

// open returns a connection to publish over, or why there is none. After a
// connection that the client closed it connects again, for which one call at a
// time waits.
func (l *link) open(ctx context.Context) (*nats.Conn, error) {
	if err := l.ended(); err != nil {
		return nil, err
	}
	conn := l.conn.Load()
	if conn.IsClosed() {
		return l.replace(ctx, conn)
	}
	return conn, disconnected(conn)
}

// ended says whether the program has closed what there is.
func (l *link) ended() error {
	if l.closed.Load() {
		return errSinkClosed
	}
	conn := l.conn.Load()
	if conn.IsDraining() || conn.IsClosed() && !closedByClient(conn.LastError()) {
		return errConnClosed
	}
	return nil
}

func (l *link) replace(ctx context.Context, dead *nats.Conn) (*nats.Conn, error) {
	if !l.busy.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("couriernats: %w: another call is connecting again", lostTo(dead))
	}
	defer l.busy.Store(false)
	if conn := l.conn.Load(); conn != dead { // another call was faster
		return conn, disconnected(conn)
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	conn, err := l.connect(ctx)
	if err == nil && conn == nil {
		err = errors.New("the function of WithConnect returned neither a connection nor an error")
	}
	if err != nil {
		return nil, fmt.Errorf("couriernats: %w: connecting again: %w", lostTo(dead), err)
	}
	l.conn.Store(conn)
	if l.closed.Load() { // beside this, and it may have closed the dead one
		conn.Close()
		return nil, errSinkClosed
	}
	return conn, disconnected(conn)
}

// heard notes that the server lives.
func (l *link) heard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mute = time.Time{}
}

// dead notes that nothing has come since a time, and reports whether that is too
// long. It then starts anew, with another connection.
func (l *link) dead(since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mute.IsZero() {
		l.mute = since
	}
	if time.Since(l.mute) < l.patience {
		return false
	}
	l.mute = time.Time{}
	return true
}

// close closes what the sink has opened.
func (l *link) close() {
	l.closed.Store(true)
	if conn := l.conn.Load(); conn != l.given {
		conn.Close()
	}
}

// closedByClient tells by a closed connection's last error whether the client
// closed it of itself: it then says why, while a program that closes one leaves
// none, or an earlier one that closes nothing.
func closedByClient(last error) bool {
	for _, harmless := range [...]error{
		nil,
		nats.ErrPermissionViolation,
		nats.ErrMaxSubscriptionsExceeded,
		nats.ErrSlowConsumer,
		nats.ErrBadHeaderMsg,
		nats.ErrDrainTimeout,
	} {
		if errors.Is(last, harmless) {
			return false
		}
	}
	return true
}

// lostTo says how a connection broke that there was.
func lostTo(conn *nats.Conn) error {
	if conn.IsClosed() {
		return fmt.Errorf("%w for good by the client: %w", nats.ErrConnectionClosed, conn.LastError())
	}
	return nats.ErrDisconnected
}

// disconnected returns nil while there is a connection.
func disconnected(conn *nats.Conn) error {
	if conn.IsConnected() {
		return nil
	}
	servers := conn.Servers()
	for i, server := range servers {
		if u, err := url.Parse(server); err == nil {
			u.User = nil // the password or token
			servers[i] = u.String()
		}
	}
	return fmt.Errorf("couriernats: no connection to %s (%v%s): %w", strings.Join(servers, ", "), conn.Status(), givesUp(conn), nats.ErrDisconnected)
}

// givesUp tells of a client that will not reconnect for as long as it takes.
func givesUp(conn *nats.Conn) string {
	if conn.Opts.MaxReconnect < 0 {
		return ""
	}
	return fmt.Sprintf("; the client gives up at its number of attempts at a server (MaxReconnects is %d), and the sink then connects again", conn.Opts.MaxReconnect)
}
