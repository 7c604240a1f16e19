//go:build synctests

package courierkafka_test

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// standing runs a coordinator of a client and notes the errors of its fetches.
func (k *kafka) standing(t *testing.T, client *kgo.Client) (c *courier.StreamingCoordinator[*kgo.Record], told func() string) {
	t.Helper()
	errs := make(chan error, 1000)
	source := courierkafka.NewSource(client)
	c = courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(context.Context, *kgo.Record) error { return nil }), quiet,
		courier.WithObserver(courier.Observer{Fetched: func(_ context.Context, e courier.FetchEvent) {
			if e.Err != nil {
				errs <- e.Err
			}
		}}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return c, func() string {
		var all []string
		for len(errs) > 0 {
			all = append(all, (<-errs).Error())
		}
		return strings.Join(all, "\n")
	}
}

// A member that does not come into its group says why, and is well when it is in.
func TestSource_AMemberThatDoesNotGetIntoItsGroupSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		topic string
		begin func(*testing.T, *kafka, *cable) (end func())
		why   string
	}{
		"no broker listens": {"orders", func(_ *testing.T, _ *kafka, wire *cable) func() {
			wire.set(true)
			return func() { wire.set(false) }
		}, "no broker answers: unable to dial: dial: connection refused"},
		"the brokers are silent": {"orders", func(_ *testing.T, _ *kafka, wire *cable) func() {
			wire.mute = true
			wire.set(true)
			return func() { wire.set(false) }
		}, "no broker answers: "},
		"the topic does not exist": {"missing", func(t *testing.T, k *kafka, _ *cable) func() {
			return func() { k.createTopic(t, "missing") }
		}, `topic "missing": UNKNOWN_TOPIC_OR_PARTITION: This server does not host this topic-partition.: the topic does not exist; create it`},
		"the coordinator is silent": {"orders", func(_ *testing.T, k *kafka, _ *cable) func() {
			until := make(chan struct{})
			k.ControlKey(int16(kmsg.JoinGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
				k.KeepControl()
				k.SleepControl(func() { <-until })
				return nil, nil, false
			})
			return func() { close(until) }
		}, "the group is rebalancing, or its coordinator is silent"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, wire := startKafka(t), new(cable)
				end := sync.OnceFunc(test.begin(t, k, wire))
				defer end()
				c, told := k.standing(t, k.join(t, wire, test.topic))
				for range 3 {
					time.Sleep(2 * time.Minute)
					require.Contains(t, told(), test.why)
					require.ErrorContains(t, c.Ready(), "its consumer group")
					lag, err := c.Lag(t.Context())
					require.NoError(t, err)
					require.Equal(t, -1, lag.Pending, "nobody knows")
				}
				end()
				time.Sleep(20 * time.Second)
				require.NoError(t, c.Ready())
				lag, err := c.Lag(t.Context())
				require.NoError(t, err)
				require.Zero(t, lag.Pending)
				told()
				time.Sleep(10 * time.Minute)
				require.Empty(t, told())
			})
		})
	}
}

// A consumer with nothing to do is ready again soon after an error, with no record to tell by.
func TestSource_AnIdleMemberIsWellAgainAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, wire := startKafka(t), new(cable)
		k.write(t, "orders", 0, 5, strconv.Itoa)
		c, told := k.standing(t, k.join(t, wire, "orders"))
		time.Sleep(20 * time.Second)
		wire.set(true)
		time.Sleep(3 * time.Second)
		wire.set(false)
		time.Sleep(20 * time.Second)
		require.NoError(t, c.Ready())

		require.Contains(t, told(), "not in its consumer group")
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID})
		time.Sleep(20 * time.Second)
		require.NoError(t, c.Ready())
		require.Equal(t, 1, strings.Count(told(), "not in its consumer group"), "it is told once")
	})
}

// A member that dies and is restarted under its instance ID takes its place again at once, and
// the group does not wait for the session timeout of the dead one.
func TestSource_AMemberThatIsRestartedUnderItsInstanceID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, wire := startKafka(t), new(cable)
		k.write(t, "wide", 0, 40, strconv.Itoa)
		k.standing(t, k.join(t, new(cable), "wide", kgo.InstanceID("one")))
		k.standing(t, k.join(t, wire, "wide", kgo.InstanceID("two")))
		time.Sleep(20 * time.Second)
		require.True(t, k.settled(t, "wide"))

		wire.set(true)
		k.standing(t, k.join(t, new(cable), "wide", kgo.InstanceID("two")))
		k.write(t, "wide", 40, 80, strconv.Itoa)
		time.Sleep(5 * time.Second)
		require.True(t, k.settled(t, "wide"))
	})
}
