package couriernats

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// Whatever was read before, an answer means what it says.
func TestAnswersAreReadTheSameAfterAnyOther(t *testing.T) {
	t.Parallel()
	type verdict struct {
		duplicate bool
		err       error
	}
	full := &jetstream.APIError{Code: 503, ErrorCode: 10077, Description: "maximum messages exceeded"}
	answers := map[string]verdict{
		`{"stream":"ORDERS","seq":7}`:                   {},
		`{"stream":"ORDERS","seq":12}`:                  {},
		`{"stream":"ORDERS","domain":"hub","seq":7}`:    {},
		`{"stream":"ORDERS","seq":7,"duplicate": true}`: {duplicate: true},
		`{"duplicate":true,"stream":"ORDERS","seq":7}`:  {duplicate: true},
		`{"stream":"","seq":7}`:                         {err: jetstream.ErrInvalidJSAck},
		`{"seq":7}`:                                     {err: jetstream.ErrInvalidJSAck},
		`{"stream":"ORDERS","seq":}`:                    {err: jetstream.ErrInvalidJSAck},
		`{"stream":"ORDERS","seq":7`:                    {err: jetstream.ErrInvalidJSAck},
		`7}`:                                            {err: jetstream.ErrInvalidJSAck},
		`}`:                                             {err: jetstream.ErrInvalidJSAck},
		``:                                              {err: jetstream.ErrInvalidJSAck},
		`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"ORDERS","seq":0}`: {err: full},
	}
	for first := range answers {
		for second, want := range answers {
			in := &inbox{prefix: "inbox."}
			for _, data := range []string{first, second, second} {
				number, duplicate, err := in.read(&nats.Msg{Subject: "inbox.3", Data: []byte(data)})
				require.Equal(t, 3, number)
				if data == second {
					require.Equal(t, want, verdict{duplicate, err}, "%s after %s", second, first)
				}
			}
		}
	}
}

func TestAnswerOfNobody(t *testing.T) {
	t.Parallel()
	in := &inbox{prefix: "inbox."}
	none := &nats.Msg{Subject: "inbox.3", Header: nats.Header{"Status": {"503"}}}
	_, _, err := in.read(none)
	require.ErrorIs(t, err, jetstream.ErrNoStreamResponse)

	number, _, err := in.read(&nats.Msg{Subject: "inbox.other", Data: []byte(`{"stream":"ORDERS","seq":7}`)})
	require.NoError(t, err)
	require.Negative(t, number, "it is the answer to no message")
}
