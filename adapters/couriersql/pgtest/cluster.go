package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/erfanmomeniii/courier/adapters/couriersql/internal/private"
	"github.com/jackc/pgx/v5"
)

// cluster is a private server.
type cluster struct {
	binaries, version string
	private.Server
}

// startCluster starts a server with lines of its own in postgresql.conf, as the replica
// of another one unless that is nil.
func startCluster(primary *cluster, settings string) (*cluster, error) {
	binaries, err := findBinaries()
	if err != nil {
		return nil, err
	}
	c := &cluster{binaries: binaries}
	if version, err := exec.Command(filepath.Join(binaries, "postgres"), "--version").Output(); err == nil {
		c.version = strings.TrimSpace(strings.Replace(string(version), "postgres (PostgreSQL)", "PostgreSQL", 1))
	}
	if err := c.settle(func() error { return c.create(primary, settings) }); err != nil {
		return nil, fmt.Errorf("pgtest: starting a private PostgreSQL (%s): %w", binaries, err)
	}
	return c, nil
}

// settle gives the server a folder, which create fills, and starts it.
func (c *cluster) settle(create func() error) error {
	c.Ready = func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, c.dsn())
		if err == nil {
			err = conn.Close(ctx)
		}
		return err
	}
	return c.Settle("courier-pg-", []string{"postgres", "nobody"}, create)
}

// findBinaries looks where packages put the server's programs, which is often
// not on the path.
func findBinaries() (folder string, err error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if target, err := filepath.EvalSymlinks(path); err == nil { // beside which are all the others
			path = target
		}
		return filepath.Dir(path), nil
	}
	var found []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin/postgres", "/usr/pgsql-*/bin/postgres",
		"/opt/homebrew/opt/postgresql*/bin/postgres", "/usr/local/opt/postgresql*/bin/postgres",
		"/Applications/Postgres.app/Contents/Versions/*/bin/postgres",
	} {
		paths, _ := filepath.Glob(pattern)
		found = append(found, paths...)
	}
	if len(found) == 0 {
		return "", fmt.Errorf("pgtest: %w: install it (apt-get install postgresql), or set %s to the connection string of a server, or %s=skip to do without",
			ErrNone, DSNVariable, SkipVariable)
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), nil
}

// create makes the folder a cluster: an empty one, or a copy of the primary's that
// follows it.
func (c *cluster) create(primary *cluster, settings string) error {
	c.Program = []string{filepath.Join(c.binaries, "postgres"), "-D", filepath.Join(c.Folder, "data")}
	program, args := "initdb", []string{"-U", "courier", "-A", "trust", "-E", "UTF8", "--no-locale"}
	if primary != nil {
		program, args = "pg_basebackup", []string{"-d", primary.dsn(), "--write-recovery-conf", "--checkpoint=fast"}
	}
	args = append(args, "-D", filepath.Join(c.Folder, "data"), "--no-sync")
	if out, err := c.Command(filepath.Join(c.binaries, program), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	settings += fmt.Sprintf("listen_addresses = ''\nunix_socket_directories = '%s'\nmax_connections = 200\n", c.Folder)
	file, err := os.OpenFile(filepath.Join(c.Folder, "data", "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(settings)
	return errors.Join(err, file.Close())
}

func (c *cluster) dial() (net.Conn, error) {
	return net.Dial("unix", filepath.Join(c.Folder, ".s.PGSQL.5432"))
}

func (c *cluster) dsn() string {
	return fmt.Sprintf("host=%s user=courier dbname=postgres sslmode=disable", c.Folder)
}
