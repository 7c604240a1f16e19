// Package private runs a server for tests in a temporary folder, which is gone when the
// process that asked for it ends, however it ends.
package private

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// startTimeout is long because a recovery after a crash may be.
const startTimeout = 60 * time.Second

// Server is a private server in a folder of its own.
type Server struct {
	Program []string                        // with its arguments
	Folder  string                          // set by Settle
	End     string                          // the signal that ends it for good; "" is INT
	Ready   func(ctx context.Context) error // whether it takes connections

	owner    *syscall.Credential // nil is the user who runs the tests
	watchdog *exec.Cmd
	orders   io.WriteCloser // of the watchdog
}

// watchdogScript runs the server as its child, so that the server cannot
// outlive the process that asked for it: when that dies, the pipe on the
// standard input closes. A line on it is the signal to end the server with.
const watchdogScript = `
trap '' INT TERM HUP
ended=$1
shift
"$@" >>"$0/log" 2>&1 <&3 3<&- &
pid=$!
read -r signal
kill -"${signal:-$ended}" $pid
wait $pid
[ -n "$signal" ] || rm -rf "$0"
`

// Settle gives the server a new folder, which create fills, and starts it. Many servers
// refuse to run as root, which is who tests in containers are run by: the folder and the
// server are then those of the first of the users that there is.
func (s *Server) Settle(pattern string, users []string, create func() error) (err error) {
	if s.Folder, err = os.MkdirTemp("", pattern); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		err = s.disown(users)
	}
	if err == nil {
		err = create()
	}
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		_ = s.Remove()
	}
	return err
}

// disown gives the folder to a user without rights.
func (s *Server) disown(users []string) error {
	for _, name := range users {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return os.Chown(s.Folder, int(uid), int(gid))
	}
	return fmt.Errorf("this is root, as whom the server does not run, and there is none of the users %q", users)
}

// Command is one that runs as the server does.
func (s *Server) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.Folder
	// A group of its own: the interrupt that stops a test is not for the server,
	// which is stopped in turn.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.owner}
	return cmd
}

// Start starts the server, and returns once it is ready.
func (s *Server) Start() error {
	if s.watchdog != nil {
		return errors.New("the server is running")
	}
	cmd := s.Command("/bin/sh", append([]string{"-c", watchdogScript, s.Folder, s.end()}, s.Program...)...)
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
	s.watchdog, s.orders = cmd, orders
	if err := s.wait(); err != nil {
		log, _ := os.ReadFile(filepath.Join(s.Folder, "log"))
		return errors.Join(err, fmt.Errorf("its log: %s", log), s.Stop("KILL"))
	}
	return nil
}

func (s *Server) end() string { return cmp.Or(s.End, "INT") }

// wait waits until the server takes connections.
func (s *Server) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		err := s.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it takes no connection for %v: %w", startTimeout, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the server with a signal and waits for its end.
func (s *Server) Stop(signal string) error {
	if s.watchdog == nil {
		return nil
	}
	_, err := io.WriteString(s.orders, signal+"\n")
	err = errors.Join(err, s.orders.Close())
	_ = s.watchdog.Wait() // its status is the server's, which is that of the signal
	s.watchdog = nil
	return err
}

// Remove ends the server and removes its folder.
func (s *Server) Remove() error {
	return errors.Join(s.Stop(s.end()), os.RemoveAll(s.Folder))
}
