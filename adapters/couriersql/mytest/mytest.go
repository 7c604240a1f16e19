// Package mytest finds a MySQL or MariaDB server for tests and demonstrations, or starts a
// private MariaDB: no server has to be set up by hand, and none that runs is touched unless
// it is named.
//
//	func TestMain(m *testing.M) {
//		goleak.VerifyTestMain(m, goleak.Cleanup(mytest.Exit))
//	}
//
//	func TestRelay(t *testing.T) {
//		db, err := sql.Open("mysql", mytest.Database(t))
//		…
//	}
//
// It is no part of what a relay needs at run time.
package mytest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql/internal/private"
	"github.com/go-sql-driver/mysql"
)

// Where a server is taken from.
const (
	// DSNVariable is the environment variable with the DSN of a server to use, as the
	// driver github.com/go-sql-driver/mysql takes it, such as "root@tcp(127.0.0.1:3306)/".
	// Tests create databases there and drop them.
	DSNVariable = "COURIER_TEST_MYSQL"

	// SkipVariable is the environment variable that, set to "skip", lets tests
	// without a server be skipped. It is ignored where CI is set.
	SkipVariable = "COURIER_MYSQL"
)

// ErrNone is the error, to errors.Is, of a machine without MariaDB.
var ErrNone = errors.New("there is no MariaDB here")

// Server is a MySQL or MariaDB server that tests may use.
type Server struct {
	// DSN is one of the server, without a database.
	DSN string
	// Note says in a line what was found or started.
	Note string

	private *private.Server // nil for one that was running
}

// Start returns the server that [DSNVariable] names, or starts a private one from the
// installed binaries, in a temporary folder, reachable by a Unix socket alone. It does not
// flush to the disk. It is gone after Stop, and when the process dies.
func Start() (*Server, error) {
	if dsn := os.Getenv(DSNVariable); dsn != "" {
		return &Server{DSN: dsn, Note: "using the server that " + DSNVariable + " names"}, nil
	}
	return startPrivate()
}

func startPrivate() (*Server, error) {
	server, install := find("mariadbd"), find("mariadb-install-db")
	if server == "" || install == "" {
		return nil, fmt.Errorf("mytest: %w: install it (apt-get install mariadb-server), or set %s to the DSN of a server, or %s=skip to do without",
			ErrNone, DSNVariable, SkipVariable)
	}
	p := &private.Server{End: "KILL"} // nobody needs its files
	s := &Server{private: p}
	p.Ready = func(ctx context.Context) error { return s.execute(ctx, "DO 1") }
	err := p.Settle("courier-my-", []string{"mysql", "nobody"}, func() error {
		data := filepath.Join(p.Folder, "data")
		s.DSN = fmt.Sprintf("root@unix(%s)/", filepath.Join(p.Folder, "socket"))
		// No file of settings of the machine. A server that starts deletes what others have in
		// its folder of temporary tables.
		temporary := "--tmpdir=" + p.Folder
		p.Program = []string{
			server, "--no-defaults", temporary, "--datadir=" + data, "--socket=" + filepath.Join(p.Folder, "socket"),
			"--pid-file=" + filepath.Join(p.Folder, "pid"), "--skip-networking", "--skip-name-resolve", "--max-connections=500",
			"--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=0", "--innodb-log-file-size=16M",
			"--innodb-buffer-pool-size=64M", "--innodb-stats-persistent=0",
		}
		if out, err := p.Command(install, "--no-defaults", temporary, "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve",
			"--innodb-log-file-size=16M", "--datadir="+data).CombinedOutput(); err != nil {
			return fmt.Errorf("mariadb-install-db: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mytest: starting a private MariaDB (%s): %w", server, err)
	}
	version, _ := exec.Command(server, "--version").Output()
	s.Note = fmt.Sprintf("started a private server, %s, in %s", strings.TrimSpace(string(version)), p.Folder)
	return s, nil
}

// find looks where packages put the server's programs, which is often not on the path.
func find(program string) string {
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	for _, folder := range []string{"/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"} {
		if path := filepath.Join(folder, program); exec.Command(path, "--version").Run() == nil {
			return path
		}
	}
	return ""
}

// Stop ends a private server and removes its folder.
func (s *Server) Stop() error {
	if s.private == nil {
		return nil
	}
	return s.private.Remove()
}

// NewDatabase creates an empty database and returns its DSN, and the function that drops it.
func (s *Server) NewDatabase(ctx context.Context) (dsn string, drop func() error, err error) {
	config, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		return "", nil, fmt.Errorf("mytest: %w", err)
	}
	config.DBName = "courier_" + strings.ToLower(rand.Text()[:12])
	if err := s.execute(ctx, "CREATE DATABASE "+config.DBName+" CHARACTER SET utf8mb4"); err != nil {
		return "", nil, err
	}
	return config.FormatDSN(), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return s.execute(ctx, "DROP DATABASE "+config.DBName)
	}, nil
}

func (s *Server) execute(ctx context.Context, text string) (err error) {
	config, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		return fmt.Errorf("mytest: %w", err)
	}
	config.Logger = &mysql.NopLogger{} // of a server that does not take connections yet
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return fmt.Errorf("mytest: %w", err)
	}
	db := sql.OpenDB(connector)
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, text); err != nil {
		return fmt.Errorf("mytest: %s: %w", text, err)
	}
	return nil
}

// shared is the server of a test binary, started by the first test that asks.
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Shared returns the one server of a test binary, which [Exit] stops. Without a server the
// test fails, or is skipped where [SkipVariable] allows it.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() {
		if shared.server, shared.err = Start(); shared.err == nil {
			fmt.Fprintln(os.Stderr, "mytest:", shared.server.Note)
		}
	})
	private.Need(t, shared.err, ErrNone, SkipVariable)
	return shared.server
}

// Database returns the DSN of an empty database of the shared server, which is dropped at
// the end of the test.
func Database(t testing.TB) (dsn string) {
	t.Helper()
	return private.Fresh(t, Shared(t).NewDatabase)
}

// Exit stops the shared server, if there is one, and ends the process. It is for the end of
// a TestMain.
func Exit(code int) { os.Exit(Stopped(code)) }

// Stopped is Exit for a TestMain that has more to end: it returns the code to end with.
func Stopped(code int) int {
	if shared.server != nil {
		if err := shared.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	return code
}
