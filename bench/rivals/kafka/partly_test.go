package kafka

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// table is rows that wait, in order.
type table struct {
	waiting []courierkafka.Message
}

func (s *table) fetch(context.Context) ([]courierkafka.Message, error) {
	return append([]courierkafka.Message(nil), s.waiting[:min(batchSize, len(s.waiting))]...), nil
}

func (s *table) mark(_ context.Context, done []courierkafka.Message) error {
	marked := make(map[string]bool)
	for _, m := range done {
		marked[m.ID] = true
	}
	kept := s.waiting[:0:0]
	for _, m := range s.waiting {
		if !marked[m.ID] {
			kept = append(kept, m)
		}
	}
	s.waiting = kept
	return nil
}

// TestPartlyFailedBatch relays rows of which one is larger than the topic takes, in three
// passes, with the ways in which programs map the client's answers to rows. It counts the
// rows that are marked and not stored (lost), stored more than once (doubled), and not
// marked after three passes (stuck). Courier parks the one and has none of these.
func TestPartlyFailedBatch(t *testing.T) {
	type style struct {
		name string
		pass func(context.Context, *kgo.Client, *table) error
	}
	byHand := func(send func(context.Context, *kgo.Client, []courierkafka.Message) (done []courierkafka.Message)) func(context.Context, *kgo.Client, *table) error {
		return func(ctx context.Context, client *kgo.Client, s *table) error {
			rows, _ := s.fetch(ctx)
			return s.mark(ctx, send(ctx, client, rows))
		}
	}
	for _, style := range []style{
		{"a batch fails with its first error (connectors)", byHand(wholeBatch)},
		{"results of ProduceSync by position", byHand(byPosition)},
		{"one by one, until the first error (publishers)", byHand(oneByOne)},
		{"a promise for each row, by hand", byHand(byPromise)},
		{"Courier", byCourier},
	} {
		t.Run(style.name, func(t *testing.T) {
			address := startBroker(t)
			client := newClient(t, address, append(courierkafka.ClientOptions(), kgo.ProducerBatchMaxBytes(4<<20))...)
			defer client.Close()
			const all, poison = 3000, 1500
			s := new(table)
			for n := range all {
				m := courierkafka.Message{ID: strconv.Itoa(n), Topic: "orders", Key: fmt.Sprint("customer-", n%100), Payload: []byte("an order")}
				if n == poison {
					m.Payload = make([]byte, 2<<20)
					_, _ = rand.Read(m.Payload)
				}
				s.waiting = append(s.waiting, m)
			}
			for range 3 {
				require.NoError(t, style.pass(t.Context(), client, s))
			}
			stored := make(map[string]int)
			for _, r := range read(t, address, "orders") {
				stored[courierkafka.RecordID(r)]++
			}
			waiting := make(map[string]bool)
			for _, m := range s.waiting {
				waiting[m.ID] = true
			}
			lost, doubled, stuck := 0, 0, 0
			for n := range all {
				id := strconv.Itoa(n)
				switch {
				case n == poison:
				case waiting[id]:
					stuck++
				case stored[id] == 0:
					lost++
				}
				if stored[id] > 1 {
					doubled++
				}
			}
			t.Logf("%-50s lost %5d  doubled %5d  stuck %5d", style.name, lost, doubled, stuck)
			if style.name == "Courier" {
				require.Zero(t, lost+doubled+stuck)
				require.Equal(t, 1, count(t, address, "orders.dead"))
			}
		})
	}
}

func records(rows []courierkafka.Message) (all []*kgo.Record) {
	for _, m := range rows {
		r, _ := m.Record()
		all = append(all, r)
	}
	return all
}

func wholeBatch(ctx context.Context, client *kgo.Client, rows []courierkafka.Message) []courierkafka.Message {
	if client.ProduceSync(ctx, records(rows)...).FirstErr() != nil {
		return nil
	}
	return rows
}

func byPosition(ctx context.Context, client *kgo.Client, rows []courierkafka.Message) (done []courierkafka.Message) {
	for i, r := range client.ProduceSync(ctx, records(rows)...) {
		if r.Err == nil {
			done = append(done, rows[i])
		}
	}
	return done
}

func oneByOne(ctx context.Context, client *kgo.Client, rows []courierkafka.Message) (done []courierkafka.Message) {
	for i, r := range records(rows) {
		if client.ProduceSync(ctx, r).FirstErr() != nil {
			return nil // the call fails, and all of it is published again
		}
		if i+1 == len(rows) {
			done = rows
		}
	}
	return done
}

func byPromise(_ context.Context, client *kgo.Client, rows []courierkafka.Message) (done []courierkafka.Message) {
	errs := make([]error, len(rows))
	for i, r := range records(rows) {
		client.Produce(context.Background(), r, func(_ *kgo.Record, err error) { errs[i] = err })
	}
	_ = client.Flush(context.Background())
	for i, err := range errs {
		if err == nil {
			done = append(done, rows[i])
		}
	}
	return done
}

func byCourier(ctx context.Context, client *kgo.Client, s *table) error {
	sink := courierkafka.NewSink(client, func(m courierkafka.Message) (*kgo.Record, error) { return m.Record() })
	dlq := courierkafka.NewDLQ(client, "orders.dead", func(m courierkafka.Message) (*kgo.Record, error) { return m.Record() })
	applier, _ := courier.ResilientApplier(sink, &courier.ResilientConfig[courierkafka.Message]{DLQ: dlq})
	return courier.NewPollingCoordinator(courier.BatchSourceFunc[courierkafka.Message]{FetchFunc: s.fetch, MarkFunc: s.mark}, applier,
		courier.WithBatchSize(batchSize), courier.WithInterval(time.Millisecond), courier.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))).RunOnce(ctx)
}
