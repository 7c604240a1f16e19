package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/jackc/pgx/v5"
)

// Pooler is a private PgBouncer in transaction mode, in front of a server.
type Pooler struct {
	// DSN is a connection string of the server's database postgres, through the
	// pooler. Every database of the server is to be had by its name.
	DSN string

	cluster *cluster
}

// StartPooler starts a pooler in front of the server at an address of this machine,
// whose role courier needs no password. The server runs. The caller stops the pooler. It is gone when the process dies.
func StartPooler(server *net.TCPAddr) (*Pooler, error) {
	path, err := exec.LookPath("pgbouncer")
	if err != nil { // root has its folder on the path, and others often do not
		path = "/usr/sbin/pgbouncer"
	}
	if _, err := os.Stat(path); err != nil {
		return nil, errors.New("pgtest: there is no PgBouncer here: install it (apt-get install pgbouncer)")
	}
	c := new(cluster)
	err = c.settle(func() error {
		settings := filepath.Join(c.Folder, "pgbouncer.ini")
		c.Program = []string{path, settings}
		// A failed login is tried again soon, and who waits for a server is told.
		return os.WriteFile(settings, fmt.Appendf(nil, `[databases]
* = host=%[1]s port=%[2]d user=courier
[pgbouncer]
unix_socket_dir = %[3]s
listen_port = 5432
auth_type = any
admin_users = courier
pool_mode = transaction
default_pool_size = 20
max_client_conn = 1000
server_login_retry = 0.2
server_connect_timeout = 2
query_wait_timeout = 5
ignore_startup_parameters = extra_float_digits
`, server.IP, server.Port, c.Folder), 0o644)
	})
	if err != nil {
		return nil, fmt.Errorf("pgtest: starting a private PgBouncer: %w", err)
	}
	return &Pooler{DSN: c.dsn(), cluster: c}, nil
}

// Dial opens a plain connection to the pooler, for a network in front of it.
func (p *Pooler) Dial() (net.Conn, error) { return p.cluster.dial() }

// Stop ends the pooler and removes its folder.
func (p *Pooler) Stop() error { return p.cluster.Remove() }

// Crash ends the pooler at once, and with it all connections.
func (p *Pooler) Crash() error { return p.cluster.Stop("KILL") }

// Restart starts a pooler that crashed, and returns once it leads to the server.
func (p *Pooler) Restart() error { return p.cluster.Start() }

// Reconnect has the pooler close its connections to the server as soon as no
// transaction is on them, as is done after a failover.
func (p *Pooler) Reconnect(ctx context.Context) error {
	config, err := pgx.ParseConfig(p.DSN)
	if err != nil {
		return err
	}
	config.Database, config.DefaultQueryExecMode = "pgbouncer", pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("pgtest: the console of PgBouncer: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, "RECONNECT")
	return err
}
