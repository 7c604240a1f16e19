package couriernats

import (
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
)

// Option configures a [Sink]. A value that makes no sense is a
// [*courier.ConfigError] from Apply and ApplyBatch.
type Option func(*config)

type config struct {
	ackTimeout time.Duration
	maxPending int
	stream     string
	fault      error
}

func newConfig(opts []Option) config {
	c := config{ackTimeout: 5 * time.Second, maxPending: 1000}
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
// 5 s; it must be positive.
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

// WithExpectStream makes the server refuse a message that would be stored in
// any other stream than the named one; such a refusal is retryable. By default
// a message goes to whichever stream takes its subject.
func WithExpectStream(name string) Option {
	return func(c *config) {
		if name == "" || strings.ContainsAny(name, " \t\r\n.*>/\\") {
			c.reject("WithExpectStream", "is not the name of a stream")
		}
		c.stream = name
	}
}
