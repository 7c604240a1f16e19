package couriersql

import (
	"context"
	"errors"
)

// recordsError is the error of a transaction for what it was to do: one with other records
// may succeed.
type recordsError struct{ err error }

func (e *recordsError) Error() string { return e.err.Error() }
func (e *recordsError) Unwrap() error { return e.err }

// divide applies a batch, and where that fails for what is in it, each half of it. It calls
// fail for each record that fails, and returns the error, if any, after which nothing more
// was tried: all that was left has failed with it.
func divide[R any](ctx context.Context, batch []R, apply func(context.Context, []R) error, fail func(R, error)) error {
	if len(batch) == 0 {
		return nil
	}
	failAll := func(part []R, err error) error {
		for _, r := range part {
			fail(r, err)
		}
		return err
	}
	err := apply(ctx, batch)
	var own *recordsError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &own) || ctx.Err() != nil:
		return failAll(batch, err)
	case len(batch) == 1:
		_ = failAll(batch, own.err)
		return nil
	}
	half := len(batch) / 2
	if err = divide(ctx, batch[:half], apply, fail); err != nil {
		return failAll(batch[half:], err)
	}
	return divide(ctx, batch[half:], apply, fail)
}

// mostTries is how often a transaction is tried that others are in the way of.
const mostTries = 4

// tries tries a transaction again while others are in its way.
func (d *database) tries(ctx context.Context, transact func() error) (err error) {
	for range mostTries {
		if err = transact(); err == nil || ctx.Err() != nil || !d.grammar.conflict(err) {
			return err
		}
	}
	return err
}
