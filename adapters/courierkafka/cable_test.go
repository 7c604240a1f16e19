package courierkafka_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// cable is a way to all brokers that can be cut. Cut, it refuses connections, or, mute,
// lets them wait.
type cable struct {
	network func(ctx context.Context, network, address string) (net.Conn, error)
	mute    bool
	slow    atomic.Int64 // nanoseconds that each answer takes longer
	deaf    atomic.Int64 // produce requests whose answers are lost, with their connections

	mu    sync.Mutex
	hold  func(node int) // is called before the answer to a produce request arrives
	cut   bool
	conns []net.Conn
	dials atomic.Int64
}

func (c *cable) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.dials.Add(1)
	c.mu.Lock()
	cut := c.cut
	c.mu.Unlock()
	if cut && c.mute {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Second): // as the client's own dialer
			return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
		}
	}
	if cut {
		// The client of KIP-848 dials again without a pause, if it was asking for offsets
		// (v1.22.3): if a refusal took no time, time in a bubble would stand still.
		time.Sleep(time.Millisecond)
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}
	conn, err := c.network(ctx, network, address)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	_, port, _ := net.SplitHostPort(address)
	number, _ := strconv.Atoi(port)
	return &hearing{Conn: conn, cable: c, node: number - 9092}, err
}

// answer sets what is called before the answer to a produce request arrives.
func (c *cable) answer(hold func(node int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = hold
}

func (c *cable) set(cut bool) {
	c.mu.Lock()
	c.cut = cut
	var conns []net.Conn
	if cut {
		conns, c.conns = c.conns, nil
	}
	c.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// hearing is a connection that may lose an answer, or hear it late.
type hearing struct {
	net.Conn
	cable   *cable
	node    int
	lose    atomic.Bool
	waiting atomic.Bool // for the answer to a produce request
}

func (h *hearing) Write(b []byte) (int, error) {
	if key := binary.BigEndian.Uint16(b[4:]); key == uint16(kmsg.Produce) {
		h.waiting.Store(true)
		if h.cable.deaf.Add(-1) >= 0 {
			h.lose.Store(true)
		}
	}
	n, err := h.Conn.Write(b)
	if errors.Is(err, io.ErrClosedPipe) { // of a network it would be this
		err = net.ErrClosed
	}
	return n, err
}

func (h *hearing) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if slow := time.Duration(h.cable.slow.Load()); slow > 0 && err == nil {
		time.Sleep(slow)
	}
	switch {
	case errors.Is(err, io.ErrClosedPipe):
		err = net.ErrClosed
	case err != nil:
	case h.lose.Load():
		_ = h.Close()
		return 0, io.EOF
	case h.waiting.Swap(false):
		h.cable.mu.Lock()
		hold := h.cable.hold
		h.cable.mu.Unlock()
		if hold != nil {
			hold(h.node)
		}
	}
	return n, err
}
