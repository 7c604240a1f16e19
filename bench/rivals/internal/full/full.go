// Package full is what the relays of an outbox in SQLite have in common: an outbox full of
// messages of 256 bytes, and sources that end the run when all of it is marked.
package full

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite" // the driver

	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// Outbox returns an outbox of n messages to orders, whose rows are kept. key names the key
// of the i-th.
func Outbox(b *testing.B, n int, key func(i int) string) (*sql.DB, *couriersql.Outbox) {
	ctx := context.Background()
	db, err := sql.Open("sqlite", couriersql.SQLiteDSN(filepath.Join(b.TempDir(), "outbox.db")))
	require.NoError(b, err)
	b.Cleanup(func() { _ = db.Close() })
	outbox := couriersql.New(db, couriersql.SQLite, couriersql.WithKeep())
	b.Cleanup(func() { _ = outbox.Close() })
	require.NoError(b, outbox.Migrate(ctx))
	payload := make([]byte, 256)
	for i := range payload {
		payload[i] = 'a' + byte(i%26)
	}
	for written := 0; written < n; {
		messages := make([]couriersql.Message, min(5000, n-written))
		for i := range messages {
			messages[i] = couriersql.Message{Topic: "orders", Key: key(written + i), Payload: payload}
		}
		tx, err := db.BeginTx(ctx, nil)
		require.NoError(b, err)
		require.NoError(b, outbox.Write(ctx, tx, messages...))
		require.NoError(b, tx.Commit())
		written += len(messages)
	}
	return db, outbox
}

// Source calls Done when Left rows are marked. Its marks come one at a time.
type Source struct {
	*couriersql.Source
	Left int
	Done func()
}

// Mark marks rows, and counts them.
func (s *Source) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := s.Source.Mark(ctx, rows)
	marked(err, len(rows), &s.Left, s.Done)
	return err
}

// Stream is the same for a streaming coordinator.
type Stream struct {
	*couriersql.Stream
	Left int
	Done func()
}

// Mark marks rows, and counts them.
func (s *Stream) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := s.Stream.Mark(ctx, rows)
	marked(err, len(rows), &s.Left, s.Done)
	return err
}

func marked(err error, n int, left *int, done func()) {
	if err != nil {
		return
	}
	if *left -= n; *left == 0 {
		done()
	}
}
