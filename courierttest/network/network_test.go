package network_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier/courierttest/network"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a server that answers each line with it.
func echo(t *testing.T) *network.Network {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := network.Local(t, func() (net.Conn, error) { return net.Dial("tcp", listener.Addr().String()) })
	ended := make(chan struct{})
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		<-ended
	})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					_, _ = fmt.Fprintln(conn, lines.Text())
				}
			}()
		}
	}()
	return n
}

func connect(t *testing.T, n *network.Network) net.Conn {
	conn, err := net.Dial("tcp", n.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask says what comes back within a time.
func ask(t *testing.T, conn net.Conn, within time.Duration) error {
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(within)))
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 6))
	return err
}

const (
	soon = 50 * time.Millisecond
	long = 10 * time.Second
)

func TestSwallow(t *testing.T) {
	for _, ways := range []network.Way{network.ToServer, network.ToClient, network.BothWays} {
		n := echo(t)
		before := connect(t, n)
		require.NoError(t, ask(t, before, long))
		n.Swallow(ways)
		during := connect(t, n)
		require.ErrorIs(t, ask(t, before, soon), os.ErrDeadlineExceeded)
		require.ErrorIs(t, ask(t, during, soon), os.ErrDeadlineExceeded)
		n.Swallow(0)
		require.NoError(t, ask(t, connect(t, n), long))
		require.ErrorIs(t, ask(t, before, soon), os.ErrDeadlineExceeded, "it stays lost")
		n.Cut()
		require.Error(t, ask(t, before, long))
		require.NotErrorIs(t, ask(t, before, long), os.ErrDeadlineExceeded)
	}
}

func TestHold(t *testing.T) {
	n := echo(t)
	conn := connect(t, n)
	n.Hold(true)
	require.ErrorIs(t, ask(t, conn, soon), os.ErrDeadlineExceeded)
	n.Hold(false)
	require.NoError(t, conn.SetDeadline(time.Now().Add(long)))
	_, err := conn.Read(make([]byte, 6))
	require.NoError(t, err, "it was held back, and not lost")
	n.Hold(true) // at the end of the test too
}

func TestAServerThatIsNotThere(t *testing.T) {
	n := network.Local(t, func() (net.Conn, error) { return nil, net.ErrClosed })
	conn := connect(t, n)
	require.Error(t, ask(t, conn, long))
}
