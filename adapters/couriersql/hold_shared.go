package couriersql

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"
)

// shared holds nothing in the database: it is for the one relay that there is.
type shared struct {
	outbox *Outbox
	inHand
}

func (s *shared) fetch(ctx context.Context, limit int, from int64) ([]Row, error) {
	o := s.outbox
	on, err := o.fetch.prepared(ctx, o.db)
	if err != nil {
		return nil, err
	}
	first, last, others := s.run()
	list, _ := json.Marshal(others) // never fails for numbers
	args := append(o.timed(limit, first, last, from, o.fetchBytes), string(list))
	batch, err := o.rows(ctx, preparedStatement{on}, limit, o.fetchBytes, o.fetch.text, args...)
	if err != nil { // the rows that were read before it are not handed out
		return nil, err
	}
	batch = o.earliest(batch, limit)
	s.add(batch)
	return batch, nil
}

func (s *shared) mark(ctx context.Context, rows []Row) error {
	o := s.outbox
	if marked := s.parked.others(rows); len(marked) > 0 {
		result, err := o.mark.execute(ctx, o, o.marking(o.grammar.known(marked)...)...)
		if err != nil {
			return err
		}
		if missing(result, len(marked)) > 0 {
			if err := o.recountAlone(ctx, len(marked), o.grammar.left, o.grammar.known(marked)...); err != nil {
				return err
			}
			o.reused(ctx, marked)
		}
	}
	s.removeRows(rows)
	s.parked.remove(rows...)
	return nil
}

func (s *shared) fail(ctx context.Context, failed []failure) error {
	err := s.outbox.on(ctx, func(conn *sql.Conn) error { return s.outbox.fail(ctx, conn, failed) })
	s.removeFailed(failed) // which come back, at the latest now
	return err
}

func (s *shared) release(_ context.Context, rows []failure) error {
	s.removeFailed(rows)
	return nil
}

func (s *shared) renew(context.Context, []Row) (map[string]bool, error) { return nil, nil }

func (s *shared) renewEvery() time.Duration { return 0 }

func (s *shared) close() {}

// fail notes failures of rows that are not leased.
func (o *Outbox) fail(ctx context.Context, on executor, failed []failure) error {
	result, err := on.ExecContext(ctx, o.sql(o.grammar.fail), o.timed(o.grammar.failures(failed)...)...)
	if err == nil && missing(result, len(failed)) > 0 {
		err = o.recount(ctx, on, o.table, len(failed), o.grammar.leftFree, o.grammar.attempted(rowsOf(failed))...)
	}
	return err
}

// rowsOf are the rows of failures, as far as they are known by.
func rowsOf(failed []failure) []Row {
	rows := make([]Row, len(failed))
	for i, f := range failed {
		rows[i] = Row{Seq: f.seq, ID: f.id, Attempts: int(f.attempts), claim: f.claim}
	}
	return rows
}
