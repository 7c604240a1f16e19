// Package network is a network between a client and its server that fails in tests
// as networks do: it cuts, holds back and swallows. An adapter's tests see with it
// how long delivery takes to go on.
package network

import (
	"errors"
	"net"
	"sync"
	"testing"
)

// Way is a direction. Ways may be added.
type Way int

// The directions that bytes take.
const (
	ToServer Way = 1 << iota
	ToClient

	BothWays = ToServer | ToClient
)

// Network forwards the connections that a listener takes, until it is told to fail.
// It is safe for concurrent use.
type Network struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	wg       sync.WaitGroup

	mu    sync.Mutex
	thaw  sync.Cond
	ended bool
	held  bool
	loses Way
	conns map[net.Conn]*way
}

// way is a connection read from, in the direction that its bytes take.
type way struct {
	direction Way
	dark      bool
}

// Between starts a network in front of a server: it forwards what connects to the
// listener over connections of dial, and closes the listener and all connections at
// the end of the test. A dial that fails closes the client's connection.
func Between(tb testing.TB, listener net.Listener, dial func() (net.Conn, error)) *Network {
	tb.Helper()
	n := &Network{listener: listener, dial: dial, conns: make(map[net.Conn]*way)}
	n.thaw.L = &n.mu
	n.wg.Go(n.accept)
	tb.Cleanup(func() {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			tb.Error(err)
		}
		n.Hold(false)
		n.end()
		n.wg.Wait()
	})
	return n
}

// Local is [Between] on a free port of this machine.
func Local(tb testing.TB, dial func() (net.Conn, error)) *Network {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return Between(tb, listener, dial)
}

// Addr is the address for clients.
func (n *Network) Addr() net.Addr { return n.listener.Addr() }

// Swallow loses all that comes in these directions, of the connections that there
// are and of new ones, as a firewall does that drops packets. 0 ends it for new
// connections: those that there were stay lost, as those do that a firewall has
// forgotten, and neither side hears of the other's end before a [Network.Cut].
func (n *Network) Swallow(ways Way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loses = ways
	for _, w := range n.conns {
		w.dark = w.dark || ways&w.direction != 0
	}
}

// Hold takes nothing and forwards nothing, as a server does that is stopped, until it
// is called with false.
func (n *Network) Hold(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = on
	n.thaw.Broadcast()
}

// Cut ends all connections, on both sides.
func (n *Network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut()
}

func (n *Network) cut() {
	for c := range n.conns {
		_ = c.Close()
	}
}

// end is for good: one that is being made ends too.
func (n *Network) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	n.cut()
}

func (n *Network) accept() {
	for {
		near, err := n.listener.Accept()
		if err != nil {
			return
		}
		far, err := n.dial()
		if err != nil {
			_ = near.Close()
			continue
		}
		n.mu.Lock()
		n.conns[near] = &way{ToServer, n.loses&ToServer != 0}
		n.conns[far] = &way{ToClient, n.loses&ToClient != 0}
		if n.ended {
			n.cut()
		}
		n.mu.Unlock()
		n.wg.Go(func() { n.pump(near, far) })
		n.wg.Go(func() { n.pump(far, near) })
	}
}

func (n *Network) pump(from, to net.Conn) {
	defer func() { _ = from.Close() }()
	buffer := make([]byte, 64<<10)
	for {
		size, err := from.Read(buffer)
		dark := n.pass(from)
		if !dark && size > 0 {
			if _, err := to.Write(buffer[:size]); err != nil {
				return
			}
		}
		if err != nil {
			if !dark { // nobody hears of the end of a dark one
				_ = to.Close()
			}
			n.mu.Lock()
			delete(n.conns, from)
			n.mu.Unlock()
			return
		}
	}
}

// pass waits while answers are held back, and says whether a connection is dark.
func (n *Network) pass(c net.Conn) (dark bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.conns[c]
	for n.held {
		n.thaw.Wait()
	}
	return w.dark
}
