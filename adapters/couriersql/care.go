package couriersql

import (
	"context"
	"time"

	"github.com/erfanmomeniii/courier"
)

// This room is what an operator asks of an outbox.

// Lag tells how many rows are due, and for how long the oldest of them has been
// there. Rows that wait for a retry, or are leased, are not due. It counts them
// one by one: ask once a minute, not once a batch.
func (o *Outbox) Lag(ctx context.Context) (courier.Lag, error) {
	if o.fault != nil {
		return courier.Lag{}, o.fault
	}
	var lag courier.Lag
	var oldest micros
	if err := o.db.QueryRowContext(ctx, o.sql(o.grammar.lag), o.timed()...).Scan(&lag.Pending, &oldest); err != nil {
		return courier.Lag{}, o.failed(err, "asking %s for its lag", o.table)
	}
	if lag.Pending > 0 {
		lag.Oldest = max(0, o.now().Sub(time.UnixMicro(int64(oldest))))
	}
	return lag, nil
}

// pruneBatch is how many rows are deleted in one transaction: few enough that
// nothing waits for it.
const pruneBatch = 1000

// Prune deletes rows that were kept ([WithKeep]) and processed before the given
// time, a thousand in a transaction, until there are none or ctx ends. It
// returns how many it deleted, with an error too.
func (o *Outbox) Prune(ctx context.Context, before time.Time) (deleted int, err error) {
	if o.fault != nil {
		return 0, o.fault
	}
	for {
		result, err := o.db.ExecContext(ctx, o.sql(o.grammar.prune), o.grammar.time(before.UnixMicro()), pruneBatch)
		if err != nil {
			return deleted, o.failed(err, "pruning %s (%d rows are deleted)", o.table, deleted)
		}
		n, err := result.RowsAffected()
		if err != nil {
			return deleted, o.failed(err, "pruning %s", o.table)
		}
		deleted += int(n)
		if n < pruneBatch {
			return deleted, nil
		}
	}
}

// Prunable returns how many rows Prune would delete.
func (o *Outbox) Prunable(ctx context.Context, before time.Time) (int, error) {
	return o.count(ctx, o.grammar.prunable, "prunable rows of "+o.table, o.grammar.time(before.UnixMicro()))
}
