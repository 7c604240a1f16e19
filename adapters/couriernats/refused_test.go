package couriernats_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// What no server takes is permanent, by itself, and before a byte is sent: the
// server would end the connection over some of it.
func TestWhatNoServerTakesIsNotSent(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, func(m *nats.Msg) (*nats.Msg, error) { return m, nil })
	to := func(subject string) *nats.Msg { return &nats.Msg{Subject: subject} }
	with := func(key, value string) *nats.Msg {
		return &nats.Msg{Subject: "orders.placed", Header: nats.Header{key: {value}}}
	}
	for name, row := range map[string]struct {
		message *nats.Msg
		problem string
	}{
		"no subject":           {to(""), "it is empty"},
		"subject too long":     {to("orders." + strings.Repeat("x", 1994)), "it has 2001 bytes"},
		"subject far too long": {to("orders." + strings.Repeat("x", 1<<20)), "bytes"},
		"empty token":          {to("orders..placed"), "empty"},
		"trailing dot":         {to("orders."), "empty"},
		"wildcard":             {to("orders.*"), "wildcard"},
		"tail wildcard":        {to("orders.>"), "wildcard"},
		"space":                {to("orders.a b"), "white space"},
		"no-break space":       {to("orders.a\u00a0b"), "white space"},
		"line break":           {to("orders.a\r\nPUB x 0\r\n"), "white space"},
		"control character":    {to("orders.\x00"), "control"},
		"not UTF-8":            {to("orders.\xff"), "UTF-8"},
		"value with CR LF":     {with("A", "b\r\nNats-Rollup: all"), "line break"},
		"value with LF":        {with("A", "b\nc"), "line break"},
		"id with a header":     {with(jetstream.MsgIDHeader, "1\r\nNats-Rollup: all"), "line break"},
		"key with colon":       {with("A: b\r\nC", "d"), "message could not decode headers"},
		"header too large":     {with("A", strings.Repeat("b", 1<<16)), "a stream takes 65535"},
		"payload too large":    {&nats.Msg{Subject: "orders.placed", Data: make([]byte, 1<<20+1)}, "the server takes 1048576"},
		"with its header":      {&nats.Msg{Subject: "orders.placed", Header: nats.Header{"A": {"b"}}, Data: make([]byte, 1<<20)}, "it has 1048594 bytes"},
		"reply subject":        {&nats.Msg{Subject: "orders.placed", Reply: "inbox"}, "reply"},
	} {
		sent := b.conn.Stats().OutMsgs
		err := sink.Apply(t.Context(), row.message)
		requireClass(t, courier.ClassPermanent, err)
		require.Equal(t, courier.BreakerHalfOpen, afterAProbe(t, err), "%s: nobody has answered", name)
		require.ErrorContains(t, err, row.problem, name)
		require.Less(t, len(err.Error()), 1000, "%s: an error is for a log", name)
		require.Equal(t, sent, b.conn.Stats().OutMsgs, "%s was sent", name)
	}
	require.Zero(t, b.conn.Stats().Reconnects)
	require.True(t, b.conn.IsConnected())
	require.Empty(t, b.ids(t))
}

// afterAProbe returns the state of a breaker whose probe has returned an error.
func afterAProbe(t *testing.T, err error) courier.BreakerState {
	t.Helper()
	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Nanosecond, MaxOpenFor: time.Nanosecond})
	for _, err := range []error{nats.ErrTimeout, err} {
		permit, refused := b.Acquire(t.Context())
		require.NoError(t, refused)
		_ = b.Report(t.Context(), permit, err)
	}
	return b.State()
}

// What is just within the limits arrives.
func TestWhatServersJustTake(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, func(m *nats.Msg) (*nats.Msg, error) { return m, nil })
	header := nats.Header{"A": {strings.Repeat("b", 1<<16-1-len("NATS/1.0\r\nA: \r\n\r\n"))}}
	for _, m := range []*nats.Msg{
		{Subject: "orders." + strings.Repeat("x", 1993)},
		{Subject: "orders.é.日本"},
		{Subject: "orders.a*b.>c"},
		{Subject: "orders.placed", Header: header},
		{Subject: "orders.placed", Data: make([]byte, 1<<20)},
		{Subject: "orders." + strings.Repeat("x", 1993), Header: header, Data: make([]byte, 1<<20-1<<16)},
	} {
		require.NoError(t, sink.Apply(t.Context(), m))
	}
	require.Len(t, b.stored(t), 6)
	require.Zero(t, b.conn.Stats().Reconnects)
}

// A cluster takes no message whose id it is about to store. That is held against no
// record, however long it lasts, and though others get through: the copy may be stored.
func TestTheIDIsInProcess(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	_, err := b.js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"elsewhere.>"}})
	require.NoError(t, err)
	all := orders(3)
	all[1].subject = "orders.busy"
	_, err = b.conn.Subscribe("orders.>", func(m *nats.Msg) {
		answer := `{"stream":"ORDERS","seq":7}`
		if m.Subject == all[1].subject {
			answer = `{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"},"stream":"ORDERS","seq":0}`
		}
		_ = m.Respond([]byte(answer))
	})
	require.NoError(t, err)
	require.NoError(t, b.conn.Flush())
	conn, js := b.connect(t)
	defer conn.Close()
	sink := couriernats.NewSink(js, order.msg)
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, 1)
	requireClass(t, courier.ClassNotAttempted, byIndex[1])
	require.NotZero(t, retryAt(byIndex[1]))
	requireClass(t, courier.ClassNotAttempted, sink.Apply(t.Context(), all[1]))
}
