package couriersql

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func letter(id string, err error) courier.DeadLetter[Row] {
	return courier.DeadLetter[Row]{
		Record: Row{Seq: 7, ID: id, Topic: "orders", Key: "k", Payload: []byte{0xff}, Headers: "{broken", CreatedAt: 5},
		Error:  err, Reason: courier.Exhausted, Attempts: 3, FailedAt: start,
	}
}

func TestDLQKeepsTheRowAsItIs(t *testing.T) {
	o := newOutbox(t)
	sent := letter("a", &fs.PathError{Op: "open", Path: "/x", Err: errors.New("gone")})
	require.NoError(t, o.DLQ().Send(t.Context(), sent))
	received, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	sent.ID = "a"
	sent.Error = &StoredError{Text: "open /x: gone", Type: "*fs.PathError"}
	require.Equal(t, []courier.DeadLetter[Row]{sent}, received)
	var stored *StoredError
	require.ErrorAs(t, received[0].Error, &stored)
}

func TestDLQIsIdempotent(t *testing.T) {
	o := newOutbox(t)
	q := o.DLQ()
	require.NoError(t, q.Send(t.Context(), letter("a", errors.New("first"))))
	require.NoError(t, q.Send(t.Context(), letter("b", errors.New("other"))))
	again := letter("a", errors.New("second"))
	again.Attempts, again.Reason, again.FailedAt = 5, courier.PermanentFailure, start.Add(time.Hour)
	require.NoError(t, q.Send(t.Context(), again))

	received, err := q.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, received, 2)
	got := received[0]
	require.Equal(t, "a", got.ID, "it keeps its place")
	require.EqualError(t, got.Error, "second")
	require.Equal(t, 5, got.Attempts)
	require.Equal(t, courier.PermanentFailure, got.Reason)
	require.Equal(t, start.Add(time.Hour), got.FailedAt)
	require.EqualValues(t, start.UnixMicro(), count(t, o.db, `SELECT first_failed_at FROM courier_outbox_dlq WHERE id = 'a'`))
}

func TestDLQReceivesOldestFirstAndDeletes(t *testing.T) {
	o := newOutbox(t)
	q := o.DLQ()
	for _, id := range []string{"c", "a", `b"'`} {
		require.NoError(t, q.Send(t.Context(), letter(id, nil)))
	}
	ids := func(max int) []string {
		letters, err := q.Receive(t.Context(), max)
		require.NoError(t, err)
		got := []string{}
		for _, l := range letters {
			got = append(got, l.ID)
		}
		return got
	}
	require.Equal(t, []string{"c", "a"}, ids(2))
	require.Equal(t, []string{"c", "a", `b"'`}, ids(10))
	require.Empty(t, ids(0))
	require.Empty(t, ids(-1))
	require.NoError(t, q.Delete(t.Context()))
	require.NoError(t, q.Delete(t.Context(), `b"'`, "c", "unknown"))
	require.NoError(t, q.Delete(t.Context(), "c"))
	require.Equal(t, []string{"a"}, ids(10))
	n, err := q.Count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestDLQSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	db := open(t, path)
	require.NoError(t, outboxIn(t, db).DLQ().Send(t.Context(), letter("a", errors.New("boom"))))
	require.NoError(t, db.Close())

	letters, err := outboxIn(t, open(t, path)).DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.EqualError(t, letters[0].Error, "boom")
}

func TestDLQWithoutATable(t *testing.T) {
	q := New(open(t, filepath.Join(t.TempDir(), "test.db")), SQLite, WithTable("events")).DLQ()
	err := q.Send(t.Context(), letter("a", errors.New("boom")))
	require.ErrorContains(t, err, `couriersql: parking message "a" (topic "orders", key "k") in events_dlq: `)
	require.ErrorContains(t, err, "call Migrate first")
	_, err = q.Receive(t.Context(), 5)
	require.ErrorContains(t, err, "couriersql: reading up to 5 dead letters of events_dlq: ")
	require.ErrorContains(t, q.Delete(t.Context(), "a"), "couriersql: deleting 1 dead letters of events_dlq: ")
	_, err = q.Count(t.Context())
	require.ErrorContains(t, err, "couriersql: counting the dead letters of events_dlq: ")
}

func TestTypeOfNamesTheCause(t *testing.T) {
	syntax := json.Unmarshal([]byte("{"), new(any))
	plain := errors.New("plain")
	for want, err := range map[string]error{
		"*errors.errorString":  plain,
		"*json.SyntaxError":    fmt.Errorf("decoding: %w", syntax),
		"*courier.DecodeError": courier.Permanent(&courier.DecodeError{Err: plain}),
		"*fs.PathError":        &courier.RetryError{Last: errors.Join(&fs.PathError{Err: plain}, syntax)},
		"*courier.PanicError":  &courier.PanicError{Value: "boom"},
	} {
		require.Equal(t, want, typeOf(err))
	}
	require.Equal(t, "*errors.errorString", typeOf(&courier.RetryError{Last: fmt.Errorf("x: %w", plain)}))
}

// A row that cannot be decoded is parked with its bytes, and its neighbours are
// delivered and marked.
func TestUndecodableRowIsParked(t *testing.T) {
	for name, opts := range keeping {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, opts...)
			write(t, o, Message{ID: "a", Topic: "orders"}, Message{ID: "poison", Topic: "orders", Payload: []byte{0xfe, 0}}, Message{ID: "c", Topic: "orders"})
			execute(t, o.db, `UPDATE courier_outbox SET headers = '{"n":1' WHERE id = 'poison'`)

			var delivered []string
			sink := courier.ProcessFunc(func(_ context.Context, m Message) error {
				delivered = append(delivered, m.ID)
				return nil
			})
			applier := courier.NewDLQApplier(courier.NewDecodingApplier(sink, Row.Message), o.DLQ())
			source := o.Source()
			require.NoError(t, courier.RunOnce(t.Context(),
				func(ctx context.Context) ([]Row, error) { return source.Fetch(ctx, 100) }, applier.Apply, source.Mark))

			require.Equal(t, []string{"a", "c"}, delivered)
			require.Empty(t, fetch(t, o, 10))
			letters, err := o.DLQ().Receive(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			require.Equal(t, Row{Seq: 2, ID: "poison", Topic: "orders", Payload: []byte{0xfe, 0}, Headers: `{"n":1`, CreatedAt: start.UnixMicro()}, letters[0].Record)
			require.Equal(t, courier.PermanentFailure, letters[0].Reason)
			require.ErrorContains(t, letters[0].Error, `message "poison": the column headers is not a JSON object of strings`)
			require.Equal(t, "*json.SyntaxError", letters[0].Error.(*StoredError).Type)
		})
	}
}

// A queue that cannot take a record leaves it pending.
func TestRowStaysPendingWhenItCannotBeParked(t *testing.T) {
	o := newOutbox(t)
	write(t, o, named("a")...)
	execute(t, o.db, `DROP TABLE courier_outbox_dlq`)
	fail := courier.ProcessFunc(func(context.Context, Row) error { return errors.New("boom") })
	applier := courier.NewDLQApplier(fail, o.DLQ())
	source := o.Source()
	err := courier.RunOnce(t.Context(),
		func(ctx context.Context) ([]Row, error) { return source.Fetch(ctx, 100) }, applier.Apply, source.Mark)
	require.ErrorIs(t, err, courier.ErrPark)
	require.Equal(t, []string{"a"}, idsOf(fetch(t, o, 10)))
}
