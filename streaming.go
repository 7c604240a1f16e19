package courier

import "context"

// StreamingCoordinator takes records from a source as they come, applies them
// with one or more workers and marks them in batches. Its methods are safe for
// concurrent use.
type StreamingCoordinator[T any] struct {
	*control
	source  Source[T]
	applier Applier[T]
	config  config
	fault   error
}

// NewStreamingCoordinator returns a coordinator for a source that hands each
// record out once. Nothing happens before Start; what is wrong with the
// arguments is reported there.
func NewStreamingCoordinator[T any](source Source[T], applier Applier[T], opts ...Option) *StreamingCoordinator[T] {
	c := &StreamingCoordinator[T]{source: source, applier: applier, config: newConfig(opts)}
	c.control = newControl(source, applier, &c.config)
	if c.config.prefetch < 0 {
		c.config.prefetch = 1
	}
	c.fault = commonFault(source, applier, &c.config)
	if c.fault == nil && c.config.polling != "" {
		c.fault = &ConfigError{c.config.polling, "is for a polling coordinator; a streaming one has no use for it"}
	}
	if c.config.workers > 1 || c.config.keyOf != nil {
		c.watch.retries = heldRetries(applier)
	} else {
		c.watch.retries = keyedFanOuts(applier)
	}
	if _, ok := source.(interface{ ignoresLimit() }); ok && c.fault == nil {
		c.fault = &ConfigError{"source", "returns a record again until it is marked, and does not block: use NewPollingCoordinator"}
	}
	return c
}

// Start runs the coordinator and blocks until ctx ends, or until the source
// returns io.EOF and what came before it is settled, or was tried a few times
// more and is handed back. With one worker, records are applied in the order
// fetched, failed ones aside.
//
// At io.EOF a [Releaser] gets its failed records back at once, with the rest of their
// delays, unless an order was asked for. Else Start waits for each delay: with
// [RetryAfter] that is up to 24 hours before each of at most three deliveries, or up
// to RetryPolicy.MaxRetryAfter where a retry gave the record up. Stop ends the wait.
//
// When ctx ends nothing more is fetched. Records in work are finished and
// marked; the others go back to the source if it is a [Releaser], and are
// applied within the drain timeout if it is not. A failed record is released,
// or else tried again later, with growing delays, for as long as the
// coordinator runs. All of that takes twice the drain timeout
// ([WithDrainTimeout]) at the most, as far as the user's functions obey their
// contexts; Start waits for a function that does not, and for observers and hooks
// such as DLQPolicy.OnPark, as long as they run. No goroutine of the coordinator
// outlives Start.
//
// The error is not nil when the configuration is bad ([*ConfigError]), when it
// runs already ([ErrRunning]), when applied records could not be marked at the
// end ([*MarkError]), or when records are left that the source does not take
// back ([*UnsettledError]).
func (c *StreamingCoordinator[T]) Start(ctx context.Context) error {
	if c == nil || c.control == nil {
		return &ConfigError{"coordinator", "is nil or the zero value: make it with NewStreamingCoordinator"}
	}
	if c.fault != nil {
		return c.fault
	}
	if fault := contextFault(ctx); fault != nil {
		return fault
	}
	ctx, err := c.begin(ctx, false)
	if err != nil {
		return err
	}
	defer c.end()
	return newStream(ctx, c).run()
}
