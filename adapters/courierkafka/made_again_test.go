package courierkafka_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// A topic that is deleted and made again gets the records of then on.
func TestTopicThatIsMadeAgain(t *testing.T) {
	for _, noticed := range []bool{false, true} {
		t.Run(fmt.Sprint("its absence is noticed: ", noticed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				sink := courierkafka.NewSink(k.client, message)
				require.NoError(t, sink.ApplyBatch(t.Context(), []order{{ID: "old", Topic: "orders"}, {ID: "beside", Topic: "wide"}}))
				k.deleteTopic(t, "orders")
				all := orders(3)
				if noticed {
					err := sink.Apply(t.Context(), all[0])
					requireClass(t, courier.ClassRetryable, err)
					require.ErrorContains(t, err, "create it")
				}
				k.createTopic(t, "orders")
				for tries := 0; ; tries++ {
					err := sink.ApplyBatch(t.Context(), all)
					if err == nil {
						break
					}
					require.Less(t, tries, 3)
					for _, err := range failures(t, err) {
						requireClass(t, courier.ClassNotAttempted, err)
					}
					require.ErrorContains(t, failures(t, err)[0], "deleted and made again")
					time.Sleep(time.Second)
				}
				require.Equal(t, idsOf(all), k.ids(t, "orders"))
			})
		})
	}
}

// Many calls meet a topic that was made again while rows are relayed to it and to another.
// No row is parked for that, or stored twice.
func TestTopicThatIsMadeAgainUnderARelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		var all []order
		for i := range 1000 {
			o := order{ID: fmt.Sprintf("id-%04d", i), Topic: "orders", Key: fmt.Sprint(i % 7)}
			if i%2 == 1 {
				o.Topic = "wide"
			}
			o.CreatedAt = time.Now().Add(time.Duration(i) * 20 * time.Millisecond) // is fetched from then on
			all = append(all, o)
		}
		box := newOutbox(all)
		time.AfterFunc(10*time.Second, func() {
			k.deleteTopic(t, "orders")
			k.createTopic(t, "orders")
		})
		require.Empty(t, box.relay(t, courierkafka.NewSink(k.client, box.message), courier.WithWorkers(4), courier.WithFastPolling()))
		times := make(map[string]int)
		for _, id := range append(k.ids(t, "orders"), k.ids(t, "wide")...) {
			times[id]++
			require.Equal(t, 1, times[id], id)
		}
		for i, o := range all {
			if i%2 == 1 || i > 600 {
				require.Equal(t, 1, times[o.ID], o.ID)
			}
		}
	})
}
