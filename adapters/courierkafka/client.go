package courierkafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ClientOptions returns the options that a client of a [Sink] or a [DLQ] needs, for
// [kgo.NewClient]. Pass them for each client anew, before options of your own:
//
//   - hooks by which the sinks of the client know whether a broker can be reached, and
//     count data loss;
//   - acks of all in-sync replicas;
//   - 5 seconds for a broker to answer a produce request, and 5 more until the client
//     takes a silent connection for dead, where the client's defaults are 10 each;
//   - a second between two looks for the leaders of partitions, where the default is 5.
func ClientOptions() []kgo.Opt {
	l := &link{turns: new(turns), sending: make(chan struct{}, 1), unanswered: newUnanswered(), overdue: newOverdue()}
	return []kgo.Opt{
		kgo.WithHooks(l),
		kgo.ProducerOnDataLossDetected(func(string, int32) { l.losses.Add(1) }),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProduceRequestTimeout(5 * time.Second),
		kgo.RequestTimeoutOverhead(5 * time.Second),
		kgo.MetadataMinAge(time.Second),
	}
}

// link is what all sinks of one client share. The client calls it as a hook.
type link struct {
	losses     atomic.Uint64
	produced   atomic.Uint64 // records handed to the client, by whomever
	underWay   atomic.Int64  // those of them without a result
	heard      atomic.Uint64 // answers of brokers, to whatever was asked once connected
	purges     atomic.Uint64 // of topics that were deleted and made again
	identified atomic.Bool   // a broker has given a producer id out
	trouble    atomic.Pointer[connectError]
	turns      *turns
	sending    chan struct{} // holds a value while a call hands its records over
	unanswered *unanswered
	overdue    *overdue
}

// connectError is a failed connection after which nothing came from any broker.
type connectError struct{ err error }

// OnBrokerConnect notes a broker that could not be reached.
func (l *link) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		l.trouble.Store(&connectError{err})
	}
}

// OnBrokerRead notes that a broker can be reached. The answer that opens a connection
// comes here too.
func (l *link) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if err != nil {
		return
	}
	switch kmsg.Key(key) {
	case kmsg.ApiVersions, kmsg.SASLHandshake, kmsg.SASLAuthenticate:
	default:
		l.heard.Add(1)
	}
	if l.trouble.Load() != nil {
		l.trouble.Store(nil)
	}
}

// OnProduceRecordBuffered counts the records that the client was given.
func (l *link) OnProduceRecordBuffered(*kgo.Record) {
	l.produced.Add(1)
	l.underWay.Add(1)
}

// OnProduceRecordPartitioned notes where a record goes.
func (l *link) OnProduceRecordPartitioned(record *kgo.Record, _ int32) {
	l.overdue.answered(partition{record.Topic, -1})
	if r, ok := record.Context.Value(roundKey{}).(*round); ok {
		r.partitioned(record)
	}
}

// OnProduceRecordUnbuffered counts those that the client is done with. Its own count has
// a record a moment longer, until after the call that tells of the result.
func (l *link) OnProduceRecordUnbuffered(*kgo.Record, error) { l.underWay.Add(-1) }

// reach returns nil unless no broker can be reached. While it refuses calls the client
// has no reason to connect, so it asks all brokers itself.
func (l *link) reach(ctx context.Context, p *producer) error {
	trouble := l.trouble.Load()
	switch {
	case trouble == nil, reachable(ctx, p.client, p.config.deliveryTimeout):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return &restError{fmt.Errorf("courierkafka: no broker can be reached: %w", trouble.err), time.Now().Add(restFor)}
}

// reachable reports whether any broker answers within a time.
func reachable(ctx context.Context, client *kgo.Client, timeout time.Duration) (reached bool) {
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	brokers := append(client.DiscoveredBrokers(), client.SeedBrokers()...)
	answers := make(chan error, len(brokers))
	for _, b := range brokers {
		go func() {
			request := kmsg.NewPtrMetadataRequest()
			request.Topics = []kmsg.MetadataRequestTopic{}
			_, err := b.Request(asking, request)
			answers <- err
		}()
	}
	for range brokers {
		if <-answers == nil && !reached {
			reached = true
			cancel() // the other requests
		}
	}
	return reached
}

// identify returns nil once brokers give producer ids out. The client asks for one by
// itself when it has a record, and an error that it takes for fatal, such as a permission
// that is missing, it keeps for good: so it gets no record before that.
func (l *link) identify(ctx context.Context, client *kgo.Client) error {
	if l.identified.Load() {
		return nil
	}
	response, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(ctx, client)
	switch {
	case ctx.Err() != nil:
		return &unsentError{errNoProducerID}
	case err != nil: // the client meets it too, and keeps none of these
		return nil
	}
	err = kerr.ErrorForCode(response.ErrorCode)
	switch {
	case err == nil:
		l.identified.Store(true)
	case !kerr.IsRetriable(err):
		return fmt.Errorf("asking for a producer id: %w", err)
	}
	return nil
}

// producer is the part of a sink that does not depend on the type of its records.
type producer struct {
	client        *kgo.Client
	link          *link
	config        config
	topic         string // for records without one
	alwaysTopic   bool   // and for all others
	batchMax      func(topic string) int32
	bufferRecords int64
	bufferBytes   int64 // 0 is unlimited
}

func newProducer(client *kgo.Client, opts []Option) (producer, error) {
	p := producer{client: client, config: newConfig(opts)}
	if client == nil {
		return p, &courier.ConfigError{Field: "client", Problem: "is nil: pass the result of kgo.NewClient"}
	}
	hooks, _ := client.OptValue(kgo.WithHooks).([]kgo.Hook)
	for _, hook := range hooks {
		if l, ok := hook.(*link); ok {
			p.link = l
		}
	}
	if p.link == nil {
		return p, &courier.ConfigError{Field: "client", Problem: "was made without courierkafka.ClientOptions: pass them to kgo.NewClient"}
	}
	p.topic, _ = client.OptValue(kgo.DefaultProduceTopic).(string)
	p.alwaysTopic, _ = client.OptValue(kgo.DefaultProduceTopicAlways).(bool)
	p.batchMax, _ = client.OptValue(kgo.ProducerBatchMaxBytesFn).(func(string) int32)
	p.bufferRecords, _ = client.OptValue(kgo.MaxBufferedRecords).(int64)
	p.bufferBytes, _ = client.OptValue(kgo.MaxBufferedBytes).(int64)
	if p.config.fault != nil {
		return p, p.config.fault
	}
	return p, clientFault(client)
}

// clientFault looks at the options on which the guarantee depends.
func clientFault(client *kgo.Client) error {
	reject := func(option, problem string) error {
		return &courier.ConfigError{Field: "client", Problem: "has the option " + option + ", " + problem}
	}
	set := func(option any) bool { on, _ := client.OptValue(option).(bool); return on }
	transaction := client.OptValues(kgo.TransactionalID) // the id, and whether there is one
	timeout, _ := client.OptValue(kgo.RecordDeliveryTimeout).(time.Duration)
	switch {
	case client.OptValue(kgo.RequiredAcks) != kgo.AllISRAcks():
		return reject("RequiredAcks", "by which a record counts as stored before all in-sync replicas have it: use kgo.AllISRAcks()")
	case set(kgo.DisableIdempotentWrite):
		return reject("DisableIdempotentWrite", "by which the client's retries store records twice and out of order: leave it out")
	case set(kgo.AllowIdempotentProduceCancellation):
		return reject("AllowIdempotentProduceCancellation", "by which records that were given up may be stored twice: leave it out")
	case len(transaction) == 2 && transaction[1] == true:
		return reject("TransactionalID", "and the sink begins no transaction: leave it out")
	case set(kgo.ManualFlushing):
		return reject("ManualFlushing", "and the sink does not flush: leave it out")
	case set(kgo.StopProducerOnDataLossDetected):
		return reject("StopProducerOnDataLossDetected", "by which the client fails every record after a data loss: leave it out, and watch Sink.DataLoss")
	case client.OptValue(kgo.RecordRetries) != int64(math.MaxInt64):
		return reject("RecordRetries", "by which the client gives up records that may be stored: leave it out")
	case timeout != 0:
		return reject("RecordDeliveryTimeout", "which counts from the timestamp of a record, so that the client never sends an old one: use courierkafka.WithDeliveryTimeout")
	}
	return nil
}
