package couriernats

import (
	"context"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/nats-io/nats.go"
)

// Option configures a [Sink]. A value that makes no sense is a
// [*courier.ConfigError] from Apply and ApplyBatch.
type Option func(*config)

type config struct {
	ackTimeout time.Duration
	patience   time.Duration // with a connection on which nothing comes
	maxPending int
	maxBytes   int
	stream     string
	allowed    []string // reserved subjects that messages may go to, without a dot at the end
	connect    func(context.Context) (*nats.Conn, error)
	inboxes    string // where the connection takes answers
	fault      error
}

func newConfig(opts []Option) config {
	c := config{ackTimeout: 5 * time.Second, patience: 4 * time.Second, maxPending: 1000, maxBytes: 8 << 20}
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	return c
}

// reject keeps the first fault.
func (c *config) reject(option, problem string) {
	if c.fault == nil {
		c.fault = &courier.ConfigError{Field: option, Problem: problem}
	}
}

// WithAckTimeout sets how long a message may go without an ack, counted from the
// last one that was sent together with it, see [WithMaxPending]. The default is
// 5 s; it must be positive. After a fifth of it, or a second, the sink pings the
// server. A connection on which nothing comes for at least 4 s, and no pong, is dead:
// the sink makes the client reconnect.
func WithAckTimeout(d time.Duration) Option {
	return func(c *config) {
		if d <= 0 {
			c.reject("WithAckTimeout", "must be positive, such as 5 * time.Second")
		}
		c.ackTimeout = d
	}
}

// WithMaxPending sets how many messages one call may have sent and not yet
// seen acked. The default is 1000; it must be at least 1. A larger batch is
// sent in parts, each after the acks of the one before. Calls at the same time
// have as many each, whatever limit the JetStream context given to [NewSink]
// was made with.
func WithMaxPending(n int) Option {
	return func(c *config) {
		if n < 1 {
			c.reject("WithMaxPending", "must be at least 1")
		}
		c.maxPending = n
	}
}

// WithMaxPendingBytes sets how many bytes of messages, with their subjects and
// headers, one call may have sent and not yet seen acked. The default is 8 MiB; it
// must be at least 1. What is beyond that is sent in parts, as by [WithMaxPending]; a
// larger message is sent by itself. One message more than that may have been made.
func WithMaxPendingBytes(n int) Option {
	return func(c *config) {
		if n < 1 {
			c.reject("WithMaxPendingBytes", "must be at least 1")
		}
		c.maxBytes = n
	}
}

// WithExpectStream makes the server refuse a message that would be stored in
// any other stream than the named one. What other streams answer does not count, as
// where those of a leaf node and its hub take the same subject: without the ack of the
// named one the message fails by the ack timeout, which is retryable. By default a
// message goes to whichever stream takes its subject.
func WithExpectStream(name string) Option {
	return func(c *config) {
		if name == "" || strings.ContainsAny(name, " \t\r\n.*>/\\") {
			c.reject("WithExpectStream", "is not the name of a stream")
		}
		c.stream = name
	}
}

// WithReservedSubjects lets messages go to subjects that begin with one of the
// prefixes although they are reserved, such as "$KV.prices." for the keys of a
// bucket. Reserved are the subjects whose first token begins with a dollar sign,
// which are the interface of the servers, those of inboxes ("_INBOX" and the
// connection's own prefix), and "_R_" and "_GR_". By default a message to any of
// them is a permanent failure, because a subject that comes from a record could
// give the server orders, such as to delete a stream. A prefix ends with a whole
// token, with or without the dot after it.
func WithReservedSubjects(prefixes ...string) Option {
	return func(c *config) {
		for _, prefix := range prefixes {
			prefix = strings.TrimSuffix(prefix, ".")
			if validSubject(prefix) != nil {
				c.reject("WithReservedSubjects", "holds a prefix that is not a subject, such as \"$KV.prices.\"")
			}
			c.allowed = append(c.allowed, prefix)
		}
	}
}

// WithConnect sets how the sink gets another connection after the client has closed
// the last one for good. The client does so when it gives up reconnecting
// (nats.MaxReconnects), when a server refuses its user twice
// (nats.IgnoreAuthErrorAbort), and over a message that is beyond a limit which the
// server has lowered. By default the sink connects with the options of the
// connection that it was given, handlers included, and with the two named ones set
// so that this client never gives up.
//
// The sink calls connect from the goroutine that applies, one call at a time, with
// a context that also ends after the ack timeout. The connection that it returns is
// the sink's, see [Sink.Close]. Its error fails the call of Apply or ApplyBatch,
// and the next call tries again.
func WithConnect(connect func(ctx context.Context) (*nats.Conn, error)) Option {
	return func(c *config) {
		if connect == nil {
			c.reject("WithConnect", "is nil: pass a function that connects, or leave the option out")
		}
		c.connect = connect
	}
}
