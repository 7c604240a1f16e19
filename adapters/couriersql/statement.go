package couriersql

import (
	"context"
	"database/sql"
	"sync/atomic"
)

// statement is prepared by the first call that needs it, since New has no
// context to do it with and no error to return. Prepared, a batch of one row
// costs half as much and a batch of a hundred a tenth less.
type statement struct {
	text string
	stmt atomic.Pointer[sql.Stmt]
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
