package couriernats_test

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// strangeAnswers are replies that no stream makes.
var strangeAnswers = map[string][]byte{
	"text":            []byte("+OK"),
	"nothing":         nil,
	"JSON":            []byte(`{"ok":true}`),
	"another error":   []byte(`{"error":{"code":500,"message":"no"}}`),
	"half an ack":     []byte(`{"stream":"ORDERS"}`),
	"number 0":        []byte(`{"stream":"ORDERS","seq":0}`),
	"another stream":  []byte(`{"stream":"AUDIT","seq":1}`),
	"a server's list": []byte(`{"type":"io.nats.jetstream.api.v1.stream_info_response","total":0}`),
}

// A record that the stream has acked is applied, whoever else answered before.
func TestOthersMayAnswerFirst(t *testing.T) {
	t.Parallel()
	for name, answer := range strangeAnswers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, jetstream.StreamConfig{})
			// The stream is played, because of a real one nobody knows whether its
			// answer is the second.
			var stored atomic.Int64
			_, err := b.conn.Subscribe("foreign", func(m *nats.Msg) {
				n := stored.Add(1)
				_ = m.Respond(answer)
				_ = m.Respond(fmt.Appendf(nil, `{"stream":"ORDERS","seq":%d}`, n))
			})
			require.NoError(t, err)
			require.NoError(t, b.conn.Flush())
			sink := couriernats.NewSink(b.js, message, couriernats.WithExpectStream("ORDERS"))
			all := orders(10)
			for i := range all {
				all[i].subject = "foreign"
			}
			require.NoError(t, sink.ApplyBatch(t.Context(), all))
			require.Equal(t, int64(10), stored.Load(), "each was sent once")
		})
	}
}

// One that nobody but strangers has answered is not applied, and says so.
func TestOnlyOthersAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(map[string][]string) // by subject
		var all []order
		var said []string
		for _, answer := range strangeAnswers {
			subject := "foreign." + strconv.Itoa(len(all))
			answers[subject] = []string{string(answer)}
			all = append(all, order{id: subject, subject: subject})
			said = append(said, fmt.Sprintf("%q", answer))
		}
		all = append(all, orders(1)...)
		answers[all[len(said)].subject] = []string{acked}
		p := &peer{answer: func(subject string) []string { return answers[subject] }}
		sink := couriernats.NewSink(p.connect(t), message, couriernats.WithExpectStream("ORDERS"))
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		require.Len(t, byIndex, len(said))
		for index, err := range byIndex {
			requireClass(t, courier.ClassRetryable, err)
			require.ErrorIs(t, err, jetstream.ErrAsyncPublishTimeout)
			require.ErrorContains(t, err, "no stream answered "+said[index])
		}
	})
}

// The sink tells of a stranger's answer in the error of the message that the stranger answered,
// and not in that of another one with the same place in a later part of the call.
func TestStrangeAnswersAreOfTheirMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{answer: func(subject string) []string {
			if subject == "foreign" {
				return []string{"+OK", acked}
			}
			return allBut("silence")(subject)
		}}
		sink := couriernats.NewSink(p.connect(t), message, couriernats.WithMaxPending(2))
		all := orders(4)
		all[0].subject, all[2].subject = "foreign", "silence"
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		require.Len(t, byIndex, 1)
		require.ErrorIs(t, byIndex[2], jetstream.ErrAsyncPublishTimeout)
		require.NotContains(t, byIndex[2].Error(), "no stream answered")
	})
}

// Many answers to each message do not crowd out the acks, however long the
// message function takes.
func TestManyOthersAnswer(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	const others = 6
	var answered atomic.Int64
	for range others {
		conn, err := nats.Connect(b.server.ClientURL())
		require.NoError(t, err)
		t.Cleanup(conn.Close)
		_, err = conn.Subscribe("orders.>", func(m *nats.Msg) {
			_ = m.Respond([]byte("+OK"))
			_ = conn.Flush()
			answered.Add(1)
		})
		require.NoError(t, err)
		require.NoError(t, conn.Flush())
	}
	all := orders(1000)
	sent := 0
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		if sent++; sent%100 == 0 { // all answers to the messages before are here
			require.Eventually(t, func() bool { return answered.Load() >= int64(others*(sent-1)) }, 30*time.Second, time.Millisecond)
			require.NoError(t, b.conn.Flush())
		}
		return o.msg()
	}, patient)
	require.NoError(t, sink.ApplyBatch(t.Context(), all))
	require.Equal(t, idsOf(all), b.ids(t))
	require.Zero(t, sink.Duplicates())
}
