// Package router measures what a message costs on its way to a handler that
// takes no time: in watermill's router over its gochannel, with and without its
// middlewares for retries, a breaker and poison messages, and in Courier with
// all three.
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
	"github.com/erfanmomeniii/courier/bench/internal/byhand"
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

// What is left when all but the channel, the retries and the breaker is gone.
func BenchmarkRouter_HandWritten(b *testing.B) {
	handler := byhand.RetryBreaker{Process: func(context.Context, int) error { return nil }, Sleep: time.Sleep}
	meter.Records(b, 1, func(messages int) {
		ch := make(chan int, buffer)
		var producer sync.WaitGroup
		producer.Go(func() { send(ch, messages) })
		for message := range ch {
			if err := handler.Apply(b.Context(), message); err != nil {
				b.Error(err)
			}
		}
		producer.Wait()
	})
}

func send(ch chan<- int, messages int) {
	for i := range messages {
		ch <- i
	}
	close(ch)
}

func resilient() courier.Applier[int] {
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return nil }), nil)
	return applier
}

var options = []courier.Option{courier.WithBatchSize(buffer), courier.WithLogger(slog.New(slog.DiscardHandler))}

func BenchmarkRouter_CourierChannel(b *testing.B) {
	applier := resilient()
	meter.Records(b, 1, func(messages int) {
		ch := make(chan int, buffer)
		source := courier.NewChannelSource(ch, func(context.Context, []int) error { return nil })
		var producer sync.WaitGroup
		producer.Go(func() { send(ch, messages) })
		if err := courier.NewStreamingCoordinator(source, applier, options...).Start(b.Context()); err != nil {
			b.Error(err)
		}
		producer.Wait()
	})
}

// Where the messages are read from a queue in batches, as an outbox is, no
// channel is needed.
func BenchmarkRouter_CourierPolling(b *testing.B) {
	applier := resilient()
	messages := make([]int, buffer)
	meter.Records(b, buffer, func(batches int) {
		ctx, stop := context.WithCancel(b.Context())
		fetch := func(context.Context) ([]int, error) { return messages, nil }
		mark := func(context.Context, []int) error {
			if batches--; batches == 0 {
				stop()
			}
			return nil
		}
		source := courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}
		if err := courier.NewPollingCoordinator(source, applier, options...).Start(ctx); err != nil {
			b.Error(err)
		}
	})
}
