package couriersql

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func TestWriteRoundTrip(t *testing.T) { inEach(t, testWriteRoundTrip) }

func testWriteRoundTrip(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	created := start.Add(-time.Hour)
	full := Message{
		ID: "a", Topic: "orders", Key: "k'\"😀", Payload: []byte{0, 1, 0xff},
		Headers: map[string]string{"type": "placed<&>", "empty": ""}, Trace: map[string]string{"traceparent": "00-1"},
		CreatedAt: created,
	}
	bare := Message{ID: "b", Topic: "orders"}
	write(t, o, full, bare)

	rows := fetch(t, o, 10)
	require.Len(t, rows, 2)
	got, err := rows[0].Message()
	require.NoError(t, err)
	require.Equal(t, full, got)
	got, err = rows[1].Message()
	require.NoError(t, err)
	require.Empty(t, got.Payload)
	got.Payload = nil // or empty, as the driver has it
	require.Equal(t, Message{ID: "b", Topic: "orders", CreatedAt: start}, got)
	require.Equal(t, []string{"", ""}, []string{rows[1].Headers, rows[1].Trace})
}

func TestWriteInARolledBackTransactionLeavesNothing(t *testing.T) {
	inEach(t, testWriteInARolledBackTransactionLeavesNothing)
}

func testWriteInARolledBackTransactionLeavesNothing(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, o.Write(t.Context(), tx, named("a", "b")...))
	require.NoError(t, tx.Rollback())
	require.Empty(t, fetch(t, o, 10))
}

func TestWriteNeverCommits(t *testing.T) { inEach(t, testWriteNeverCommits) }

func testWriteNeverCommits(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, o.Write(t.Context(), tx, named("a")...))
	require.Empty(t, fetch(t, o, 10))
	require.NoError(t, tx.Commit())
	require.Equal(t, []string{"a"}, idsOf(fetch(t, o, 10)))
}

func TestWriteUsesTheTransactionsConnectionOnly(t *testing.T) {
	inEach(t, testWriteUsesTheTransactionsConnectionOnly)
}

func testWriteUsesTheTransactionsConnectionOnly(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	o.db.SetMaxOpenConns(1) // any other connection would be waited for until the test times out
	write(t, o, named("a")...)
	require.Equal(t, []string{"a"}, idsOf(fetch(t, o, 10)))
}

func TestWriteManyKeepsTheOrder(t *testing.T) { inEach(t, testWriteManyKeepsTheOrder) }

func testWriteManyKeepsTheOrder(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	var ids []string
	for i := range 2*o.grammar.rowsPerInsert + 50 {
		ids = append(ids, fmt.Sprint(i))
	}
	write(t, o, named(ids...)...)
	require.Equal(t, ids, idsOf(fetch(t, o, 10_000)))
}

func TestWriteNothing(t *testing.T) { inEach(t, testWriteNothing) }

func testWriteNothing(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	write(t, o)
	require.Empty(t, fetch(t, o, 10))
}

func TestWriteMakesUniqueIDs(t *testing.T) { inEach(t, testWriteMakesUniqueIDs) }

func testWriteMakesUniqueIDs(t *testing.T, newOutbox maker) {
	o := newOutbox(t) // with a clock that stands still
	messages := make([]Message, 1000)
	for i := range messages {
		messages[i].Topic = "orders"
	}
	write(t, o, messages...)
	seen := map[string]bool{}
	for _, row := range fetch(t, o, 1000) {
		require.Regexp(t, "^[0-9a-f]{32}$", row.ID)
		seen[row.ID] = true
	}
	require.Len(t, seen, 1000)
	require.Empty(t, messages[0].ID, "the caller's messages were modified")
}

func TestWriteDuplicateID(t *testing.T) { inEach(t, testWriteDuplicateID) }

func testWriteDuplicateID(t *testing.T, newOutbox maker) {
	for name, test := range map[string]struct {
		messages []Message
		want     string
	}{
		"in the table": {named("new", "old"), `"old"`},
		"in the call":  {named("new", "twin", "twin"), `"twin", twice in this call`},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			write(t, o, named("old")...)
			tx, err := o.db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			err = o.Write(t.Context(), tx, test.messages...)
			require.ErrorIs(t, err, ErrDuplicateID)
			require.ErrorContains(t, err, "to courier_outbox: a message with this ID was written before: "+test.want+"; roll the transaction back")
			require.NoError(t, tx.Rollback())
			require.Equal(t, []string{"old"}, idsOf(fetch(t, o, 10)))
		})
	}
}

func TestWriteChecksMessagesBeforeItWritesAny(t *testing.T) {
	inEach(t, testWriteChecksMessagesBeforeItWritesAny)
}

func testWriteChecksMessagesBeforeItWritesAny(t *testing.T, newOutbox maker) {
	for want, bad := range map[string]Message{
		"has no Topic":             {ID: "bad"},
		"has an ID that is not":    {ID: "bad\x00", Topic: "orders"},
		"has an ID of 2001 bytes":  {ID: strings.Repeat("i", 2001), Topic: "orders"},
		"has a Topic that is not":  {ID: "bad", Topic: "\xff"},
		"has a Key that is not":    {ID: "bad", Topic: "orders", Key: "\xff"},
		`has in Headers an entry`:  {ID: "bad", Topic: "orders", Headers: map[string]string{"n": "\xff"}},
		`has in Trace an entry "`:  {ID: "bad", Topic: "orders", Trace: map[string]string{"n\x00": ""}},
		`(ID "bad") has no Topic:`: {ID: "bad", Payload: []byte("secret")},
	} {
		t.Run(want, func(t *testing.T) {
			o := newOutbox(t)
			tx, err := o.db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			err = o.Write(t.Context(), tx, append(named("good"), bad)...)
			require.ErrorContains(t, err, want)
			require.ErrorContains(t, err, "nothing was written, as message 1 ")
			require.NotContains(t, err.Error(), "secret")
			require.NoError(t, tx.Commit())
			require.Empty(t, fetch(t, o, 10))
		})
	}
}

func TestWriteTraceHeaders(t *testing.T) { inEach(t, testWriteTraceHeaders) }

func testWriteTraceHeaders(t *testing.T, newOutbox maker) {
	type key struct{}
	calls := 0
	o := newOutbox(t, WithTraceHeaders(func(ctx context.Context) map[string]string {
		calls++
		return map[string]string{"traceparent": ctx.Value(key{}).(string)}
	}))
	own := Message{ID: "own", Topic: "t", Trace: map[string]string{"b3": "1"}}
	none := Message{ID: "none", Topic: "t", Trace: map[string]string{}}
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	ctx := context.WithValue(t.Context(), key{}, "00-1")
	require.NoError(t, o.Write(ctx, tx, append(named("a", "b"), own, none)...))
	require.NoError(t, tx.Commit())

	var traces []string
	for _, row := range fetch(t, o, 10) {
		traces = append(traces, row.Trace)
	}
	require.Equal(t, []string{`{"traceparent":"00-1"}`, `{"traceparent":"00-1"}`, `{"b3":"1"}`, ""}, traces)
	require.Equal(t, 1, calls)
}

func TestWriteToNoTransaction(t *testing.T) { inEach(t, testWriteToNoTransaction) }

func testWriteToNoTransaction(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	err := o.Write(t.Context(), nil, named("a")...)
	require.ErrorIs(t, err, courier.ErrConfig)
	require.ErrorContains(t, err, "tx is nil")
}

func TestWriteWithoutATable(t *testing.T) {
	o := New(open(t, t.TempDir()+"/test.db"), SQLite)
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	err = o.Write(t.Context(), tx, named("a")...)
	require.ErrorContains(t, err, "couriersql: writing 1 message to courier_outbox: ")
	require.ErrorContains(t, err, "no such table")
	require.True(t, strings.HasSuffix(err.Error(), ": call Migrate first"), err)
	require.NoError(t, tx.Rollback())
}

// What is said of one thing says it in the singular.
func TestErrorsCountOne(t *testing.T) {
	o := New(open(t, t.TempDir()+"/test.db"), SQLite)
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	said := []error{o.Write(t.Context(), tx, named("a")...), o.Write(t.Context(), tx, Message{ID: "a"})}
	require.NoError(t, tx.Rollback())
	row, s, q := Row{Seq: 1, ID: "a"}, o.Source(), o.DLQ()
	_, err = s.Fetch(t.Context(), 1)
	said = append(said, err, s.Mark(t.Context(), []Row{row}), s.Fail(t.Context(), []courier.FailedRecord[Row]{{Record: row}}))
	_, err = q.Receive(t.Context(), 1)
	said = append(said, err, q.Delete(t.Context(), "1.1.1"))
	_, err = o.Requeue(t.Context(), "1.1.1")
	said = append(said, err)
	_, err = q.ParkedKeys(t.Context(), "", []string{"k"})
	said = append(said, err)
	for _, err := range said {
		require.ErrorContains(t, err, " 1 ")
		require.NotRegexp(t, `\b1 ((dead|pending) )?[a-z]+s\b`, err.Error())
	}
	require.Equal(t, []string{"0 rows", "1 row", "2 rows"}, []string{plural(0, "row"), plural(1, "row"), plural(2, "row")})
}
