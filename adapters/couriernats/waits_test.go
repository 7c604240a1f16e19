package couriernats_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// peer is a server in a bubble, so far as a sink needs one. It answers a ping, and a
// message as answer says. It takes one connection: with another, the client would use a
// timer that it shares with the tests outside.
//
// It reads on while its answers wait to be read, as a server does: the client may hold a
// lock while it writes, which its reader waits for, and a pipe keeps nothing.
type peer struct {
	answer func(subject string) []string // in their order
	out    chan string                   // on their way to the client
	gone   chan struct{}                 // closed with the connection

	mu    sync.Mutex
	dials int
	pings []time.Time // without the ping that the client sends when it connects
	sub   string      // the client's name of the subscription that it made last
	reply string      // where the answer belongs to the message that came last
	mute  bool        // answers nothing any more
}

// Dial connects a client to the fake server.
func (p *peer) Dial(string, string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dials++; p.dials > 1 {
		return nil, errors.New("no other connection")
	}
	client, own := net.Pipe()
	p.out, p.gone = make(chan string, 1000), make(chan struct{})
	go p.write(own)
	go p.serve(own)
	return client, nil
}

func (p *peer) write(conn net.Conn) {
	for {
		select {
		case text := <-p.out:
			_, _ = io.WriteString(conn, text)
		case <-p.gone:
			return
		}
	}
}

func (p *peer) dialled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dials
}

func (p *peer) becomeMute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = true
}

func (p *peer) send(format string, args ...any) {
	p.mu.Lock()
	mute := p.mute
	p.mu.Unlock()
	if mute {
		return
	}
	select {
	case p.out <- fmt.Sprintf(format, args...):
	case <-p.gone:
	}
}

func (p *peer) serve(conn net.Conn) {
	defer func() {
		_ = conn.Close()
		close(p.gone)
	}()
	p.send("INFO {\"server_id\":\"peer\",\"version\":\"2.12.0\",\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n")
	in, connecting := bufio.NewReader(conn), true
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch word := strings.Fields(line); strings.ToUpper(word[0]) {
		case "PING":
			if !connecting {
				p.mu.Lock()
				p.pings = append(p.pings, time.Now())
				p.mu.Unlock()
			}
			connecting = false
			p.send("PONG\r\n")
		case "SUB":
			p.mu.Lock()
			p.sub = word[len(word)-1]
			p.mu.Unlock()
		case "HPUB", "PUB":
			size, _ := strconv.Atoi(word[len(word)-1])
			if _, err := io.CopyN(io.Discard, in, int64(size)+2); err != nil {
				return
			}
			p.mu.Lock()
			p.reply = word[2]
			p.mu.Unlock()
			for _, text := range p.answer(word[1]) {
				p.respond(word[2], text)
			}
		}
	}
}

// respond sends an answer to a message.
func (p *peer) respond(reply, text string) {
	p.mu.Lock()
	sub := p.sub
	p.mu.Unlock()
	p.send("MSG %s %s %d\r\n%s\r\n", reply, sub, len(text), text)
}

// lastReply returns where the answer belongs to the message that came last.
func (p *peer) lastReply() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reply
}

// connect connects with the options that a sink's connection should have.
func (p *peer) connect(t *testing.T) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect("nats://127.0.0.1:4222", append(couriernats.ConnOptions(), nats.SetCustomDialer(p),
		nats.ReconnectWait(time.Millisecond), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	return js
}

func nothing(string) []string { return nil }

const acked = `{"stream":"ORDERS","seq":7}`

// allBut acks what has another subject than one.
func allBut(silent string) func(subject string) []string {
	return func(subject string) []string {
		if subject == silent {
			return nil
		}
		return []string{acked}
	}
}

// A message without an ack fails after the ack timeout, and no sooner; the server is
// asked for a sign of life after a fifth of it, or a second.
func TestWaits_ForAnAck(t *testing.T) {
	for timeout, ping := range map[time.Duration]time.Duration{
		0:                      time.Second, // the default of 5 s
		500 * time.Millisecond: 100 * time.Millisecond,
		2 * time.Second:        400 * time.Millisecond,
		20 * time.Second:       time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			p := &peer{answer: nothing}
			opts := []couriernats.Option{couriernats.WithAckTimeout(timeout)}
			if timeout == 0 {
				opts, timeout = nil, 5*time.Second
			}
			sink := couriernats.NewSink(p.connect(t), message, opts...)
			for _, n := range []int{1, 3} {
				p.pings = nil
				began := time.Now()
				err := sink.ApplyBatch(t.Context(), orders(n))
				require.ErrorIs(t, failures(t, err)[0], jetstream.ErrAsyncPublishTimeout)
				require.Equal(t, timeout, time.Since(began))
				synctest.Wait()
				require.Equal(t, began.Add(ping), p.pings[0])
			}
			require.Equal(t, 1, p.dialled())
		})
	}
}

// A connection on which nothing comes is given up with the call, once its silence has
// lasted for 4 s, and no sooner.
func TestWaits_ForAMuteConnection(t *testing.T) {
	for timeout, calls := range map[time.Duration]int{500 * time.Millisecond: 8, 3 * time.Second: 2, 4 * time.Second: 1, 10 * time.Second: 1} {
		synctest.Test(t, func(t *testing.T) {
			p := &peer{answer: nothing}
			sink := couriernats.NewSink(p.connect(t), message, couriernats.WithAckTimeout(timeout))
			p.becomeMute()
			for i := range calls {
				synctest.Wait()
				require.Equal(t, 1, p.dialled(), "call %d", i)
				began := time.Now()
				require.Error(t, sink.Apply(t.Context(), orders(1)[0]))
				require.Equal(t, timeout, time.Since(began))
			}
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			require.Greater(t, p.dialled(), 1)
		})
	}
}

// After an answer that there is no room, the sink asks not to be called for a second.
func TestWaits_WithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{answer: func(string) []string {
			return []string{`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"ORDERS","seq":0}`}
		}}
		sink := couriernats.NewSink(p.connect(t), message)
		began := time.Now()
		err := sink.Apply(t.Context(), orders(1)[0])
		var later interface{ RetryAt() time.Time }
		require.ErrorAs(t, err, &later)
		require.Equal(t, began.Add(time.Second), later.RetryAt())
		require.Equal(t, began, time.Now(), "an answer is waited for no longer than it takes")
	})
}

// Another connection may take as long as an ack.
func TestWaits_ForAnotherConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{answer: nothing}
		js := p.connect(t)
		sink := couriernats.NewSink(js, message, couriernats.WithAckTimeout(3*time.Second), couriernats.WithConnect(func(ctx context.Context) (*nats.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		p.send("-ERR 'Maximum Control Line Exceeded'\r\n")
		synctest.Wait()
		require.True(t, js.Conn().IsClosed())
		began := time.Now()
		require.ErrorIs(t, sink.Apply(t.Context(), orders(1)[0]), context.DeadlineExceeded)
		require.Equal(t, 3*time.Second, time.Since(began))
	})
}

// By ConnOptions a dead connection on which nothing is sent is given up after a minute.
func TestWaits_ForAnIdleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{answer: nothing}
		p.connect(t)
		p.becomeMute()
		time.Sleep(59 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, p.dialled())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Greater(t, p.dialled(), 1)
	})
}

// A context that ends tells nothing of the connection, however long it lasted.
func TestWaits_ForAContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{answer: nothing}
		sink := couriernats.NewSink(p.connect(t), message, couriernats.WithAckTimeout(15*time.Second))
		p.becomeMute()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		require.ErrorIs(t, sink.Apply(ctx, orders(1)[0]), context.DeadlineExceeded)
		require.Equal(t, 10*time.Second, time.Since(began))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, 1, p.dialled())
	})
}
