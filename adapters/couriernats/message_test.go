package couriernats_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

func TestNewMsgRefuses(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		id, key, value string
		payload        string
		problem        string
	}{
		"empty id":                  {id: "", problem: "empty"},
		"id with white space":       {id: "id-1 ", problem: "white space"},
		"id with a header":          {id: "id\r\nNats-Rollup: all", problem: "line break"},
		"value with a header":       {id: "id-1", key: "A", value: "b\r\nNats-Rollup: all", problem: "line break"},
		"value with LF":             {id: "id-1", key: "A", value: "b\nc", problem: "line break"},
		"empty key":                 {id: "id-1", key: "", value: "b", problem: "key"},
		"key with colon":            {id: "id-1", key: "A: b\r\nC", value: "d", problem: "key"},
		"key with space":            {id: "id-1", key: "A B", value: "c", problem: "key"},
		"key beyond ASCII":          {id: "id-1", key: "Größe", value: "1", problem: "key"},
		"other message id":          {id: "id-1", key: "Nats-Msg-Id", value: "id-2", problem: "instructions"},
		"rollup":                    {id: "id-1", key: "Nats-Rollup", value: "all", problem: "instructions"},
		"expectation in lower case": {id: "id-1", key: "nats-expected-last-sequence", value: "7", problem: "instructions"},
		"deletion of a key":         {id: "id-1", key: "kv-operation", value: "PURGE", problem: "instruction"},
		"status of the server":      {id: "id-1", key: "Status", value: "404", problem: "empty payload"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := couriernats.NewMsg("orders.placed", row.id, []byte(row.payload), map[string]string{row.key: row.value})
			require.Nil(t, m)
			require.ErrorContains(t, err, row.problem)
			require.ErrorContains(t, err, "orders.placed")
		})
	}
}

func TestNewMsgCarries(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, message)
	headers := map[string]string{"Status": "paid", "Empty": "", "Unicode": "Größe ✓", "Nats": "a value"}
	require.NoError(t, sink.Apply(t.Context(), order{
		id: "id-1", subject: "orders.placed", payload: []byte("x"), headers: headers,
	}))
	stored := b.stored(t)[0]
	for key, value := range headers {
		require.Equal(t, []string{value}, stored.Header.Values(key))
	}

	without, err := couriernats.NewMsg("orders.placed", "id-2", nil, nil, nil)
	require.NoError(t, err)
	require.Equal(t, nats.Header{jetstream.MsgIDHeader: {"orders.placed id-2"}}, without.Header)
}

// A row whose header is an attack fails for good, and by itself.
func TestHeaderInjection(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{AllowRollup: true})
	sink := couriernats.NewSink(b.js, message)
	all := orders(4)
	all[2].headers = map[string]string{"A": "b\r\nNats-Rollup: all\r\n\r\n"}
	all[3].headers = map[string]string{"Nats-Rollup": "all"}
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, 2)
	requireClass(t, courier.ClassPermanent, byIndex[2])
	requireClass(t, courier.ClassPermanent, byIndex[3])
	require.ErrorContains(t, byIndex[3], "id-00003")
	require.Equal(t, idsOf(all[:2]), b.ids(t))
}

// The message id is another one for each pair of subject and id, and the id can
// be told from it.
func TestMessageIDs(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, subject := range []string{"a", "a.b", "a.b.c", "é"} {
		for _, id := range []string{"1", "a", "b 1", "b  1", "a.b 1", ".b", "c", "42 a"} {
			m, err := couriernats.NewMsg(subject, id, nil)
			require.NoError(t, err)
			require.Equal(t, id, couriernats.RecordID(m.Header))
			made := m.Header.Get(jetstream.MsgIDHeader)
			require.NotContains(t, seen, made, "%s %s", subject, id)
			seen[made] = subject
		}
	}
	require.Equal(t, "by-hand", couriernats.RecordID(nats.Header{jetstream.MsgIDHeader: {"by-hand"}}))
	require.Empty(t, couriernats.RecordID(nil))
}

// The duplicate window is the stream's: a row that goes to two of its subjects
// arrives at both, and at each once.
func TestFanOutToTwoSubjectsOfOneStream(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	to := func(subject string) *couriernats.Sink[order] {
		return couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
			return couriernats.NewMsg(subject, o.id, o.payload)
		})
	}
	left, right, again := to("orders.left"), to("orders.right"), to("orders.right")
	fan := courier.NewFanOutApplier[order](left, right, again)
	all := orders(10)
	for range 2 {
		require.NoError(t, fan.(courier.BatchApplier[order]).ApplyBatch(t.Context(), all))
	}
	stream, err := b.js.Stream(t.Context(), "ORDERS")
	require.NoError(t, err)
	info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter("orders.*"))
	require.NoError(t, err)
	require.Equal(t, map[string]uint64{"orders.left": 10, "orders.right": 10}, info.State.Subjects)
	require.Equal(t, uint64(10), left.Duplicates())
	require.Equal(t, uint64(30), right.Duplicates()+again.Duplicates())
}
