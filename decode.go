package courier

import (
	"context"
	"errors"
	"fmt"
)

// ErrDecode is what every [*DecodeError] is, to errors.Is.
var ErrDecode = errors.New("courier: a record cannot be decoded")

// DecodeError says that a record could not be decoded. Its class is permanent: the record
// is parked, with its bytes as the source returned them. It says nothing about the
// destination, so a breaker counts it neither as a failure nor as a success.
type DecodeError struct{ Err error }

func (e *DecodeError) Error() string {
	return fmt.Sprintf("courier: a record cannot be decoded: %s", inner(e.Err))
}

// Is reports whether err is [ErrDecode].
func (e *DecodeError) Is(err error) bool { return err == ErrDecode }

// Unwrap returns Err.
func (e *DecodeError) Unwrap() error { return e.Err }

// NewDecodingApplier decodes rows as a source returns them and passes the records to an
// applier. Decoding here instead of in the source keeps the key that Mark needs, and lets
// a row that cannot be decoded be parked as it is instead of failing the fetch of all
// others.
//
// The dead letter queue belongs around the result. A queue inside never sees the rows
// that cannot be decoded, and is refused. Retries and a breaker may be on either side:
// such a row is not retried.
//
// decode must be safe for concurrent use; its error becomes a permanent [*DecodeError].
func NewDecodingApplier[R, T any](applier Applier[T], decode func(row R) (T, error)) Applier[R] {
	var fault error
	if decode == nil {
		fault = &ConfigError{Field: "decode", Problem: "is nil: pass the function that makes a record of a row"}
	}
	return &decodingApplier[R, T]{newStage(decoding, applier, fault), decode}
}

type decodingApplier[R, T any] struct {
	stage[T]
	decode func(R) (T, error)
}

func (d *decodingApplier[R, T]) Apply(ctx context.Context, row R) error {
	if d.fault != nil || ctx == nil {
		return d.refuse(ctx)
	}
	record, err := d.decode(row)
	if err != nil {
		return Permanent(&DecodeError{sound(err)})
	}
	return d.apply(ctx, record)
}

func (d *decodingApplier[R, T]) resume(ctx context.Context, row R, exit error) error {
	record, err := d.decode(row)
	if err != nil {
		return Permanent(&DecodeError{sound(err)})
	}
	return resumed(ctx, d.inner, record, exit)
}

func (d *decodingApplier[R, T]) ApplyBatch(ctx context.Context, rows []R) error {
	return applyMany(ctx, BatchApplier[R](d), rows).err()
}

func (d *decodingApplier[R, T]) applyMany(ctx context.Context, rows []R) verdicts {
	records := make([]T, 0, len(rows))
	var errs []error // of the rows, once one cannot be decoded
	var index []int  // likewise, of the records among the rows
	for i, row := range rows {
		record, err := d.decode(row)
		if err == nil {
			if errs != nil {
				index = append(index, i)
			}
			records = append(records, record)
			continue
		}
		if errs == nil {
			errs, index = make([]error, len(rows)), allOf(i)
		}
		errs[i] = Permanent(&DecodeError{sound(err)})
		if d.order { // what is behind it is not to be applied before it is settled
			for j := i + 1; j < len(rows); j++ {
				errs[j] = ErrBehindFailed
			}
			break
		}
	}
	if errs == nil {
		return d.applyBatch(ctx, records)
	}
	if len(records) > 0 {
		v := d.applyBatch(historiesOf(ctx, len(rows), index), records)
		if v.whole != nil {
			return v // of the whole batch: that none was applied is true of the undecoded as well
		}
		v.scatter(index, errs)
	}
	return apart(errs)
}
