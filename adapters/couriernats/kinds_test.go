package couriernats

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// Every answer that there is no room says nothing of the record, alone in its call and
// beside others. Any other answer is held against it.
func TestEveryAnswerWithoutRoomIsBlameless(t *testing.T) {
	for code, want := range map[jetstream.ErrorCode]bool{
		10002: true, 10008: true, 10023: true, 10028: true, 10039: true, 10047: true, 10076: true,
		10077: true, 10109: true, 10118: true, 10158: true, 10167: true, 10194: true,
		10003: false, 10054: false, 10060: false, 10097: false,
	} {
		f := courier.BatchFailure{Err: publishFailure(nats.NewMsg("a"), &jetstream.APIError{ErrorCode: code})}
		require.Equal(t, want, blameless(f, false, got{last: -1}), code)
		require.Equal(t, want, blameless(f, true, got{last: 1}), code)
	}
}

// A connection whose last error is one that closes nothing was closed by the program.
func TestClosedByClient(t *testing.T) {
	for _, harmless := range []error{nil, nats.ErrPermissionViolation, nats.ErrMaxSubscriptionsExceeded, nats.ErrSlowConsumer, nats.ErrBadHeaderMsg, nats.ErrDrainTimeout} {
		require.False(t, closedByClient(harmless), harmless)
		if harmless != nil {
			require.False(t, closedByClient(fmt.Errorf("more: %w", harmless)), harmless)
		}
	}
	for _, last := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrNoServers, nats.ErrMaxConnectionsExceeded, nats.ErrStaleConnection, errors.New("nats: maximum control line exceeded")} {
		require.True(t, closedByClient(last), last)
	}
}

type noNetwork struct{}

func (noNetwork) Dial(string, string) (net.Conn, error) { return nil, errors.New("no network") }

// The connection that a sink makes itself never gives up, whatever the first one did.
func TestTheSinksOwnConnectionNeverGivesUp(t *testing.T) {
	options := nats.GetDefaultOptions()
	options.Url = "nats://127.0.0.1:4222"
	options.CustomDialer = noNetwork{}
	options.AllowReconnect = false
	options.MaxReconnect = 7
	options.Name = "relay"
	given := &nats.Conn{Opts: options}
	own, err := newLink(given, newConfig(nil)).again(t.Context())
	require.NoError(t, err, "without a server")
	defer own.Close()
	require.True(t, own.Opts.AllowReconnect)
	require.True(t, own.Opts.RetryOnFailedConnect)
	require.True(t, own.Opts.IgnoreAuthErrorAbort)
	require.Equal(t, -1, own.Opts.MaxReconnect)
	require.Equal(t, "relay", own.Opts.Name)
}

func TestEveryReservedPrefixIsAllowed(t *testing.T) {
	c := newConfig([]Option{WithReservedSubjects("$KV.prices.", "$KV.rates"), WithReservedSubjects("$O.pictures")})
	require.NoError(t, c.fault)
	for _, subject := range []string{"$KV.prices.a", "$KV.rates.a", "$O.pictures.a"} {
		require.False(t, c.reserved(subject), subject)
	}
	require.True(t, c.reserved("$KV.others.a"))
}

// The note of the subjects that a call got through stays small, also for a million of them.
func TestGotIsBounded(t *testing.T) {
	g := got{last: -1}
	for i := range 1000 {
		g.add(i, strconv.Itoa(i))
	}
	require.Len(t, g.subjects, 64)
	require.Equal(t, 999, g.last)
}
