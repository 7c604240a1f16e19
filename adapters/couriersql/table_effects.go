package couriersql

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
)

// Effects returns an applier for the records of this source whose effects, in the database
// of the table, happen once: effect writes by tx, and the mark of the row is part of the same
// transaction. So it needs no inbox. The records of a batch are applied one after the other,
// in one transaction, which is divided, tried again and used as that of the function
// [Effects].
//
//	source := table.Source()
//	applier := source.Effects(func(ctx context.Context, tx *sql.Tx, o Order) error {
//		_, err := tx.ExecContext(ctx, "INSERT INTO invoices (order_id, total) VALUES ($1, $2)", o.ID, o.Total)
//		return err
//	})
//	coordinator := courier.NewPollingCoordinator(source, applier)
//
// A record that this source does not have in hand fails with [ErrLeaseLost]: one whose lease
// has ended, and one that comes from elsewhere, such as a dead letter that is redriven. To
// redrive, make the row pending again, or apply the letters by the effects of an inbox.
//
// In SQLite the transaction keeps everybody else from writing until it ends.
func (s *TableSource[T]) Effects(effect func(ctx context.Context, tx *sql.Tx, record T) error) courier.BatchApplier[T] {
	return s.BatchEffects(eachOf(effect))
}

// BatchEffects is Effects with an effect that is given the records of a batch together, as
// the function [BatchEffects] has it.
func (s *TableSource[T]) BatchEffects(effect func(ctx context.Context, tx *sql.Tx, fresh []T) error) courier.BatchApplier[T] {
	return &effects[T, *sql.Tx]{once: &marked[T]{s}, effect: effect, begin: beginSQL}
}

// PgxEffects is Effects with a transaction of pgx, as the function [PgxEffects] has it.
func (s *TableSource[T]) PgxEffects(effect func(ctx context.Context, tx pgx.Tx, record T) error) courier.BatchApplier[T] {
	return s.PgxBatchEffects(eachOf(effect))
}

// PgxBatchEffects is BatchEffects with a transaction of pgx, as the function
// [PgxBatchEffects] has it.
func (s *TableSource[T]) PgxBatchEffects(effect func(ctx context.Context, tx pgx.Tx, fresh []T) error) courier.BatchApplier[T] {
	return &effects[T, pgx.Tx]{once: &marked[T]{s}, effect: effect, begin: beginPgx}
}

// marked has effects happen once by the marks of a table. The mark comes after the effect, so
// that the transaction does not keep others from the lease, which is renewed meanwhile, for
// longer than the mark takes.
type marked[T any] struct{ source *TableSource[T] }

func (m *marked[T]) Validate() error { return m.source.Validate() }

func (m *marked[T]) tables() *database { return m.source.table.database }

// id is never "": a key may be an empty text.
func (m *marked[T]) id(record T) string { return "key " + m.source.Identity(record) }

func (m *marked[T]) parts(batch []identified[T]) []part {
	records := make([]T, len(batch))
	for i, r := range batch {
		records[i] = r.record
	}
	return m.source.parts(records, nil)
}

func (m *marked[T]) admit(ctx context.Context, t queries, batch []identified[T], repeats bool) (fresh []identified[T], err error) {
	parts := m.parts(batch)
	held := 0
	for _, p := range parts {
		held += len(p.keys)
	}
	if held < len(batch) {
		return nil, m.lost()
	}
	if !repeats {
		return batch, nil
	}
	store, err := m.source.table.described(ctx)
	if err != nil {
		return nil, err
	}
	pending := make(map[string]bool)
	for _, p := range parts {
		names, mine, err := store.pendingIn(ctx, t, m.source.owner, p)
		switch {
		case err != nil:
			return nil, m.tables().failed(err, "looking which of %s of %s are pending", plural(len(p.keys), "row"), m.tables().table)
		case !mine && len(names) > 0:
			return nil, m.lost()
		}
		for _, name := range names {
			pending[name] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(batch), func(r identified[T]) bool { return !pending[m.source.Identity(r.record)] }), nil
}

// lost is the error of a batch with a record that may be somebody else's.
func (m *marked[T]) lost() error {
	return &recordsError{fmt.Errorf("%w: its effect in %s did not happen here", ErrLeaseLost, m.tables().table)}
}

func (m *marked[T]) finish(ctx context.Context, t queries, fresh []identified[T]) error {
	store, err := m.source.table.described(ctx)
	if err != nil {
		return err
	}
	if m.tables().dialect == MySQL { // from here on others may wait
		if _, err := t(ctx, mysqlHasty); err != nil {
			return m.tables().failed(err, "bounding how long others wait for effects, which are rolled back")
		}
	}
	marked := 0
	for _, p := range m.parts(fresh) {
		n, err := store.markIn(ctx, t, m.source.owner, p)
		if err != nil {
			return m.tables().failed(err, "marking %s of %s with their effects, which are rolled back", plural(len(p.keys), "row"), m.tables().table)
		}
		marked += n
	}
	if marked < len(fresh) {
		return errNotAll
	}
	return nil
}

func (*marked[T]) isRepeat(err error) bool { return err == errNotAll }

func (m *marked[T]) after() string {
	if m.tables().dialect == MySQL {
		return mysqlPatient
	}
	return ""
}

// committed takes the rows out of the hand, and ends leases that have no others. It waits for
// its turn, as other workers settle rows of the same leases.
func (m *marked[T]) committed(ctx context.Context, batch []identified[T], _ int) {
	s := m.source
	took := enter(ctx, s.turn) == nil
	var done []part
	s.mu.Lock()
	for _, r := range batch {
		row, found := s.inHand[s.Identity(r.record)]
		if !found {
			continue
		}
		s.forget(row.name)
		if s.left[row.batch] == 0 {
			done = append(done, part{batch: row.batch, last: true})
		}
	}
	s.mu.Unlock()
	if !took { // the call has ended, and the leases end by themselves
		return
	}
	defer func() { <-s.turn }()
	if store, err := s.table.described(ctx); err == nil {
		_ = s.settleParts(ctx, store, toRelease, done) // else they end by themselves
	}
}

func (*marked[T]) skipped(int) {}

// namesFrom decodes what pendingIn reads: a JSON array of the texts of each key.
func namesFrom(lists []string) (names []string, err error) {
	for _, list := range lists {
		var key []string
		if err := json.Unmarshal([]byte(list), &key); err != nil {
			return nil, err
		}
		names = append(names, nameOf(key))
	}
	return names, nil
}
