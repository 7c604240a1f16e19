package courier

import (
	"context"
	"fmt"
	"reflect"
)

// PollingCoordinator fetches records from a source, applies them, marks the applied
// records, and waits. Its methods are safe for concurrent use.
type PollingCoordinator[T any] struct {
	*control
	source  Source[T]
	applier Applier[T]
	config  config
	misses  int // of the runs before, see poller.misses
	fault   error
}

// NewPollingCoordinator returns a coordinator for a source that may hand the same record
// out again until it is marked. Nothing happens before Start, which reports invalid
// arguments.
func NewPollingCoordinator[T any](source Source[T], applier Applier[T], opts ...Option) *PollingCoordinator[T] {
	c := &PollingCoordinator[T]{source: source, applier: applier, config: newConfig(opts)}
	c.control = newControl(source, applier, &c.config)
	c.fault = commonFault(source, applier, &c.config)
	if c.fault == nil && c.config.streaming != "" {
		c.fault = &ConfigError{c.config.streaming, "is for a streaming coordinator; a polling one has no use for it"}
	}
	c.holdRetries()
	if _, ok := source.(interface{ handsOutOnce() }); ok && c.fault == nil {
		c.fault = &ConfigError{"source", "hands each record out once, so that a failed one would be lost: use NewStreamingCoordinator"}
	}
	if _, ok := source.(Releaser[T]); !ok && c.config.prefetch > 0 && c.fault == nil {
		c.fault = &ConfigError{"WithPrefetch", "needs a source that leases (a Releaser): any other source returns the records in hand again"}
	}
	if c.config.keyOf != nil && c.config.prefetch > 0 && c.fault == nil {
		c.fault = &ConfigError{"WithPrefetch", "cannot be combined with WithOrderKey: records fetched ahead may come after records that are given back meanwhile; leave it out, or use a streaming coordinator"}
	}
	return c
}

// holdRetries lets records wait in hand between their attempts if others may go on
// meanwhile. With a breaker, a record that cannot be recognized keeps its worker instead:
// a pause would forget its attempts, and a poison record would never be parked.
func (c *PollingCoordinator[T]) holdRetries() {
	if c.config.workers == 1 && c.config.keyOf == nil {
		c.watch.retries = keyedFanOuts(c.applier)
		return
	}
	retries := heldRetries(c.applier)
	_, leases := c.source.(Releaser[T])
	if id := identityOf(c.source, &c.config, false, false); len(retries) > 0 && !leases && id.inHand && len(c.breakers) > 0 {
		c.advice = append(c.advice, "courier: the records have no names, so a record keeps its worker while it waits for a retry, and others may have to wait for it; name the records with WithIdentity")
		return
	}
	c.watch.retries = retries
}

// commonFault reports what is wrong for either coordinator.
func commonFault[T any](source Source[T], applier Applier[T], c *config) error {
	return firstFault(configErrorOf("source", source), applierFault("applier", applier), c.fault, c.attemptFault(), keyFault[T](c), portionFault(c, applier))
}

func firstFault(faults ...error) error {
	for _, fault := range faults {
		if fault != nil {
			return fault
		}
	}
	return nil
}

// portionFault reports an apply batch size for an applier that takes no batches.
func portionFault[T any](c *config, applier Applier[T]) error {
	if c.applyBatch == 0 || asBatch(applier) != nil {
		return nil
	}
	return &ConfigError{"WithApplyBatchSize", fmt.Sprintf("needs an applier that takes batches (a BatchApplier), and %T gets one record at a time: give it an ApplyBatch, or leave the option out", applier)}
}

// keyFault reports a function for records of another type.
func keyFault[T any](c *config) error {
	for _, f := range [...]struct {
		option string
		of     any
	}{{"WithOrderKey", c.keyOf}, {"WithIdentity", c.identityOf}} {
		if _, ok := f.of.(func(T) string); f.of != nil && !ok {
			return &ConfigError{f.option, fmt.Sprintf("has a %T, which is not for records of type %v", f.of, reflect.TypeFor[T]())}
		}
	}
	return nil
}

// Start runs the coordinator and blocks until ctx ends or [PollingCoordinator.Stop] is
// called. It then fetches no more, lets the records in progress finish, marks the applied
// records, releases the rest ([Releaser]) and returns nil. That takes at most twice the
// drain timeout ([WithDrainTimeout]) if the user's functions obey their contexts. Start
// waits for a function that does not, and for observers and hooks such as
// DLQPolicy.OnPark. No goroutine of the coordinator outlives Start. The coordinator may
// be started again.
//
// The error is a [*ConfigError] if the configuration is bad, [ErrRunning] if the
// coordinator runs already, and a [*MarkError] if applied records could not be marked at
// the end. Failures of the source or of records do not end Start: they are logged and
// retried.
func (c *PollingCoordinator[T]) Start(ctx context.Context) error { return c.run(ctx, false) }

// RunOnce makes one pass, as the function [RunOnce] does.
func (c *PollingCoordinator[T]) RunOnce(ctx context.Context) error { return c.run(ctx, true) }

func (c *PollingCoordinator[T]) run(ctx context.Context, once bool) error {
	if c == nil || c.control == nil {
		return &ConfigError{"coordinator", "is nil or the zero value: make it with NewPollingCoordinator"}
	}
	if c.fault != nil {
		return c.fault
	}
	if fault := contextFault(ctx); fault != nil {
		return fault
	}
	ctx, err := c.begin(ctx, once)
	if err != nil {
		return err
	}
	defer c.end()
	p := newPoller(ctx, c, once)
	if once {
		p.misses = c.misses
		defer func() { c.misses = p.misses + p.missed }()
	}
	return p.run()
}
