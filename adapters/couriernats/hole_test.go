package couriernats_test

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func (b *broker) address() string { return strings.TrimPrefix(b.server.ClientURL(), "nats://") }

// hole forwards TCP connections to a server until it is told to fail in one of the
// ways of a network.
type hole struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	thaw     sync.Cond
	frozen   bool
	dark     bool
	conns    map[net.Conn]bool // true is a dark one
	wg       sync.WaitGroup
}

func startHole(tb testing.TB, target string) *hole {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	h := &hole{listener: l, target: target, conns: make(map[net.Conn]bool)}
	h.thaw.L = &h.mu
	h.wg.Go(h.accept)
	tb.Cleanup(func() {
		_ = l.Close()
		h.freeze(false)
		h.cut()
		h.wg.Wait()
	})
	return h
}

func (h *hole) url() string { return "nats://" + h.listener.Addr().String() }

// swallow loses all that comes, as a firewall does that has forgotten its
// connections. Those that there are then stay lost.
func (h *hole) swallow(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dark = on
	for c := range h.conns {
		h.conns[c] = h.conns[c] || on
	}
}

// freeze holds all that comes back, as a server does that is stopped.
func (h *hole) freeze(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frozen = on
	h.thaw.Broadcast()
}

// cut ends all connections.
func (h *hole) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		_ = c.Close()
	}
}

func (h *hole) accept() {
	for {
		near, err := h.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", h.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		h.mu.Lock()
		h.conns[near], h.conns[far] = h.dark, h.dark
		h.mu.Unlock()
		h.wg.Go(func() { h.pump(near, far) })
		h.wg.Go(func() { h.pump(far, near) })
	}
}

func (h *hole) pump(from, to net.Conn) {
	defer func() { _ = from.Close() }()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		dark := h.pass(from)
		if !dark && n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !dark { // nobody hears of the end of a dark one
				_ = to.Close()
			}
			h.mu.Lock()
			delete(h.conns, from)
			h.mu.Unlock()
			return
		}
	}
}

// pass waits while all is frozen, and says whether a connection is dark.
func (h *hole) pass(c net.Conn) (dark bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.frozen {
		h.thaw.Wait()
	}
	return h.conns[c]
}
