package couriernats_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestConformance_Sink(t *testing.T) {
	all := orders(1234)
	courierttest.TestBatchApplier(t, func(t *testing.T) courierttest.ApplierFixture[order] {
		b := startBroker(t, jetstream.StreamConfig{MaxMsgSize: 4096})
		return courierttest.ApplierFixture[order]{
			Applier: couriernats.NewSink(b.js, message, patient),
			Record:  func(n int) order { return all[n] },
			Name:    func(o order) string { return o.id },
			Applied: func() []string { return b.ids(t) },
			Poison: func(n int) order {
				o := all[n]
				o.payload = make([]byte, 8192) // more than the stream takes
				if n%2 == 1 {
					o.payload = make([]byte, 2<<20) // more than the server takes
				}
				return o
			},
			Down: func() func() {
				b.shutdown()
				b.await(t, false)
				return func() {
					b.start(t)
					b.await(t, true)
				}
			},
		}
	}, courierttest.ApplierFeatures{Idempotent: true, Ordered: true, Concurrent: true, Permanent: true, Isolated: true})
}
