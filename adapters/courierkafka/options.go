package courierkafka

import (
	"time"

	"github.com/erfanmomeniii/courier"
)

// Option configures a [Sink] or a [DLQ]. An invalid value is a [*courier.ConfigError]
// from Validate, Apply and ApplyBatch.
type Option func(*config)

type config struct {
	deliveryTimeout time.Duration
	fault           error
}

func newConfig(opts []Option) config {
	c := config{deliveryTimeout: 10 * time.Second}
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	return c
}

// WithDeliveryTimeout sets how long a call waits for the brokers' answers. The default
// is 10 s; it must be positive. It counts from when the call's records are handed to the
// client, and anew when records are sent again after a broker refused a batch. A record
// without an answer by then counts as not attempted. It stays with the client, and the
// next Apply of the record takes its answer. If no broker has answered anything, the call
// asks all of them, for up to a tenth of the delivery timeout.
func WithDeliveryTimeout(d time.Duration) Option {
	return func(c *config) {
		if d <= 0 && c.fault == nil {
			c.fault = &courier.ConfigError{Field: "WithDeliveryTimeout", Problem: "must be positive, such as 10 * time.Second"}
		}
		c.deliveryTimeout = d
	}
}

// SourceOption configures a [Source]. An invalid value is a [*courier.ConfigError] from
// Validate and Fetch.
type SourceOption func(*sourceConfig)

type sourceConfig struct {
	maxWindow     int
	drainTimeout  time.Duration
	commitTimeout time.Duration
	fault         error
}

func newSourceConfig(opts []SourceOption) sourceConfig {
	c := sourceConfig{maxWindow: 10_000, drainTimeout: 10 * time.Second, commitTimeout: 10 * time.Second}
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	return c
}

func (c *sourceConfig) refuse(option, problem string) {
	if c.fault == nil {
		c.fault = &courier.ConfigError{Field: option, Problem: problem}
	}
}

// WithMaxWindow sets for how many records of a partition the source reads on while the
// first of them is not settled. The default is 10,000; it must be positive. At the bound
// the source pauses that partition alone, until half of the window is settled.
func WithMaxWindow(records int) SourceOption {
	return func(c *sourceConfig) {
		if c.maxWindow = records; records <= 0 {
			c.refuse("WithMaxWindow", "must be positive, such as 10000")
		}
	}
}

// WithRevokeTimeout sets how long the source waits for records in progress when the group
// revokes their partition. The default is 10 s; it must be positive, and at most half of
// the client's RebalanceTimeout, after which the group goes on without this member. A
// record that takes longer is delivered again by the next member.
func WithRevokeTimeout(d time.Duration) SourceOption {
	return func(c *sourceConfig) {
		if c.drainTimeout = d; d <= 0 {
			c.refuse("WithRevokeTimeout", "must be positive, such as 10 * time.Second")
		}
	}
}

// WithCommitTimeout sets how long a commit of offsets may take. The default is 10 s; it
// must be positive. A commit waits while the group rebalances. The coordinator repeats
// one that has failed.
func WithCommitTimeout(d time.Duration) SourceOption {
	return func(c *sourceConfig) {
		if c.commitTimeout = d; d <= 0 {
			c.refuse("WithCommitTimeout", "must be positive, such as 10 * time.Second")
		}
	}
}
