package crash

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// broker is a JetStream server on file storage, with a stream that takes "orders.>",
// a user for the relays and one for the test.
type broker struct {
	t           *testing.T
	server      *server.Server
	options     *server.Options
	credentials string // file that the relays read
	password    int    // of the relays' user
	js          jetstream.JetStream
	read        uint64 // messages of the stream
}

func startBroker(t *testing.T) *broker {
	b := &broker{t: t, credentials: filepath.Join(t.TempDir(), "credentials"), options: &server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
	}}
	b.options.Users = b.users(nil)
	b.handOut()
	b.start()
	b.options.Port = b.server.Addr().(*net.TCPAddr).Port
	t.Cleanup(b.stop)
	conn, err := nats.Connect(b.server.ClientURL(), nats.UserInfo("admin", "secret"), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	b.js, err = jetstream.New(conn)
	require.NoError(t, err)
	_, err = b.js.CreateStream(t.Context(), b.stream())
	require.NoError(t, err)
	return b
}

func (b *broker) start() {
	var err error
	b.server, err = server.NewServer(b.options.Clone())
	require.NoError(b.t, err)
	b.server.Start()
	require.True(b.t, b.server.ReadyForConnections(10*time.Second))
}

func (b *broker) stop() {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

func (b *broker) dial() (net.Conn, error) {
	return net.Dial("tcp", fmt.Sprint("127.0.0.1:", b.options.Port))
}

// stream is the configuration of a stream that stores a repeated message too, so that
// the test sees the repeat.
func (b *broker) stream() jetstream.StreamConfig {
	return jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Duplicates: 100 * time.Millisecond, Storage: jetstream.FileStorage}
}

func (b *broker) users(denied []string) []*server.User {
	relay := &server.User{Username: "relay", Password: fmt.Sprint("secret", b.password)}
	if denied != nil {
		relay.Permissions = &server.Permissions{Publish: &server.SubjectPermission{Deny: denied}}
	}
	return []*server.User{relay, {Username: "admin", Password: "secret"}}
}

func (b *broker) handOut() {
	next := b.credentials + ".next"
	require.NoError(b.t, os.WriteFile(next, fmt.Appendf(nil, "relay secret%d", b.password), 0o600))
	require.NoError(b.t, os.Rename(next, b.credentials))
}

func (b *broker) reload() { require.NoError(b.t, b.server.ReloadOptions(b.options.Clone())) }

// call repeats a request for which the server may be too busy, as after its start.
func (b *broker) call(call func(ctx context.Context) error) {
	var err error
	for start := time.Now(); time.Since(start) < recovery; {
		ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Second)
		err = call(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	require.NoError(b.t, err)
}

// room lets the stream take so many messages more; less than none is any number.
func (b *broker) room(n int64) {
	b.call(func(ctx context.Context) error {
		config := b.stream()
		if n >= 0 {
			stream, err := b.js.Stream(ctx, "ORDERS")
			if err != nil {
				return err
			}
			config.MaxMsgs, config.Discard = int64(stream.CachedInfo().State.Msgs)+n, jetstream.DiscardNew
		}
		_, err := b.js.UpdateStream(ctx, config)
		return err
	})
}

// stored returns how often each message of a group is stored, by the id, since the last call.
func (b *broker) stored() map[string]map[string]int {
	all := map[string]map[string]int{}
	b.call(func(ctx context.Context) error {
		stream, err := b.js.Stream(ctx, "ORDERS")
		if err != nil {
			return err
		}
		last := stream.CachedInfo().State.LastSeq
		if last == b.read {
			return nil
		}
		consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: b.read + 1})
		if err != nil {
			return err
		}
		messages, err := consumer.Messages()
		if err != nil {
			return err
		}
		defer messages.Stop()
		for b.read < last {
			m, err := messages.Next(jetstream.NextMaxWait(recovery))
			if err != nil {
				return err
			}
			about, err := m.Metadata()
			if err != nil {
				return err
			}
			b.read = about.Sequence.Stream
			_, group, _ := strings.Cut(m.Subject(), ".")
			group, _, _ = strings.Cut(group, ".")
			if all[group] == nil {
				all[group] = map[string]int{}
			}
			all[group][couriernats.RecordID(m.Headers())]++
		}
		if err := stream.Purge(ctx, jetstream.WithPurgeSequence(last+1)); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return nil
	})
	return all
}
