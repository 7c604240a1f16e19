package courier

import (
	"context"
	"time"
)

// This room is about what a source can do besides fetch and mark. Each
// capability is an interface of its own, and a coordinator looks for it once,
// when it is made. The coordinators call the methods one at a time, but beside
// a Fetch or a Mark that is under way.

// Releaser is an optional capability of a [Source]: it takes back records that
// were handed out and not settled. They are wanted again after the given time (0
// is at once). The coordinators call it for what was not attempted when they stop
// or pause, and for failed records. A source that is a [Failer] too, and so told
// of those in another way, may hand out at once what is released, to keep its
// order: a record that waits would be overtaken by later ones. To any other one
// the time is the pace of the retries. Release must be idempotent and must not
// keep the slice. Its error is logged: the source is taken to find out by itself,
// such as by the end of a lease.
type Releaser[T any] interface {
	Release(ctx context.Context, records []T, after time.Duration) error
}

// Failer is an optional capability of a [Source] that keeps a durable retry
// schedule: it is told of failed records, with their errors, in the place of
// [Releaser], and hands each out again when it sees fit. Fail must be
// idempotent and must not keep the slice. Its error is logged: the records come
// back when their lease ends. Where an order by key was asked for
// ([WithOrderKey]), the source holds back the later records of a key itself; a
// streaming coordinator then tries failed records again by itself instead.
type Failer[T any] interface {
	Fail(ctx context.Context, failed []FailedRecord[T]) error
}

// FailedRecord is a record that was attempted in vain and stays pending.
type FailedRecord[T any] struct {
	Record T
	Error  error
	After  time.Duration // the minimum delay that the error asks for, see [RetryAfter]
}

// Renewer is an optional capability of a [Source] that leases its records: it
// extends the leases of those that are still in hand. Renew may list records
// whose lease is lost in a [*BatchError]: what was not begun of them is left
// alone, and nothing is held against it. What was begun goes on, and may come to
// Mark, which passes it over. A record that was marked or given back since the call
// began is passed over too: its lease is not to begin anew. Any other error is
// logged and Renew is called again. It must not keep the slice.
type Renewer[T any] interface {
	// RenewEvery is how often the leases want to be renewed, such as a third
	// of their length; 0 or less is that there is nothing to renew. It is asked
	// once at the beginning of each run, by which a source can tell that a
	// coordinator runs.
	RenewEvery() time.Duration
	Renew(ctx context.Context, records []T) error
}

// Waker is an optional capability of a [Source]: a value on the channel tells a
// polling coordinator that there is work now, and it fetches without waiting
// the interval out. The channel should have room for one value, and a send that
// finds it full be dropped. A wake-up that is lost costs the interval, no
// record. The channel is asked for once for each run; nil is a source that does
// not wake.
type Waker interface {
	Wake() <-chan struct{}
}

// Pager is an optional capability of a [Source] whose Fetch may return fewer records
// than the limit while more of them are there, such as one that bounds a batch by its
// bytes too. More reports whether that is so of the last Fetch. A polling coordinator
// then fetches again as it does after a full batch, instead of when the interval has
// passed. It calls More after each Fetch that returned without an error, before the
// next Fetch and on the same goroutine. More must not block.
type Pager interface {
	More() bool
}

// Lagger is an optional capability of a [Source]: it tells how far behind the
// coordinator is. It is called when the coordinator is asked for its state, by
// whoever asks, and must be safe for concurrent use.
type Lagger interface {
	Lag(ctx context.Context) (Lag, error)
}

// Lag is what is pending at a source and could be fetched now.
type Lag struct {
	Pending int           // records; -1 is not known
	Oldest  time.Duration // the age of the oldest, 0 when there is none
}

// Identifier is an optional capability of a [Source]: it names a record, the
// same record always by the same name and no two by one. [WithIdentity] does the
// same for any source, and takes the place of the method.
//
// A polling coordinator knows by its name a record again that the source returns
// a second time, so that the attempts count which an open breaker interrupted.
// It knows numbers and strings by their value. It keeps all other records in hand
// over the pause, and fetches no more until they are settled.
type Identifier[T any] interface {
	Identity(record T) string
}

// OrderedBatcher is an optional capability of a [BatchApplier]: it keeps the order of
// records inside a call. ApplyBatch then applies them in the order of the slice, and
// behind one that has failed nothing that has to come after it. As an applier does not
// know what has to, it is simplest to end the call there. What it leaves for that reason
// it lists with [ErrBehindFailed]: such a record is applied by the next call, at once or,
// if it is behind a failed one of its key, once that is settled. An applier that keeps
// the order of something itself, such as a partition, may go on with the rest, if all
// records of an order key are in the same one.
//
// With [WithOrderKey] several records of a key are then in one call, where else no two
// are. When a later one of them is reported as applied and an earlier one as failed, the
// promise is broken: the later one is marked, and the earlier one comes after it.
//
// OrderedBatches is called once, by each constructor that is given the applier. false is
// that of an applier that does not keep the order, such as a decorator around one that
// does not. A decorator of one's own that takes batches passes on what is inside it; one
// without the method hides it, whether or not it has an Unwrap. The decorators of this
// package have the order if what they are around does, and a fan-out if no branch is
// optional or beyond a quorum, each keeps the order, and it knows the records again
// (FanOutConfig.Identity).
type OrderedBatcher interface {
	OrderedBatches() bool
}

// Validator is an optional capability of a [Source] or an [Applier]: it tells
// before anything is fetched that it cannot work, with an error that should be
// a [*ConfigError]. Start and RunOnce return that error; a panic in Validate becomes
// one. The decorators of this package pass the question on to what they decorate.
type Validator interface {
	Validate() error
}
