package couriersql

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func letter(id string, err error) courier.DeadLetter[Row] {
	return courier.DeadLetter[Row]{
		Record: Row{Seq: 7, ID: id, Topic: "orders", Key: "k", Payload: []byte{0xff}, Headers: "{broken", CreatedAt: 5},
		Error:  err, Reason: courier.ReasonExhausted, Attempts: 3, FailedAt: start,
	}
}

// idAt is the ID of a letter, by its number and version, that first failed at start.
func idAt(place string) string { return fmt.Sprintf("%s.%d", place, start.UnixMicro()) }

func TestDLQKeepsTheRowAsItIs(t *testing.T) { inEach(t, testDLQKeepsTheRowAsItIs) }

func testDLQKeepsTheRowAsItIs(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	sent := letter("a", &fs.PathError{Op: "open", Path: "/x", Err: errors.New("gone")})
	sent.FirstFailedAt, sent.Branch, sent.FailedRedrives, sent.Key = start.Add(-time.Minute), "search", 2, "k\x00\xff"
	require.NoError(t, o.DLQ().Send(t.Context(), sent))
	sent.Key = "k\uFFFD\uFFFD"
	received, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	sent.ID = fmt.Sprintf("1.1.%d", sent.FirstFailedAt.UnixMicro())
	sent.Error = &StoredError{Text: "open /x: gone", Type: "*fs.PathError"}
	require.Equal(t, []courier.DeadLetter[Row]{sent}, received)
	var stored *StoredError
	require.ErrorAs(t, received[0].Error, &stored)
}

func TestDLQIsIdempotent(t *testing.T) { inEach(t, testDLQIsIdempotent) }

func testDLQIsIdempotent(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	q := o.DLQ()
	require.NoError(t, q.Send(t.Context(), letter("a", errors.New("first"))))
	require.NoError(t, q.Send(t.Context(), letter("b", errors.New("other"))))
	again := letter("a", errors.New("second"))
	again.Attempts, again.Reason, again.FailedAt = 5, courier.ReasonPermanent, start.Add(time.Hour)
	require.NoError(t, q.Send(t.Context(), again))

	received, err := q.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, received, 2)
	got := received[0]
	require.Equal(t, "a", got.Record.ID, "it keeps its place")
	require.Equal(t, idAt("1.2"), got.ID, "under a new ID")
	require.Equal(t, start, got.FirstFailedAt)
	require.EqualError(t, got.Error, "second")
	require.Equal(t, 5, got.Attempts)
	require.Equal(t, courier.ReasonPermanent, got.Reason)
	require.Equal(t, start.Add(time.Hour), got.FailedAt)

	// A message that is parked behind its own key says less than the letter.
	behind := letter("a", courier.ErrKeyParked)
	behind.Reason = courier.ReasonKeyParked
	require.NoError(t, q.Send(t.Context(), behind))
	received, err = q.Receive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, got, received[0])
}

func TestDLQReceivesOldestFirstAndDeletes(t *testing.T) {
	inEach(t, testDLQReceivesOldestFirstAndDeletes)
}

func testDLQReceivesOldestFirstAndDeletes(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	q := o.DLQ()
	for _, id := range []string{"c", "a", `b"'`} {
		require.NoError(t, q.Send(t.Context(), letter(id, nil)))
	}
	ids := func(after string, max int) []string {
		letters, err := q.List(t.Context(), after, max)
		require.NoError(t, err)
		got := []string{}
		for _, l := range letters {
			got = append(got, l.Record.ID)
		}
		return got
	}
	first, err := q.Receive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, []string{"c", "a"}, ids("", 2))
	require.Equal(t, []string{"c", "a", `b"'`}, ids("", 10))
	require.Equal(t, []string{"a"}, ids(first[0].ID, 1))
	require.Empty(t, ids("", 0))
	require.Empty(t, ids("", -1))
	_, err = q.List(t.Context(), "c", 10)
	require.EqualError(t, err, `couriersql: listing the dead letters of courier_outbox_dlq behind "c": this is no ID of a letter, which is of the form 17.1.1767225600000000`)

	require.NoError(t, q.Delete(t.Context()))
	require.NoError(t, q.Delete(t.Context(), "c", "1", "1.1", idAt("1.2"), idAt("1.1")+"x", idAt("x1.1"), idAt("01.1"), idAt("1.1")+" ", idAt("1.1")+".1", "1.1.1"))
	require.Len(t, ids("", 10), 3, "none of these is an ID")
	removed, err := q.Remove(t.Context(), idAt("3.1"), idAt("1.1"), idAt("9.1"), idAt("3.1"))
	require.NoError(t, err)
	require.Equal(t, []string{idAt("3.1"), idAt("1.1")}, removed)
	require.Equal(t, []string{"a"}, ids("", 10))
	require.Equal(t, []string{"a"}, ids(first[0].ID, 10), "the place of one that is gone")
	n, err := q.Count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestDLQADeleteThatIsOutOfDateLeavesTheNewerFailure(t *testing.T) {
	inEach(t, testDLQADeleteThatIsOutOfDateLeavesTheNewerFailure)
}

func testDLQADeleteThatIsOutOfDateLeavesTheNewerFailure(t *testing.T, newOutbox maker) {
	q := newOutbox(t).DLQ()
	require.NoError(t, q.Send(t.Context(), letter("a", errors.New("first"))))
	old, err := q.Receive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, idAt("1.1"), old[0].ID)
	require.NoError(t, q.Send(t.Context(), letter("a", errors.New("newer"))))
	old[0].Error = errors.New("of a redrive")
	require.NoError(t, q.Update(t.Context(), old[0]))
	require.NoError(t, q.Update(t.Context(), courier.DeadLetter[Row]{ID: "a"}))
	require.NoError(t, q.Delete(t.Context(), old[0].ID))
	now, err := q.Receive(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, now, 1)
	require.EqualError(t, now[0].Error, "newer")

	// A number is not given again.
	require.NoError(t, q.Delete(t.Context(), now[0].ID))
	require.NoError(t, q.Send(t.Context(), letter("a", errors.New("newest"))))
	now, err = q.Receive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, idAt("3.1"), now[0].ID)
}

func TestDLQParkedKeys(t *testing.T) { inEach(t, testDLQParkedKeys) }

func testDLQParkedKeys(t *testing.T, newOutbox maker) {
	q := newOutbox(t).DLQ()
	for id, key := range map[string]string{"1": "k", "2": "k", "3": "b\x00\xff", "4": "", "5 of a branch": "c"} {
		l := letter(id, nil)
		l.Key = key
		_, l.Branch, _ = strings.Cut(id, " of a ")
		require.NoError(t, q.Send(t.Context(), l))
	}
	for branch, want := range map[string][]string{"": {"k", "b\x00\xff"}, "branch": {"c"}, "another": nil} {
		parked, err := q.ParkedKeys(t.Context(), branch, []string{"k", "", "b\x00\xff", "c"})
		require.NoError(t, err)
		require.ElementsMatch(t, want, parked, branch)
	}
}

// Later messages of a key wait behind one that failed, also for another process.
func TestDLQKeepsTheOrderOfAKey(t *testing.T) { inEach(t, testDLQKeepsTheOrderOfAKey) }

func testDLQKeepsTheOrderOfAKey(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	poison := true
	var published []string
	publish := courier.ProcessFunc(func(_ context.Context, r Row) error {
		if r.ID == "1" && poison {
			return courier.Permanent(errors.New("refused"))
		}
		published = append(published, r.ID)
		return nil
	})
	relay := func(ids ...string) {
		applier := courier.NewDLQApplier(publish, o.DLQ(), courier.DLQPolicy[Row]{Key: func(r Row) string { return r.Key }})
		for _, id := range ids {
			require.NoError(t, applier.Apply(t.Context(), Row{ID: id, Topic: "t", Key: "k"}))
		}
	}
	relay("1", "2")
	relay("1", "3") // the mark of the first was lost
	require.Empty(t, published)
	result, err := courier.Redrive(t.Context(), o.DLQ(), publish, nil)
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 1, Failed: 1, Left: 2}, result)
	poison = false
	result, err = courier.Redrive(t.Context(), o.DLQ(), publish, nil)
	require.NoError(t, err)
	require.Equal(t, 3, result.Succeeded)
	relay("4")
	require.Equal(t, []string{"1", "2", "3", "4"}, published)
}

func TestDLQARedriveIntoTheSameTableIsRefused(t *testing.T) {
	inEach(t, testDLQARedriveIntoTheSameTableIsRefused)
}

func testDLQARedriveIntoTheSameTableIsRefused(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	other := outboxIn(t, o.db, WithTable("events"))
	require.NoError(t, o.DLQ().Send(t.Context(), letter("a", errors.New("boom"))))
	fail := courier.ProcessFunc(func(context.Context, Row) error { return courier.Permanent(errors.New("still")) })
	same := New(o.db, o.dialect) // as another part of the program would make it
	_, err := courier.Redrive(t.Context(), o.DLQ(), courier.NewDLQApplier(fail, same.DLQ(), courier.DLQPolicy[Row]{}), nil)
	require.ErrorIs(t, err, courier.ErrConfig)
	_, err = courier.Redrive(t.Context(), o.DLQ(), courier.ProcessFunc(courier.NewDLQApplier(fail, same.DLQ(), courier.DLQPolicy[Row]{}).Apply), nil)
	require.ErrorIs(t, err, courier.ErrConfig)

	result, err := courier.Redrive(t.Context(), o.DLQ(), courier.NewDLQApplier(fail, other.DLQ(), courier.DLQPolicy[Row]{}), nil)
	require.NoError(t, err)
	require.Equal(t, 1, result.Succeeded, "it has moved")
	n, err := other.DLQ().Count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

// The error of a letter is stored as text and type, also when it was read back
// before.
func TestDLQStoresAStoredErrorAsItIs(t *testing.T) { inEach(t, testDLQStoresAStoredErrorAsItIs) }

func testDLQStoresAStoredErrorAsItIs(t *testing.T, newOutbox maker) {
	q := newOutbox(t).DLQ()
	require.NoError(t, q.Send(t.Context(), letter("a", &fs.PathError{Op: "open", Path: "/x", Err: errors.New("gone")})))
	read, err := q.Receive(t.Context(), 1)
	require.NoError(t, err)
	require.NoError(t, q.Update(t.Context(), read[0]))
	again, err := q.Receive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, &StoredError{Text: "open /x: gone", Type: "*fs.PathError"}, again[0].Error)
}

// Random calls by branches that share a queue, against a model: no letter is lost,
// none is applied that is not there, and what is out of date changes nothing. The
// core has the same for its queue in memory.
func TestDLQAgainstAModel(t *testing.T) { inEach(t, testDLQAgainstAModel) }

func testDLQAgainstAModel(t *testing.T, newOutbox maker) {
	type known struct {
		branch, id, text string
		redriven         int
	}
	branches := []string{"", "1", "11"} // "11" and the message 1 look like "1" and the message 11
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 0))
		q := newOutbox(t).DLQ()
		var model []known // in the order of the places
		var old []string  // IDs that were
		at := func(branch, id string) int {
			return slices.IndexFunc(model, func(k known) bool { return k.branch == branch && k.id == id })
		}
		send := func(ctx context.Context, branch, id, text string) {
			l := letter(id, errors.New(text))
			l.Branch = branch
			require.NoError(t, q.Send(ctx, l))
			if i := at(branch, id); i >= 0 {
				model[i].text = text
			} else {
				model = append(model, known{branch: branch, id: id, text: text})
			}
		}
		for step := range 60 {
			branch, id := branches[random.IntN(3)], fmt.Sprint(random.IntN(12))
			text := fmt.Sprintf("step %d", step)
			letters, err := q.Receive(t.Context(), 100)
			require.NoError(t, err)
			switch op := random.IntN(6); {
			case op < 2:
				send(t.Context(), branch, id, text)
			case op == 2 && len(old) > 0:
				stale := old[random.IntN(len(old))]
				require.NoError(t, q.Delete(t.Context(), stale))
				require.NoError(t, q.Update(t.Context(), courier.DeadLetter[Row]{ID: stale, Branch: branch, FailedRedrives: 99}))
			case op == 3 && len(letters) > 0:
				gone := letters[random.IntN(len(letters))]
				require.NoError(t, q.Delete(t.Context(), gone.ID))
				i := at(gone.Branch, gone.Record.ID)
				model = slices.Delete(model, i, i+1)
			default: // of a branch
				total := len(model)
				stopAt, newer := random.IntN(20), random.IntN(6)
				n, succeeded, failed := 0, 0, 0
				result, err := courier.Redrive(t.Context(), q, courier.ProcessFunc(func(ctx context.Context, r Row) error {
					i := at(branch, r.ID)
					require.GreaterOrEqual(t, i, 0, "it was removed, or is another branch's")
					switch n++; {
					case n == stopAt:
						return &courier.OpenError{Until: start}
					case random.IntN(3) == 0:
						failed++
						model[i].text, model[i].redriven = text, model[i].redriven+1
						return errors.New(text)
					case n == newer: // it fails in the pipeline meanwhile
						send(ctx, branch, r.ID, "newer")
					default:
						model = slices.Delete(model, i, i+1)
					}
					succeeded++
					return nil
				}), &courier.RedriveConfig[Row]{BatchSize: 3, Match: func(l courier.DeadLetter[Row]) bool { return l.Branch == branch }})
				require.Equal(t, err != nil, n == stopAt && n > 0)
				require.Equal(t, courier.RedriveResult{Attempted: succeeded + failed, Succeeded: succeeded, Failed: failed, Left: total - succeeded - failed}, result)
			}
			i := 0
			for l, err := range courier.Letters(t.Context(), q) {
				require.NoError(t, err)
				require.Equal(t, model[i], known{l.Branch, l.Record.ID, l.Error.Error(), l.FailedRedrives})
				i++
			}
			require.Len(t, model, i)
			now, err := q.Receive(t.Context(), 100)
			require.NoError(t, err)
			for _, l := range letters {
				if !slices.ContainsFunc(now, func(n courier.DeadLetter[Row]) bool { return n.ID == l.ID }) {
					old = append(old, l.ID)
				}
			}
		}
	}
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
	require.ErrorContains(t, q.Delete(t.Context(), "a"), "couriersql: deleting 1 dead letter of events_dlq: ")
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
func TestUndecodableRowIsParked(t *testing.T) { inEach(t, testUndecodableRowIsParked) }

func testUndecodableRowIsParked(t *testing.T, newOutbox maker) {
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
			source := o.Source()
			applier := courier.NewDLQApplier(courier.NewDecodingApplier(sink, Row.Message), source.DLQ(), courier.DLQPolicy[Row]{})
			require.NoError(t, courier.RunOnce(t.Context(),
				func(ctx context.Context) ([]Row, error) { return source.Fetch(ctx, 100) }, applier.Apply, source.Mark))

			require.Equal(t, []string{"a", "c"}, delivered)
			require.Empty(t, fetch(t, o, 10))
			letters, err := o.DLQ().Receive(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			require.Equal(t, Row{Seq: 2, ID: "poison", Topic: "orders", Payload: []byte{0xfe, 0}, Headers: `{"n":1`, CreatedAt: start.UnixMicro()}, letters[0].Record)
			require.Equal(t, courier.ReasonPermanent, letters[0].Reason)
			require.ErrorContains(t, letters[0].Error, `message "poison": the column headers is not a JSON object of strings`)
			require.Equal(t, "*json.SyntaxError", letters[0].Error.(*StoredError).Type)
		})
	}
}

// A queue that cannot take a record leaves it pending.
func TestRowStaysPendingWhenItCannotBeParked(t *testing.T) {
	inEach(t, testRowStaysPendingWhenItCannotBeParked)
}

func testRowStaysPendingWhenItCannotBeParked(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	write(t, o, named("a")...)
	execute(t, o.db, `DROP TABLE courier_outbox_dlq`)
	fail := courier.ProcessFunc(func(context.Context, Row) error { return errors.New("boom") })
	source := o.Source()
	applier := courier.NewDLQApplier(fail, source.DLQ(), courier.DLQPolicy[Row]{})
	err := courier.RunOnce(t.Context(),
		func(ctx context.Context) ([]Row, error) { return source.Fetch(ctx, 100) }, applier.Apply, source.Mark)
	require.ErrorIs(t, err, courier.ErrPark)
	require.NoError(t, o.Close()) // a plain function cannot give back what it fetched
	require.Equal(t, []string{"a"}, idsOf(fetch(t, o, 10)))
}

func TestALetterOfALargeMessage(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		payload := bytes.Repeat([]byte{0, 0xff, '\'', 0xc3}, 75_000)
		write(t, o, Message{ID: "a", Topic: "t", Payload: payload})
		s := o.Source()
		rows := take(t, s, 1)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		require.NoError(t, s.Mark(t.Context(), rows))
		letters, err := o.DLQ().Receive(t.Context(), 1)
		require.NoError(t, err)
		require.True(t, bytes.Equal(payload, letters[0].Record.Payload))
	})
}
