package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// startTimeout is long because a recovery after a crash may be.
const startTimeout = 60 * time.Second

// cluster is a private server in a folder of its own.
type cluster struct {
	binaries, version string
	program           []string // with its arguments
	folder            string
	owner             *syscall.Credential // nil is the user who runs the tests

	watchdog *exec.Cmd
	orders   io.WriteCloser // of the watchdog
}

// watchdogScript runs the server as its child, so that the server cannot
// outlive the process that asked for it: when that dies, the pipe on the
// standard input closes. A line on it is the signal to end the server with.
const watchdogScript = `
trap '' INT TERM HUP
"$@" >>"$0/log" 2>&1 <&3 3<&- &
pid=$!
read -r signal
kill -"${signal:-INT}" $pid
wait $pid
[ -n "$signal" ] || rm -rf "$0"
`

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

// settle gives the server a folder, which create fills, and starts it. PostgreSQL and
// its poolers refuse to run as root, which is who tests in containers are run by.
func (c *cluster) settle(create func() error) (err error) {
	if c.folder, err = os.MkdirTemp("", "courier-pg-"); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		err = c.disown()
	}
	if err == nil {
		err = create()
	}
	if err == nil {
		err = c.start()
	}
	if err != nil {
		_ = c.remove()
	}
	return err
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
	c.program = []string{filepath.Join(c.binaries, "postgres"), "-D", filepath.Join(c.folder, "data")}
	program, args := "initdb", []string{"-U", "courier", "-A", "trust", "-E", "UTF8", "--no-locale"}
	if primary != nil {
		program, args = "pg_basebackup", []string{"-d", primary.dsn(), "--write-recovery-conf", "--checkpoint=fast"}
	}
	args = append(args, "-D", filepath.Join(c.folder, "data"), "--no-sync")
	if out, err := c.command(filepath.Join(c.binaries, program), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	settings += fmt.Sprintf("listen_addresses = ''\nunix_socket_directories = '%s'\nmax_connections = 200\n", c.folder)
	file, err := os.OpenFile(filepath.Join(c.folder, "data", "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(settings)
	return errors.Join(err, file.Close())
}

// disown gives the folder to a user without rights.
func (c *cluster) disown() error {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		c.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return os.Chown(c.folder, int(uid), int(gid))
	}
	return errors.New("this is root, as whom PostgreSQL does not run, and there is neither a user postgres nor a user nobody")
}

func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = c.folder
	// A group of its own: the interrupt that stops a test is not for the server,
	// which is stopped in turn.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.owner}
	return cmd
}

func (c *cluster) start() error {
	if c.watchdog != nil {
		return errors.New("pgtest: the server is running")
	}
	cmd := c.command("/bin/sh", append([]string{"-c", watchdogScript, c.folder}, c.program...)...)
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	cmd.ExtraFiles = []*os.File{null} // the server's standard input: not the watchdog's
	orders, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.watchdog, c.orders = cmd, orders
	if err := c.ready(); err != nil {
		log, _ := os.ReadFile(filepath.Join(c.folder, "log"))
		return errors.Join(err, fmt.Errorf("its log: %s", log), c.stop("QUIT"))
	}
	return nil
}

// ready waits until the server takes connections.
func (c *cluster) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.dsn())
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it takes no connection for %v: %w", startTimeout, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends the server with a signal and waits for its end.
func (c *cluster) stop(signal string) error {
	if c.watchdog == nil {
		return nil
	}
	_, err := io.WriteString(c.orders, signal+"\n")
	err = errors.Join(err, c.orders.Close())
	_ = c.watchdog.Wait() // its status is the server's, which is that of the signal
	c.watchdog = nil
	return err
}

// remove ends the server and removes its folder.
func (c *cluster) remove() error {
	return errors.Join(c.stop("INT"), os.RemoveAll(c.folder))
}

func (c *cluster) dial() (net.Conn, error) {
	return net.Dial("unix", filepath.Join(c.folder, ".s.PGSQL.5432"))
}

func (c *cluster) dsn() string {
	return fmt.Sprintf("host=%s user=courier dbname=postgres sslmode=disable", c.folder)
}
