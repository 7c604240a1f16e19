package couriernats

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A subject that passes is one that the server takes literally, and nothing in it
// can end the line of protocol that it is part of.
func FuzzSubject(f *testing.F) {
	for _, subject := range []string{"orders.placed", "orders.é", "a*b.>c", "orders..a", "orders.*", "$JS.API", "_INBOX.a", "a b", "a\r\nPUB b 0\r\n", "\xff", "a.\x85"} {
		f.Add(subject)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		if validSubject(subject) != nil {
			return
		}
		if !server.IsValidLiteralSubject(subject) || strings.ContainsAny(subject, " \t\r\n\x00") || len(subject) > maxSubject {
			t.Fatalf("%q passes", subject)
		}
		c := config{}
		if first := subject[0]; first == '$' && !c.reserved(subject) {
			t.Fatalf("%q is not reserved", subject)
		}
		encoded, err := json.Marshal(subject)
		var decoded string
		if err != nil || json.Unmarshal(encoded, &decoded) != nil || decoded != subject {
			t.Fatalf("%q cannot be named in a request to the server", subject)
		}
	})
}

// An answer means the same after any other, and an ack names a stream and a number.
func FuzzAnswer(f *testing.F) {
	ack := []byte(`{"stream":"ORDERS","seq":7}`)
	for _, data := range []string{`{"stream":"ORDERS","seq":12}`, `{"stream":"ORDERS","seq":0}`, `{"error":{"code":503,"err_code":10077}}`, `+OK`, ``, `{"stream":"ORDERS","seq":7,"duplicate":true}`, `{"stream":"ORDERS","seq":18446744073709551616}`, `{"seq":7}`, `{"stream":"A","seq":1}`} {
		f.Add(ack, []byte(data))
	}
	f.Fuzz(func(t *testing.T, before, data []byte) {
		read := func(in *inbox, data []byte) (answer, bool) {
			return in.read(&nats.Msg{Subject: "inbox.3", Data: data})
		}
		used := &inbox{prefix: "inbox."}
		_, _ = read(used, ack)
		_, _ = read(used, before)
		got, ok := read(used, data)
		want, wantOK := read(&inbox{prefix: "inbox."}, data)
		if ok != wantOK || got.duplicate != want.duplicate || (got.err == nil) != (want.err == nil) {
			t.Fatalf("%q after %q: %v, %v; alone: %v, %v", data, before, got, ok, want, wantOK)
		}
		var said jetstream.PubAck
		if ok && got.err == nil && (json.Unmarshal(data, &said) != nil || said.Stream == "" || said.Sequence == 0) {
			t.Fatalf("%q is taken for an ack", data)
		}
	})
}
