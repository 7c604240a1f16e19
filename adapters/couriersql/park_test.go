package couriersql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

var silent = courier.WithLogger(slog.New(slog.DiscardHandler))

// letterFor is a letter of a row that was handed out.
func letterFor(row Row) courier.DeadLetter[Row] {
	return courier.DeadLetter[Row]{Record: row, Key: row.Key, Error: errors.New("boom"), Reason: courier.ReasonExhausted, Attempts: 3, FailedAt: start}
}

// lettersOf are the messages of the letters, each with how often it was sent.
func lettersOf(t *testing.T, o *Outbox) []string {
	t.Helper()
	letters, err := o.DLQ().Receive(t.Context(), 1000)
	require.NoError(t, err)
	list := []string{}
	for _, l := range letters {
		list = append(list, l.Record.ID+"."+strings.Split(l.ID, ".")[1])
	}
	return list
}

func pendingOf(t *testing.T, o *Outbox) []string {
	t.Helper()
	rows, err := o.db.QueryContext(t.Context(), `SELECT id FROM courier_outbox WHERE processed_at IS NULL ORDER BY seq`)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }()
	ids := []string{}
	for rows.Next() {
		var id string
		require.NoError(t, rows.Scan(&id))
		ids = append(ids, id)
	}
	require.NoError(t, rows.Err())
	return ids
}

// inEachWay runs a test for each way to hold rows, deleting and keeping them.
func inEachWay(t *testing.T, test func(t *testing.T, o *Outbox)) {
	for name, newOutbox := range ways() {
		for keep, opts := range keeping {
			t.Run(name+" "+keep, func(t *testing.T) { test(t, newOutbox(t, opts...)) })
		}
	}
}

// isLocked reports whether a source holds rows by a transaction.
func isLocked(s *Source) bool {
	_, ok := s.holder.(*locked)
	return ok
}

// At every instant there is a pending row or its letter: never both, and never
// neither.
func TestALetterComesWithItsMark(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a", "b", "c")...)
		s := o.Source()
		s.RenewEvery()
		rows := take(t, s, 10)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		if isLocked(s) {
			require.Equal(t, []string{"a", "b", "c"}, pendingOf(t, o))
			require.Empty(t, lettersOf(t, o))
		} else {
			require.Equal(t, []string{"b", "c"}, pendingOf(t, o))
			require.Equal(t, []string{"a.1"}, lettersOf(t, o))
		}
		require.NoError(t, s.Mark(t.Context(), rows[:2]))
		require.Equal(t, []string{"c"}, pendingOf(t, o))
		require.Equal(t, []string{"a.1"}, lettersOf(t, o))
		require.NoError(t, s.Mark(t.Context(), rows[:2]), "again")
		require.NoError(t, s.Release(t.Context(), rows[2:], 0))
		require.Equal(t, []string{"c"}, idsOf(take(t, s, 10)))
		letters, err := o.DLQ().Receive(t.Context(), 10)
		require.NoError(t, err)
		row := rows[0]
		row.claim, row.origin = 0, nil // which nobody needs any more
		require.Equal(t, row, letters[0].Record)
	})
}

// What the queue refuses stays pending, and keeps no other row from its mark.
func TestALetterThatIsRefusedLeavesItsRow(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a", "b", "c")...)
		s := o.Source()
		s.RenewEvery()
		rows := take(t, s, 10)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[2])))
		require.NoError(t, s.Renew(t.Context(), rows[:2]))
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, s.DLQ().Send(cancelled, letterFor(rows[0])), context.Canceled)
		for _, row := range rows[:2] {
			bad := letterFor(row)
			bad.Record.Payload, bad.Record.Topic = nil, "\xff\x00" // which PostgreSQL does not take
			if o.dialect == SQLite {
				back := takeDLQAway(t, o.db)
				require.ErrorContains(t, s.DLQ().Send(t.Context(), bad), "no such table")
				back()
			} else {
				require.ErrorContains(t, s.DLQ().Send(t.Context(), bad), `parking message "`+row.ID+`"`)
			}
		}
		require.NoError(t, s.Mark(t.Context(), rows[1:]))
		require.Equal(t, []string{"a"}, pendingOf(t, o))
		require.Equal(t, []string{"c.1"}, lettersOf(t, o))
		require.NoError(t, s.Release(t.Context(), rows[:1], 0))
		rows = take(t, s, 10)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		require.NoError(t, s.Mark(t.Context(), rows))
		require.Empty(t, pendingOf(t, o))
		require.Equal(t, []string{"c.1", "a.1"}, lettersOf(t, o))
	})
}

// A mark that fails takes the letter along.
func TestAMarkThatIsRefusedLeavesNoLetter(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		for _, text := range refusing(o.dialect) {
			execute(t, o.db, text)
		}
		write(t, o, named("a")...)
		s := o.Source()
		rows := take(t, s, 10)
		execute(t, o.db, `INSERT INTO refused VALUES ($1)`, rows[0].Seq)
		require.ErrorContains(t, s.DLQ().Send(t.Context(), letterFor(rows[0])), "refused")
		require.NoError(t, o.Close())
		require.Equal(t, []string{"a"}, pendingOf(t, o))
		require.Empty(t, lettersOf(t, o))
	})
}

// When the reply to a Send was lost, it is sent again.
func TestALetterThatIsSentTwice(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a", "b")...)
		s := o.Source()
		rows := take(t, s, 10)
		for range 2 {
			require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		}
		require.NoError(t, s.Mark(t.Context(), rows))
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		require.ErrorIs(t, s.DLQ().Send(t.Context(), letterFor(rows[1])), ErrLeaseLost, "it is marked")
		require.Empty(t, pendingOf(t, o))
		require.Equal(t, []string{"a.1"}, lettersOf(t, o))
	})
}

// A row that is in other hands is not parked by who has lost it.
func TestARowThatIsLostIsNotParked(t *testing.T) {
	for name, h := range holds {
		for keep, opts := range keeping {
			t.Run(name+" "+keep, func(t *testing.T) {
				o := h.newOutbox(t, append(opts, h.opts...)...)
				write(t, o, named("a", "b")...)
				stale, owner := o.Source(), o.Source()
				old := take(t, stale, 10)
				lose(t, stale, old)
				var rows []Row
				require.Eventually(t, func() bool {
					if rows = take(t, owner, 10); len(rows) == 1 { // the fetch met the end of the session
						require.NoError(t, owner.Release(t.Context(), rows, 0))
					}
					return len(rows) == 2
				}, 10*time.Second, time.Millisecond)
				require.ErrorIs(t, stale.DLQ().Send(t.Context(), letterFor(old[0])), ErrLeaseLost)
				require.NoError(t, owner.Mark(t.Context(), rows[:1]))
				require.ErrorIs(t, stale.DLQ().Send(t.Context(), letterFor(old[0])), ErrLeaseLost, "it was delivered")
				require.Empty(t, lettersOf(t, o))
				require.NoError(t, owner.DLQ().Send(t.Context(), letterFor(rows[1])))
				require.NoError(t, owner.Mark(t.Context(), rows))
				require.NoError(t, stale.DLQ().Send(t.Context(), letterFor(old[1])), "somebody has parked it")
				require.NoError(t, stale.Mark(t.Context(), old))
				require.Empty(t, pendingOf(t, o))
				require.Equal(t, []string{"b.1"}, lettersOf(t, o))
			})
		}
	}
}

// lose has a source lose what it holds.
func lose(t *testing.T, s *Source, rows []Row) {
	t.Helper()
	if s.outbox.lease > 0 {
		makeDue(t, s.outbox)
	} else {
		cut(t, s)
		require.ErrorIs(t, s.Renew(t.Context(), rows), ErrLeaseLost)
	}
}

func TestOneWhoIsElectedNoMoreParksNothing(t *testing.T) {
	o := newPostgres(t, WithStrictOrder())
	write(t, o, named("a")...)
	first, second := o.Source(), o.Source()
	old := take(t, first, 10)
	cut(t, first)
	require.Error(t, first.DLQ().Send(t.Context(), letterFor(old[0])))
	require.Eventually(t, func() bool { return len(take(t, second, 10)) == 1 }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, first.Renew(t.Context(), old), ErrLeaseLost)
	require.ErrorIs(t, first.DLQ().Send(t.Context(), letterFor(old[0])), ErrLeaseLost)
	require.Empty(t, lettersOf(t, o))
	require.Equal(t, []string{"a"}, pendingOf(t, o))
}

// A transaction that is lost takes its letters along, and leaves their rows.
func TestLettersOfALostTransaction(t *testing.T) {
	for keep, opts := range keeping {
		t.Run(keep, func(t *testing.T) {
			o := newPostgres(t, opts...)
			write(t, o, named("a", "b", "c")...)
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 10)
			require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
			cut(t, s)
			require.Eventually(t, func() bool { return s.Mark(t.Context(), rows[:2]) == nil }, 10*time.Second, time.Millisecond)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[2])))
			require.Equal(t, []string{"a", "c"}, pendingOf(t, o))
			require.Empty(t, lettersOf(t, o))

			rows = take(t, s, 10)
			require.Equal(t, []string{"a"}, idsOf(rows))
			require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
			require.NoError(t, s.Mark(t.Context(), rows))
			require.Equal(t, []string{"c"}, pendingOf(t, o))
			require.Equal(t, []string{"a.1"}, lettersOf(t, o))
		})
	}
}

// The rows of a lost transaction may be in hand once more, fetched ahead, when
// the mark of what was delivered comes.
func TestLettersOfALostTransactionWhoseRowsAreFetchedAhead(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a", "b")...)
	s := o.Source()
	s.RenewEvery()
	rows := take(t, s, 10)
	require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
	cut(t, s)
	var again []Row
	require.Eventually(t, func() bool {
		again = append(again, take(t, s, 10)...)
		return len(again) == 2
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Mark(t.Context(), rows))
	require.Equal(t, []string{"a"}, pendingOf(t, o), "b was delivered")
	require.NoError(t, s.DLQ().Send(t.Context(), letterFor(again[0])))
	require.NoError(t, s.Mark(t.Context(), again))
	require.Empty(t, pendingOf(t, o))
	require.Equal(t, []string{"a.1"}, lettersOf(t, o))
}

// A row whose transaction was lost, and which nobody else has, can be parked.
func TestALateLetter(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a")...)
	s := o.Source()
	rows := take(t, s, 10)
	cut(t, s)
	require.ErrorIs(t, s.Renew(t.Context(), rows), ErrLeaseLost)
	require.Eventually(t, func() bool { return s.DLQ().Send(t.Context(), letterFor(rows[0])) == nil }, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Mark(t.Context(), rows))
	require.Empty(t, pendingOf(t, o))
	require.Equal(t, []string{"a.1"}, lettersOf(t, o))
}

// A branch of a fan-out that gives a record up leaves it to the others.
func TestABranchParksTheLetterAlone(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a")...)
		s := o.Source()
		boom := courier.ProcessFunc(func(context.Context, Row) error { return errors.New("boom") })
		refused := courier.NewFanOutApplier(boom, courier.NewDLQApplier(boom, s.DLQ(), courier.DLQPolicy[Row]{}))
		require.ErrorIs(t, courier.NewPollingCoordinator(s, refused).Start(t.Context()), courier.ErrConfig)

		fan := courier.NewFanOutApplier(boom, courier.NewDLQApplier(boom, o.DLQ(), courier.DLQPolicy[Row]{}))
		require.Error(t, courier.RunOnce(t.Context(),
			func(ctx context.Context) ([]Row, error) { return s.Fetch(ctx, 10) }, fan.Apply, s.Mark, silent))
		require.Equal(t, []string{"a"}, pendingOf(t, o))
		require.Equal(t, []string{"a.1"}, lettersOf(t, o))
		require.True(t, s.DLQ().SameQueue(o.DLQ()))
	})
}

// Two branches that share the queue and give one message up each get it later, and
// each keeps the order of a key by itself.
func TestTwoBranchesParkOneMessageInOneQueue(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, Message{ID: "1", Topic: "t", Key: "k"}, Message{ID: "2", Topic: "t", Key: "k"}, Message{ID: "3", Topic: "t", Key: "k"})
		var mu sync.Mutex
		got := map[string][]string{}
		bad := map[string]string{"mail": "1 2", "search": "2"} // messages that a branch refuses
		deliver := func(branch string) courier.Applier[Row] {
			return courier.ProcessFunc(func(_ context.Context, r Row) error {
				mu.Lock()
				defer mu.Unlock()
				if strings.Contains(bad[branch], r.ID) {
					return courier.Permanent(errors.New("refused"))
				}
				got[branch] = append(got[branch], r.ID)
				return nil
			})
		}
		var branches []courier.Branch[Row]
		for _, name := range []string{"mail", "search"} {
			policy := courier.DLQPolicy[Row]{Branch: name, Key: func(r Row) string { return r.Key }}
			branches = append(branches, courier.Branch[Row]{Name: name, Applier: courier.NewDLQApplier(deliver(name), o.DLQ(), policy)})
		}
		fan := courier.NewFanOutFromConfig(courier.FanOutConfig[Row]{Branches: branches})
		s := o.Source()
		require.NoError(t, courier.RunOnce(t.Context(),
			func(ctx context.Context) ([]Row, error) { return s.Fetch(ctx, 10) }, fan.Apply, s.Mark, silent))
		require.Empty(t, pendingOf(t, o))
		require.Equal(t, map[string][]string{"search": {"1"}}, got)
		require.ElementsMatch(t, []string{"1.1", "2.1", "3.1", "2.1", "3.1"}, lettersOf(t, o))

		clear(bad)
		for _, name := range []string{"search", "mail"} {
			mine := func(l courier.DeadLetter[Row]) bool { return l.Branch == name }
			_, err := courier.Redrive(t.Context(), o.DLQ(), deliver(name), &courier.RedriveConfig[Row]{Match: mine})
			require.NoError(t, err)
		}
		require.Equal(t, map[string][]string{"search": {"1", "2", "3"}, "mail": {"1", "2", "3"}}, got)
		require.Empty(t, lettersOf(t, o))
	})
}

// The keys of letters that are not committed yet are parked.
func TestAKeyIsParkedWithItsFirstRow(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, Message{ID: "k1", Topic: "t", Key: "k"}, Message{ID: "l1", Topic: "t", Key: "l"}, Message{ID: "k2", Topic: "t", Key: "k"})
		s := o.Source()
		var mu sync.Mutex
		var applied []string
		deliver := courier.ProcessFunc(func(_ context.Context, r Row) error {
			mu.Lock()
			defer mu.Unlock()
			applied = append(applied, r.ID)
			if r.ID == "k1" {
				return errors.New("boom")
			}
			return nil
		})
		applier := courier.NewDLQApplier(deliver, s.DLQ(), courier.DLQPolicy[Row]{Branch: "bé", Key: func(r Row) string { return r.Key + "\x00" }})
		require.NoError(t, courier.RunOnce(t.Context(),
			func(ctx context.Context) ([]Row, error) { return s.Fetch(ctx, 10) }, applier.Apply, s.Mark))
		require.Equal(t, []string{"k1", "l1"}, applied)
		require.Empty(t, pendingOf(t, o))
		require.Equal(t, []string{"k1.1", "k2.1"}, lettersOf(t, o))
		for branch, want := range map[string][]string{"bé": {"k\x00"}, "": nil} {
			parked, err := s.DLQ().ParkedKeys(t.Context(), branch, []string{"k\x00", "l\x00"})
			require.NoError(t, err)
			require.Equal(t, want, parked, branch)
		}
	})
}

// A key whose letter is not committed yet is parked in the letter's branch alone.
func TestAnUncommittedKeyIsParkedInItsBranchAlone(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, Message{ID: "a", Topic: "t", Key: "k"}, Message{ID: "b", Topic: "t", Key: ""})
		s := o.Source()
		for _, row := range take(t, s, 10) {
			l := letterFor(row)
			l.Branch = "search\xff" // which no database stores as it is
			require.NoError(t, s.DLQ().Send(t.Context(), l))
		}
		for branch, want := range map[string][]string{"search\xff": {"k"}, "": nil, "search": nil} {
			parked, err := s.DLQ().ParkedKeys(t.Context(), branch, []string{"k", ""})
			require.NoError(t, err)
			require.Equal(t, want, parked, branch)
		}
	})
}

// Coordinators deliver what can be, and park the rest, once.
func TestCoordinatorsPark(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			log := new(logged)
			o := newOutbox(t, WithClock(nil), log.warnings(), WithBackoff(time.Millisecond, time.Millisecond))
			var want []string
			for i := range 300 {
				id := fmt.Sprintf("k/%d", i)
				write(t, o, Message{ID: id, Topic: "t"})
				if i%7 == 0 {
					want = append(want, id+".1")
				}
			}
			deliver := courier.ProcessFunc(func(_ context.Context, r Row) error {
				if r.Seq%7 == 1 {
					return courier.Permanent(errors.New("poison"))
				}
				return nil
			})
			s := o.Source()
			applier := courier.NewDLQApplier(deliver, s.DLQ(), courier.DLQPolicy[Row]{})
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				done <- courier.NewPollingCoordinator(s, applier, courier.WithInterval(time.Millisecond), courier.WithWorkers(4),
					courier.WithBatchSize(20), courier.WithPrefetch(2), silent).Start(ctx)
			}()
			require.Eventually(t, func() bool {
				n, err := o.Pending(t.Context())
				require.NoError(t, err)
				return n == 0
			}, 60*time.Second, 5*time.Millisecond)
			stop()
			require.NoError(t, <-done)
			require.ElementsMatch(t, want, lettersOf(t, o))
			require.Empty(t, log.String())
		})
	}
}

// A letter does not need the mark: the end of its batch commits it.
func TestALetterWhoseRowDoesNotComeToMark(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a", "b")...)
		s := o.Source()
		rows := take(t, s, 10)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		require.NoError(t, o.Close())
		require.Equal(t, []string{"b"}, pendingOf(t, o))
		require.Equal(t, []string{"a.1"}, lettersOf(t, o))
	})
}

// A letter that was committed without a mark keeps no key parked once it is gone.
func TestAKeyIsFreeWithItsLetter(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, s *Source, row Row){
		"functions of one's own": func(t *testing.T, s *Source, _ Row) {
			require.Empty(t, take(t, s, 10))
		},
		"failed behind it": func(t *testing.T, s *Source, row Row) {
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), row)))
		},
		"released behind it": func(t *testing.T, s *Source, row Row) {
			require.NoError(t, s.Release(t.Context(), []Row{row}, 0))
		},
		"another run": func(t *testing.T, s *Source, _ Row) { s.RenewEvery() },
	} {
		t.Run(name, func(t *testing.T) {
			inEachWay(t, func(t *testing.T, o *Outbox) {
				write(t, o, Message{ID: "k1", Topic: "t", Key: "k"})
				s := o.Source()
				if name != "functions of one's own" {
					s.RenewEvery()
				}
				row := take(t, s, 10)[0]
				require.NoError(t, s.DLQ().Send(t.Context(), letterFor(row)))
				end(t, s, row)
				require.Equal(t, []string{"k1.1"}, lettersOf(t, o))
				parked, err := s.DLQ().ParkedKeys(t.Context(), "", []string{"k"})
				require.NoError(t, err)
				require.Equal(t, []string{"k"}, parked)

				letters, err := o.DLQ().Receive(t.Context(), 10)
				require.NoError(t, err)
				require.NoError(t, o.DLQ().Delete(t.Context(), letters[0].ID))
				parked, err = s.DLQ().ParkedKeys(t.Context(), "", []string{"k"})
				require.NoError(t, err)
				require.Empty(t, parked)
			})
		})
	}
}

// A row whose letter was lost, and which functions of one's own deliver the next
// time, is marked then.
func TestARowIsMarkedWhoseLetterWasLostBefore(t *testing.T) {
	o := newPostgres(t)
	write(t, o, named("a")...)
	s := o.Source()
	require.NoError(t, s.DLQ().Send(t.Context(), letterFor(take(t, s, 10)[0])))
	cut(t, s)
	var again []Row
	require.Eventually(t, func() bool {
		again = append(again, take(t, s, 10)...)
		return len(again) == 1
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Mark(t.Context(), again))
	require.Empty(t, pendingOf(t, o))
	require.Empty(t, lettersOf(t, o))
}

// A failover to a replica that missed a letter gives its row back. The mark that follows
// the letter leaves the row alone: it would be neither delivered nor parked.
func TestALetterThatAFailoverTakesBack(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		for _, late := range []bool{false, true} { // after the row's transaction was lost
			s := o.Source()
			s.RenewEvery()
			if late && !isLocked(s) {
				continue
			}
			execute(t, o.db, `DELETE FROM courier_outbox`)
			write(t, o, named("a", "b")...)
			rows := take(t, s, 10)
			execute(t, o.db, `CREATE TABLE replica AS SELECT * FROM courier_outbox`)
			if late {
				cut(t, s)
				require.ErrorIs(t, s.Renew(t.Context(), rows), ErrLeaseLost)
			}
			require.Eventually(t, func() bool { return s.DLQ().Send(t.Context(), letterFor(rows[0])) == nil }, 10*time.Second, time.Millisecond)
			if isLocked(s) && !late {
				cut(t, s) // it is committed with the mark
			} else {
				execute(t, o.db, `DELETE FROM courier_outbox WHERE id = 'a'`)
				overriding := ""
				if o.dialect == Postgres {
					overriding = "OVERRIDING SYSTEM VALUE "
				}
				execute(t, o.db, `INSERT INTO courier_outbox `+overriding+`SELECT * FROM replica WHERE id = 'a'`)
				execute(t, o.db, `DELETE FROM courier_outbox_dlq`)
			}
			require.Eventually(t, func() bool { return s.Mark(t.Context(), rows) == nil }, 10*time.Second, time.Millisecond)
			require.Equal(t, []string{"a"}, pendingOf(t, o))

			makeDue(t, o)
			var again []Row
			require.Eventually(t, func() (got bool) {
				again, _ = s.Fetch(t.Context(), 10)
				return len(again) > 0
			}, 10*time.Second, time.Millisecond)
			require.NoError(t, s.DLQ().Send(t.Context(), letterFor(again[0])))
			require.NoError(t, s.Mark(t.Context(), again))
			require.Empty(t, pendingOf(t, o))
			require.Equal(t, []string{"a.1"}, lettersOf(t, o))
			execute(t, o.db, `DELETE FROM courier_outbox_dlq`)
			execute(t, o.db, `DROP TABLE replica`)
			if late {
				continue
			}
			// And once more without letters, for which there is a mark as ever.
			write(t, o, named("c")...)
			rows = take(t, s, 10)
			require.NoError(t, s.Mark(t.Context(), rows))
			require.Empty(t, pendingOf(t, o))
		}
	})
}

// A row that is parked is not lost to who renews the rest of its batch.
func TestAParkedRowIsNotLost(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a", "b")...)
		s := o.Source()
		s.RenewEvery()
		rows := take(t, s, 10)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		require.NoError(t, s.Renew(t.Context(), rows))
		require.NoError(t, s.Mark(t.Context(), rows))
	})
}

// What is parked behind a letter that was lost with its transaction would be
// before it: it waits for its turn.
func TestNothingIsParkedBehindALetterThatWasLost(t *testing.T) {
	o := newPostgres(t)
	write(t, o, Message{ID: "k1", Topic: "t", Key: "k"}, Message{ID: "k2", Topic: "t", Key: "k"})
	s := o.Source()
	s.RenewEvery()
	rows := take(t, s, 10)
	require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
	cut(t, s)
	require.ErrorIs(t, s.Renew(t.Context(), rows), ErrLeaseLost)
	behind := letterFor(rows[1])
	behind.Reason = courier.ReasonKeyParked
	// The server may take a moment to free the rows of the session.
	require.Eventually(t, func() bool {
		return count(t, o.db, `SELECT count(*) FROM (SELECT FROM courier_outbox FOR UPDATE SKIP LOCKED) AS free`) == 2
	}, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, s.DLQ().Send(t.Context(), behind), ErrLeaseLost)
	require.Equal(t, []string{"k1", "k2"}, pendingOf(t, o))
}

// A letter tells of the mark of its own branch alone.
func TestALetterOfAnotherBranchIsNoMark(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a")...)
		s := o.Source()
		s.RenewEvery()
		l := letterFor(take(t, s, 10)[0])
		l.Branch = "mail"
		require.NoError(t, s.DLQ().Send(t.Context(), l))
		require.NoError(t, s.DLQ().Send(t.Context(), l), "by who did not learn of it")
		l.Branch = "search"
		require.ErrorIs(t, s.DLQ().Send(t.Context(), l), ErrLeaseLost)
		require.NoError(t, s.Mark(t.Context(), []Row{l.Record}))
		require.Empty(t, pendingOf(t, o))
		require.Equal(t, []string{"a.1"}, lettersOf(t, o))
	})
}

// The letter of a branch says nothing of the row, which the other branches need.
func TestALetterOfABranchIsNoneOfTheRow(t *testing.T) {
	for name, h := range holds {
		for keep, opts := range keeping {
			t.Run(name+" "+keep, func(t *testing.T) {
				o := h.newOutbox(t, append(opts, h.opts...)...)
				write(t, o, named("a")...)
				stale, owner := o.Source(), o.Source()
				owner.RenewEvery()
				old := take(t, stale, 10)
				require.NoError(t, o.DLQ().Send(t.Context(), letterFor(old[0])))
				lose(t, stale, old)
				var rows []Row
				require.Eventually(t, func() bool {
					rows = take(t, owner, 10)
					return len(rows) == 1
				}, 10*time.Second, time.Millisecond)
				require.ErrorIs(t, stale.DLQ().Send(t.Context(), letterFor(old[0])), ErrLeaseLost)
				require.NoError(t, owner.Fail(t.Context(), failedWith(errors.New("boom"), rows...)))
				require.Equal(t, []string{"a"}, pendingOf(t, o))
				require.Equal(t, []string{"a.1"}, lettersOf(t, o))
			})
		}
	}
}

// The queue of another source, of the same outbox or of another, takes no row, and says
// why. What a coordinator is given it for stays pending.
func TestTheQueueOfAnotherSourceIsRefused(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a")...)
		s := o.Source()
		s.RenewEvery()
		rows := take(t, s, 10)
		other := New(o.db, o.dialect, WithTable("another"), WithLogger(slog.New(slog.DiscardHandler)))
		require.NoError(t, other.Migrate(t.Context()))
		for what, source := range map[string]*Source{"of the outbox": o.Source(), "of another outbox": other.Source()} {
			source.RenewEvery()
			take(t, source, 10)
			err := source.DLQ().Send(t.Context(), letterFor(rows[0]))
			require.ErrorIs(t, err, courier.ErrConfig, what)
			require.ErrorContains(t, err, `parking message "a" (topic "orders", key "") in `+source.outbox.table+"_dlq: courier: DLQ is of another source than the one that handed the row out: pass the DLQ of the coordinator's own source")
		}
		require.NoError(t, other.Close())
		require.Empty(t, lettersOf(t, o))
		require.NoError(t, s.Renew(t.Context(), rows))
		require.NoError(t, s.Release(t.Context(), rows, 0))
		require.NoError(t, o.Close())

		s = o.Source()
		relay, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, Row) error { return courier.Permanent(errors.New("boom")) }),
			&courier.ResilientConfig[Row]{DLQ: o.Source().DLQ()})
		coordinator := courier.NewPollingCoordinator(s, relay, silent)
		require.ErrorIs(t, coordinator.RunOnce(t.Context()), courier.ErrConfig)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- coordinator.Start(ctx) }()
		require.Eventually(t, func() bool { return errors.Is(coordinator.Ready(), courier.ErrConfig) }, 20*time.Second, time.Millisecond)
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, o.Close())
		require.Equal(t, []string{"a"}, pendingOf(t, o))
		require.Empty(t, lettersOf(t, o))
	})
}
