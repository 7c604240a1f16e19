package couriernats

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// Whatever was read before, an answer means what it says, and what is not
// JetStream's is none.
func TestAnswersAreReadTheSameAfterAnyOther(t *testing.T) {
	t.Parallel()
	type verdict struct {
		duplicate bool
		err       error
		foreign   bool
	}
	full := &jetstream.APIError{Code: 503, ErrorCode: 10077, Description: "maximum messages exceeded"}
	answers := map[string]verdict{
		`{"stream":"ORDERS","seq":7}`:                   {},
		`{"stream":"ORDERS","seq":12}`:                  {},
		`{"stream":"ORDERS","domain":"hub","seq":7}`:    {},
		`{"stream":"ORDERS","seq":7,"duplicate": true}`: {duplicate: true},
		`{"duplicate":true,"stream":"ORDERS","seq":7}`:  {duplicate: true},
		`{"stream":"","seq":7}`:                         {foreign: true},
		`{"seq":7}`:                                     {foreign: true},
		`{"stream":"ORDERS","seq":}`:                    {foreign: true},
		`{"stream":"ORDERS","seq":7`:                    {foreign: true},
		`{"stream":"ORDERS","seq":0}`:                   {foreign: true},
		`{"stream":"ORDERS","seq":07}`:                  {foreign: true},
		`{"stream":"INVOICES","seq":7}`:                 {foreign: true},
		`{"ok":true}`:                                   {foreign: true},
		`{"error":{"code":500,"message":"no"}}`:         {foreign: true},
		`{"error":"no"}`:                                {foreign: true},
		`+OK`:                                           {foreign: true},
		`"ORDERS"`:                                      {foreign: true},
		`null`:                                          {foreign: true},
		`7}`:                                            {foreign: true},
		`}`:                                             {foreign: true},
		``:                                              {foreign: true},
		`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"ORDERS","seq":0}`: {err: full},
	}
	for first := range answers {
		for second, want := range answers {
			in := &inbox{prefix: "inbox.", stream: "ORDERS"}
			for _, data := range []string{first, second, second} {
				a, ok := in.read(&nats.Msg{Subject: "inbox.3", Data: []byte(data)})
				require.Equal(t, 3, a.number)
				if data == second && !want.foreign {
					require.Equal(t, want, verdict{duplicate: a.duplicate, err: a.err}, "%s after %s", second, first)
				}
				if data == second {
					require.Equal(t, want.foreign, !ok, "%s after %s", second, first)
				}
			}
		}
	}
}

func TestAnswerOfNobody(t *testing.T) {
	t.Parallel()
	in := &inbox{prefix: "inbox."}
	none := &nats.Msg{Subject: "inbox.3", Header: nats.Header{"Status": {"503"}}}
	a, ok := in.read(none)
	require.True(t, ok)
	require.ErrorIs(t, a.err, jetstream.ErrNoStreamResponse)

	_, ok = in.read(&nats.Msg{Subject: "inbox.other", Data: []byte(`{"stream":"ORDERS","seq":7}`)})
	require.False(t, ok, "it is the answer to no message")

	a, ok = (&inbox{prefix: "inbox."}).read(&nats.Msg{Subject: "inbox.3", Data: []byte(`{"stream":"ANY","seq":7}`)})
	require.True(t, ok && a.err == nil, "no stream is named")
}
