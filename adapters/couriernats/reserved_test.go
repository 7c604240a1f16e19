package couriernats_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// A topic comes from a row, and must not give the server orders.
func TestReservedSubjectsAreRefused(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	conn, err := nats.Connect(b.server.ClientURL(), nats.CustomInboxPrefix("relay.inbox"))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	sink := couriernats.NewSink(js, message)
	require.NoError(t, sink.ApplyBatch(t.Context(), orders(3)))

	// A batch holds the others up no more than any other bad record does.
	all := orders(5)[3:]
	sent := conn.Stats().OutMsgs
	for _, subject := range []string{
		"$JS.API.STREAM.PURGE.ORDERS",
		"$JS.API.STREAM.DELETE.ORDERS",
		"$JS.API.STREAM.MSG.DELETE.ORDERS",
		"$JS.ACK.ORDERS.c.1.1.1.1.0",
		"$JS.hub.API.STREAM.DELETE.ORDERS",
		"$SYS.REQ.SERVER.PING",
		"$KV.config.key",
		"$O.bucket.C.name",
		"$SRV.PING",
		"$MQTT.msgs.a",
		"$anything",
		"$",
		"_INBOX.abc.1",
		"_INBOX",
		"_R_.abc",
		"_GR_.C.S.orders",
		"relay.inbox.abc.1",
		"relay.inbox",
	} {
		requireClass(t, courier.ClassPermanent, sink.Apply(t.Context(), order{id: "evil", subject: subject}))
		all = append(all, order{id: "evil", subject: subject}, order{id: "evil again", subject: subject})
	}
	for range 2 { // a subject that is not valid is looked at again as well
		all = append(all, order{id: "evil", subject: "orders.*"})
	}
	require.Equal(t, sent, conn.Stats().OutMsgs, "nothing was sent")
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, len(all)-2)
	require.ErrorContains(t, byIndex[2], "WithReservedSubjects")
	require.ErrorContains(t, byIndex[3], "WithReservedSubjects")
	require.Equal(t, idsOf(orders(5)), b.ids(t))
}

func TestSubjectsThatOnlyLookReserved(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	_, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ODD", Subjects: []string{"_INBOXES.>", "_app.>", "price.$"}})
	require.NoError(t, err)
	sink := couriernats.NewSink(b.js, message)
	for _, subject := range []string{"_INBOXES.a", "_app.a", "price.$", "orders.$JS.API", "orders._INBOX"} {
		require.NoError(t, sink.Apply(t.Context(), order{id: "1", subject: subject}), subject)
	}
}

// A key-value bucket is a stream whose subjects are reserved.
func TestReservedSubjectsThatAreAskedFor(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	bucket, err := b.js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "prices"})
	require.NoError(t, err)
	for _, prefix := range []string{"$KV.prices", "$KV.prices."} {
		sink := couriernats.NewSink(b.js, message, couriernats.WithReservedSubjects("$O.other", prefix))
		require.NoError(t, sink.Apply(t.Context(), order{id: prefix, subject: "$KV.prices.apple", payload: []byte(prefix)}))
		entry, err := bucket.Get(t.Context(), "apple")
		require.NoError(t, err)
		require.Equal(t, prefix, string(entry.Value()))
		for _, subject := range []string{"$KV.pricesbutnot.apple", "$KV", "$JS.API.STREAM.PURGE.ORDERS", "_INBOX.a"} {
			requireClass(t, courier.ClassPermanent, sink.Apply(t.Context(), order{id: "1", subject: subject}))
		}
	}
}
