package couriersql

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

// fuzzedOutbox is one outbox for all inputs, which leave it empty.
func fuzzedOutbox(f *testing.F) *Outbox {
	f.Helper()
	db, err := sql.Open("sqlite", SQLiteDSN(filepath.Join(f.TempDir(), "fuzz.db")))
	require.NoError(f, err)
	o := New(db, SQLite, WithClock(&fixed{start}))
	f.Cleanup(func() { require.NoError(f, errors.Join(o.Close(), db.Close())) })
	require.NoError(f, o.Migrate(f.Context()))
	return o
}

// FuzzStoredLetter: whatever a letter says, it is stored, and read back as it
// was, or as near as the columns say; and what was read back can be sent again
// without a further change.
func FuzzStoredLetter(f *testing.F) {
	o := fuzzedOutbox(f)
	f.Add("a", "orders", "k", []byte{0xff}, "{broken", "gone", "exhausted", 3, int64(1), int64(2), 4, "search", "k\x00\xff")
	f.Add("", "", "", []byte(nil), "", "", "", 0, int64(0), int64(0), 0, "", "")
	f.Add("\x00", "é\xff", "'\"", []byte("'; --"), `{"a":"b"}`, "x\x00y\xff", "\xff", -1, int64(-1), int64(1)<<62, 1<<31, "\x00", "\uFFFD")
	f.Fuzz(func(t *testing.T, id, topic, key string, payload []byte, headers, text, reason string, attempts int, first, last int64, redriven int, branch, orderKey string) {
		q := o.DLQ()
		defer execute(t, o.db, `DELETE FROM "`+o.table+`_dlq"`)
		sent := courier.DeadLetter[Row]{
			Record: Row{Seq: 7, ID: id, Topic: topic, Key: key, Payload: payload, Headers: headers, Trace: headers, CreatedAt: last},
			Error:  fmt.Errorf("step: %w", errors.New(text)), Reason: courier.Reason(reason), Attempts: attempts,
			FirstFailedAt: time.UnixMicro(first).UTC(), FailedAt: time.UnixMicro(last).UTC(), FailedRedrives: redriven, Branch: branch, Key: orderKey,
		}
		require.NoError(t, q.Send(t.Context(), sent))
		letters, err := q.Receive(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		got := letters[0]
		var stored *StoredError
		require.ErrorAs(t, got.Error, &stored)
		require.Equal(t, plain(sent.Error.Error()), stored.Text)
		require.NotEmpty(t, stored.Type)
		want := sent
		want.Branch = plain(branch)
		want.ID, want.Error, want.Key = got.ID, got.Error, plain(orderKey)
		if len(payload) == 0 { // nil and empty are the same
			want.Record.Payload = got.Record.Payload
		}
		if sent.FirstFailedAt.IsZero() {
			want.FirstFailedAt = sent.FailedAt
		}
		require.Equal(t, want, got)

		// Neither a redrive in vain nor the pipeline adds to what it says.
		require.NoError(t, q.Update(t.Context(), got))
		letters, err = q.Receive(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		want.ID = letters[0].ID
		require.Equal(t, want, letters[0])
		require.NotEqual(t, got.ID, want.ID, "under the ID of another version")

		require.NoError(t, q.Delete(t.Context(), got.ID))
		n, err := q.Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n, "the ID is that of a version that is gone")
		require.NoError(t, q.Delete(t.Context(), want.ID))
		n, err = q.Count(t.Context())
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// FuzzHeaders: headers and trace headers are read back from the outbox as they
// were written, or are refused, and then nothing is written.
func FuzzHeaders(f *testing.F) {
	o := fuzzedOutbox(f)
	f.Add("id", "orders", "k", []byte("{}"), "name", "value", "traceparent", "00-1-2-01")
	f.Add("", "t", "", []byte(nil), "", "", "", "")
	f.Add("\x00", "\xff", "\uFFFD", []byte{0}, "a\xff", "\x00<&>\u2028", `"`, `\`)
	f.Fuzz(func(t *testing.T, id, topic, key string, payload []byte, name, value, traceName, traceValue string) {
		defer execute(t, o.db, `DELETE FROM "`+o.table+`"`)
		sent := Message{
			ID: id, Topic: topic, Key: key, Payload: payload,
			Headers: map[string]string{name: value, "more": name}, Trace: map[string]string{traceName: traceValue},
		}
		tx, err := o.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		err = o.Write(t.Context(), tx, sent)
		require.NoError(t, tx.Commit())
		rows := fetch(t, o, 10)
		if err != nil {
			require.Empty(t, rows)
			return
		}
		require.Len(t, rows, 1)
		got, err := rows[0].Message()
		require.NoError(t, err)
		require.Equal(t, valid(sent.Headers), got.Headers)
		require.Equal(t, valid(sent.Trace), got.Trace)
		require.Equal(t, topic, got.Topic)
		require.Equal(t, key, got.Key)
		require.Equal(t, string(payload), string(got.Payload))
		if id != "" {
			require.Equal(t, id, got.ID)
		}
	})
}

// valid is what JSON makes of headers.
func valid(headers map[string]string) map[string]string {
	plain := maps.Clone(headers)
	for name, value := range headers {
		delete(plain, name)
		plain[strings.ToValidUTF8(name, "\uFFFD")] = strings.ToValidUTF8(value, "\uFFFD")
	}
	return plain
}
