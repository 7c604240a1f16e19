package courierkafka_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestConformance_Sink(t *testing.T) {
	all := orders(1234)
	courierttest.TestBatchApplier(t, func(t *testing.T) courierttest.ApplierFixture[order] {
		k := startKafka(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "500000"}))
		return courierttest.ApplierFixture[order]{
			Applier: courierkafka.NewSink(k.client, message),
			Record:  func(n int) order { return all[n] },
			Name:    func(o order) string { return o.ID },
			Applied: func() []string { return k.ids(t, "orders") },
			Poison: func(n int) order {
				o := all[n]
				o.Payload = random(600_000) // more than the topic takes
				switch n % 3 {
				case 1:
					o.Payload = make([]byte, 2<<20) // more than the client takes
				case 2:
					o.Topic = "no such/name"
				}
				return o
			},
			Down: func() func() {
				var up atomic.Bool
				k.onProduce(func(*kmsg.ProduceRequest) (kmsg.Response, error, bool) {
					return nil, nil, !up.Load()
				})
				return func() { up.Store(true) }
			},
		}
	}, courierttest.ApplierFeatures{Bubble: true, Ordered: true, Concurrent: true, Permanent: true, OrderedBatches: true,
		Recovers: 3 * time.Second}) // the client asks again at its own pace, and no call waits for that
}
