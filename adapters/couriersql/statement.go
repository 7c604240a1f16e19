package couriersql

import (
	"context"
	"database/sql"
	"sync/atomic"
)

// executor is a connection or a transaction.
type executor interface {
	QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, text string, args ...any) (sql.Result, error)
}

// statement is prepared by the first call that needs it, since New has no
// context to do it with and no error to return. Prepared, a batch of one row
// costs SQLite half as much and a batch of a hundred a tenth less.
type statement struct {
	text string
	stmt atomic.Pointer[sql.Stmt]
}

// execute has the statement executed on the pool, prepared if the dialect wants that.
func (s *statement) execute(ctx context.Context, o *Outbox, args ...any) (sql.Result, error) {
	if !o.grammar.prepares {
		return o.execute(ctx, s.text, args...)
	}
	stmt, err := s.prepared(ctx, o.db)
	if err != nil {
		return nil, err
	}
	return stmt.ExecContext(ctx, args...)
}

// preparedStatement is an executor of the one text that it was prepared for.
type preparedStatement struct{ *sql.Stmt }

func (p preparedStatement) QueryContext(ctx context.Context, _ string, args ...any) (*sql.Rows, error) {
	return p.Stmt.QueryContext(ctx, args...)
}

func (p preparedStatement) ExecContext(ctx context.Context, _ string, args ...any) (sql.Result, error) {
	return p.Stmt.ExecContext(ctx, args...)
}

func (s *statement) prepared(ctx context.Context, db *sql.DB) (*sql.Stmt, error) {
	if stmt := s.stmt.Load(); stmt != nil {
		return stmt, nil
	}
	stmt, err := db.PrepareContext(ctx, s.text)
	if err != nil {
		return nil, err
	}
	if !s.stmt.CompareAndSwap(nil, stmt) { // another goroutine was first
		if err := stmt.Close(); err != nil {
			return nil, err
		}
		return s.prepared(ctx, db)
	}
	return stmt, nil
}

func (s *statement) close() error {
	if stmt := s.stmt.Swap(nil); stmt != nil {
		return stmt.Close()
	}
	return nil
}
