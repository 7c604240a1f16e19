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
	require.Equal(t, nats.Header{jetstream.MsgIDHeader: {"id-2"}}, without.Header)
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
	requireClass(t, courier.PermanentClass, byIndex[2])
	requireClass(t, courier.PermanentClass, byIndex[3])
	require.ErrorContains(t, byIndex[3], "id-00003")
	require.Equal(t, idsOf(all[:2]), b.ids(t))
}
