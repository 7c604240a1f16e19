// Package router measures what a message costs on its way through a channel to
// a handler that takes no time: in watermill's router over its gochannel, with
// and without its middlewares for retries, a breaker and poison messages, and
// in Courier with all three.
package router

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/sony/gobreaker"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is how many messages a channel holds, and how many are published
// before their end is waited for: watermill's router handles every message on a
// goroutine of its own and bounds them in no way.
const buffer = 1000

func BenchmarkRouter_Watermill(b *testing.B) {
	watermillRouter(b, func(*gochannel.GoChannel) []message.HandlerMiddleware { return nil })
}

func BenchmarkRouter_WatermillResilient(b *testing.B) {
	watermillRouter(b, func(pubSub *gochannel.GoChannel) []message.HandlerMiddleware {
		poison, err := middleware.PoisonQueue(pubSub, "poison")
		if err != nil {
			b.Fatal(err)
		}
		retry := middleware.Retry{MaxRetries: 4, InitialInterval: 100 * time.Millisecond, MaxInterval: 30 * time.Second, Multiplier: 2}
		breaker := middleware.NewCircuitBreaker(gobreaker.Settings{Timeout: time.Second})
		return []message.HandlerMiddleware{poison, retry.Middleware, breaker.Middleware} // outermost first
	})
}

func watermillRouter(b *testing.B, middlewares func(*gochannel.GoChannel) []message.HandlerMiddleware) {
	b.Helper()
	pubSub := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: buffer}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		b.Fatal(err)
	}
	router.AddMiddleware(middlewares(pubSub)...)
	var handled sync.WaitGroup
	router.AddConsumerHandler("orders", "orders", pubSub, func(*message.Message) error {
		handled.Done()
		return nil
	})
	var running sync.WaitGroup
	running.Go(func() {
		if err := router.Run(b.Context()); err != nil {
			b.Error(err)
		}
	})
	<-router.Running()

	meter.Records(b, 1, func(messages int) {
		for i := 0; i < messages; i += buffer {
			n := min(buffer, messages-i)
			handled.Add(n)
			for range n {
				if err := pubSub.Publish("orders", message.NewMessage("", nil)); err != nil {
					b.Fatal(err)
				}
			}
			handled.Wait()
		}
	})

	if err := router.Close(); err != nil { // its subscriber, too
		b.Error(err)
	}
	running.Wait()
}

func BenchmarkRouter_CourierResilient(b *testing.B) {
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, []byte) error { return nil }), nil)
	meter.Records(b, 1, func(messages int) {
		ch := make(chan []byte, buffer)
		source := courier.NewChannelSource(ch, func(context.Context, [][]byte) error { return nil })
		var producer sync.WaitGroup
		producer.Go(func() {
			for range messages {
				ch <- nil
			}
			close(ch)
		})
		err := courier.NewStreamingCoordinator(source, applier, courier.WithBatchSize(buffer),
			courier.WithLogger(slog.New(slog.DiscardHandler))).Start(b.Context())
		if err != nil {
			b.Error(err)
		}
		producer.Wait()
	})
}
