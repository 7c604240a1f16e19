// Package pgtest finds a PostgreSQL server for tests and demonstrations, or
// starts a private one: no server has to be set up by hand, and none that runs
// is touched unless it is named.
//
//	func TestMain(m *testing.M) {
//		goleak.VerifyTestMain(m, goleak.Cleanup(pgtest.Exit))
//	}
//
//	func TestRelay(t *testing.T) {
//		dsn := pgtest.Schema(t)
//		…
//	}
//
// It is no part of what a relay needs at run time.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql/internal/private"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Where a server is taken from.
const (
	// DSNVariable is the environment variable with the connection string of a
	// server to use, such as "host=127.0.0.1 user=courier dbname=test". Tests
	// create schemas in its database and drop them.
	DSNVariable = "COURIER_PG_DSN"

	// SkipVariable is the environment variable that, set to "skip", lets tests
	// without a server be skipped. It is ignored where CI is set.
	SkipVariable = "COURIER_PG"
)

// ErrNone is the error, to errors.Is, of a machine without PostgreSQL.
var ErrNone = errors.New("there is no PostgreSQL here")

// Server is a PostgreSQL server that tests may use.
type Server struct {
	// DSN is a connection string of the server's database.
	DSN string
	// Note says in a line what was found or started.
	Note string

	cluster *cluster // nil for one that was running

	mu   sync.Mutex
	conn *pgx.Conn // that execute keeps; nil where there is none
}

// Start returns the server that [DSNVariable] names, or starts a private one
// from the installed binaries, in a temporary folder, reachable by a Unix socket
// alone. It is gone after Stop, and when the process dies.
func Start() (*Server, error) { return start("") }

func start(settings string) (*Server, error) {
	if dsn := os.Getenv(DSNVariable); dsn != "" {
		return &Server{DSN: dsn, Note: "using the server that " + DSNVariable + " names"}, nil
	}
	return startPrivate(nil, settings)
}

func startPrivate(primary *cluster, settings string) (*Server, error) {
	c, err := startCluster(primary, settings)
	if err != nil {
		return nil, err
	}
	return &Server{DSN: c.dsn(), Note: fmt.Sprintf("started a private server, %s, in %s", c.version, c.Folder), cluster: c}, nil
}

// Replica starts a hot standby of a private server, which follows it by streaming
// replication. A replica that crashed misses whatever the primary commits until its
// Restart. The caller stops it.
func (s *Server) Replica() (*Server, error) { return startPrivate(s.cluster, "") }

// Promote makes a replica a primary, and returns once it is one.
func (s *Server) Promote(ctx context.Context) error { return s.execute(ctx, "SELECT pg_promote()") }

// Dial opens a plain connection to a private server, for a network in front of it.
func (s *Server) Dial() (net.Conn, error) {
	return s.cluster.dial()
}

// Private reports whether the server was started by Start, so that Crash and
// Restart may be called.
func (s *Server) Private() bool { return s.cluster != nil }

// Stop ends a private server and removes its folder.
func (s *Server) Stop() error {
	if s.cluster == nil {
		return nil
	}
	s.mu.Lock()
	if s.conn != nil {
		_ = s.conn.Close(context.Background())
	}
	s.mu.Unlock()
	return s.cluster.Remove()
}

// Crash ends a private server as pg_ctl stop -m immediate does: every
// connection is cut, nothing is flushed, and the next start recovers from the
// log.
func (s *Server) Crash() error { return s.cluster.Stop("QUIT") }

// Restart starts a private server that crashed, and returns once it takes
// connections: those of a replica are read-only.
func (s *Server) Restart() error { return s.cluster.Start() }

// NewSchema creates an empty schema and returns a connection string that has it
// as the search path, and the function that drops it.
func (s *Server) NewSchema(ctx context.Context) (dsn string, drop func() error, err error) {
	name := "courier_" + strings.ToLower(rand.Text()[:12])
	if err := s.execute(ctx, "CREATE SCHEMA "+name); err != nil {
		return "", nil, err
	}
	dsn = s.DSN + " search_path=" + name
	if strings.HasPrefix(s.DSN, "postgres://") || strings.HasPrefix(s.DSN, "postgresql://") {
		separator := "?"
		if strings.Contains(s.DSN, "?") {
			separator = "&"
		}
		dsn = s.DSN + separator + "search_path=" + name
	}
	return dsn, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for {
			err := s.execute(ctx, "DROP SCHEMA "+name+" CASCADE")
			if e := (*pgconn.PgError)(nil); !errors.As(err, &e) || e.Code != deadlock {
				return err
			}
		}
	}, nil
}

// deadlock is the error of a drop that meets a statement whose client has left it, such as a
// REINDEX, and which ends soon.
const deadlock = "40P01"

// execute keeps its connection to a private server for the next time: to open one takes
// longer than what is executed.
func (s *Server) execute(ctx context.Context, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || s.conn.Ping(ctx) != nil { // which a test has ended, or the server
		conn, err := pgx.Connect(ctx, s.DSN)
		if err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
		s.conn = conn
	}
	if !s.Private() { // no Stop is owed to it
		defer func() {
			_ = s.conn.Close(ctx)
			s.conn = nil
		}()
	}
	if _, err := s.conn.Exec(ctx, text); err != nil {
		return fmt.Errorf("pgtest: %s: %w", text, err)
	}
	return nil
}

// shared is the server of a test binary, started by the first test that asks.
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Shared returns the one server of a test binary, which [Exit] stops. A private one that a
// test asks for first neither flushes to the disk (fsync = off) nor takes replicas: it need
// not outlive its machine. One for benchmarks does both, as in production. Without a server
// the test fails, or is skipped where [SkipVariable] allows it.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() {
		settings := ""
		if _, test := t.(*testing.T); test {
			settings = "fsync = off\nwal_level = minimal\nmax_wal_senders = 0\n"
		}
		shared.server, shared.err = start(settings)
		if shared.err == nil {
			fmt.Fprintln(os.Stderr, "pgtest:", shared.server.Note)
		}
	})
	private.Need(t, shared.err, ErrNone, SkipVariable)
	return shared.server
}

// Schema returns a connection string to an empty schema of the shared server,
// which is dropped at the end of the test.
func Schema(t testing.TB) (dsn string) {
	t.Helper()
	return private.Fresh(t, Shared(t).NewSchema)
}

// Exit stops the shared server, if there is one, and ends the process. It is for
// the end of a TestMain.
func Exit(code int) {
	if shared.server != nil {
		if err := shared.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}
