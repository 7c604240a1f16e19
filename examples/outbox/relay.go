package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/nats-io/nats.go"
)

// relay is all that there is of Courier in this program: from the outbox to the
// sink until ctx ends. While the server is down the breaker is open and rows
// stay pending; a row that can never be delivered goes to the dead letters.
func relay(ctx context.Context, source courier.Source[couriersql.Row], sink courier.Applier[couriersql.Message],
	dlq courier.DLQ[couriersql.Row], batch int, log *slog.Logger) error {
	deliver := courier.NewDecodingApplier(sink, couriersql.Row.Message)
	resilient, _ := courier.ResilientApplier(deliver, &courier.ResilientConfig[couriersql.Row]{
		DLQ: dlq, // in the database of the outbox, committed together with the mark of the row
		// Shorter than the defaults, as the outage of the demo is.
		Breaker: courier.BreakerPolicy{OpenFor: 500 * time.Millisecond, MaxOpenFor: time.Second},
	})
	return courier.NewPollingCoordinator(source, resilient,
		courier.WithFastPolling(), courier.WithBatchSize(batch), courier.WithLogger(log)).Start(ctx)
}

// subjects says where the topics of the outbox go. The stream takes all of
// subjectPrefix.
var subjects = map[string]string{
	topicOrders: subjectPrefix + "orders",
	topicRows:   subjectPrefix + "rows",
}

// message makes a NATS message of an outbox message. An error of it is
// permanent: the row becomes a dead letter.
func message(m couriersql.Message) (*nats.Msg, error) {
	subject, known := subjects[m.Topic]
	if !known {
		return nil, fmt.Errorf("no subject is known for topic %q", m.Topic)
	}
	return couriernats.NewMsg(subject, m.ID, m.Payload, m.Headers, m.Trace)
}
