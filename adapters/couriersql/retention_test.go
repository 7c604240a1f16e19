package couriersql

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// wait is for the end of what the pruner deletes, and tells whether there was anything.
func (p *pruner) wait() bool {
	p.mu.Lock()
	ended := p.ended
	p.ended = nil
	p.mu.Unlock()
	if ended != nil {
		<-ended
	}
	return ended != nil
}

// retaining is an outbox with a retention of a day, and a source whose fetches are given back.
func retaining(t *testing.T, newOutbox maker, opts ...Option) (o *Outbox, clock *ticking, fetches func()) {
	t.Helper()
	clock = &ticking{fixed: fixed{start}}
	o = newOutbox(t, append([]Option{WithClock(clock), WithRetention(24 * time.Hour)}, opts...)...)
	s := o.Source()
	return o, clock, func() {
		t.Helper()
		rows, err := s.Fetch(t.Context(), 10)
		require.NoError(t, err)
		require.NoError(t, s.Release(t.Context(), rows, 0))
	}
}

func TestRetention(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		o, clock, fetches := retaining(t, newOutbox)
		var ids []string
		for i := range 2*pruneBatch + 10 {
			ids = append(ids, fmt.Sprint(i))
		}
		write(t, o, named(ids...)...)
		s := o.Source()
		require.NoError(t, s.Mark(t.Context(), take(t, s, len(ids))))
		write(t, o, named("young", "pending")...)
		kept := func() int { return count(t, o.db, `SELECT count(*) FROM courier_outbox`) }
		require.Equal(t, len(ids)+2, kept(), "what is marked is kept")
		require.False(t, o.pruner.wait())

		clock.advance(12 * time.Hour)
		require.NoError(t, s.Mark(t.Context(), take(t, s, 1)))
		require.True(t, o.pruner.wait())
		require.Equal(t, len(ids)+2, kept(), "none is old enough")

		clock.advance(12*time.Hour + 59*time.Minute)
		again := outboxIn(t, o.db, WithClock(clock), WithRetention(24*time.Hour)) // a program that starts
		rows, err := again.Source().Fetch(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.NoError(t, again.Close())
		require.False(t, again.pruner.wait())
		require.Equal(t, len(ids)+2, kept())

		fetches()
		require.True(t, o.pruner.wait())
		require.Equal(t, 2, kept())
		fetches()
		require.False(t, o.pruner.wait(), "it was done a moment ago")

		clock.advance(-48 * time.Hour) // a clock that is set back
		fetches()
		require.False(t, o.pruner.wait())
		clock.advance(time.Hour)
		fetches()
		require.True(t, o.pruner.wait())
		require.Equal(t, 2, kept())
	})
}

// Of several relays one deletes at a time.
func TestRetention_OfSeveralRelays(t *testing.T) {
	o, clock, fetches := retaining(t, newPostgres)
	write(t, o, named("a", "b")...)
	s := o.Source()
	require.NoError(t, s.Mark(t.Context(), take(t, s, 2)))
	other, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = other.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock(hashtextextended('courier prune ' || 'courier_outbox'::regclass::oid, 0))`)
	require.NoError(t, err)
	for _, want := range []int{2, 0} {
		clock.advance(48 * time.Hour)
		fetches()
		require.True(t, o.pruner.wait())
		require.Equal(t, want, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
		_ = other.Rollback()
	}
}

// A failure is logged once, and the relay does not notice.
func TestRetention_ThatFails(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		var log lines
		o, clock, fetches := retaining(t, newOutbox, WithLogger(log.logger()))
		write(t, o, named("a", "b")...)
		s := o.Source()
		require.NoError(t, s.Mark(t.Context(), take(t, s, 2)))
		for _, text := range refusing(o.dialect) {
			execute(t, o.db, text)
		}
		execute(t, o.db, `INSERT INTO refused SELECT seq FROM courier_outbox`)
		for range 2 {
			clock.advance(48 * time.Hour)
			fetches()
			require.True(t, o.pruner.wait())
		}
		require.Equal(t, 1, strings.Count(log.String(), "rows that are older than their retention could not be deleted"), log.String())
		require.Contains(t, log.String(), "refused")
		execute(t, o.db, `DELETE FROM refused`)
		clock.advance(48 * time.Hour)
		fetches()
		require.True(t, o.pruner.wait())
		require.Contains(t, log.String(), "old rows are deleted again")
		require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
	})
}

// Close ends it, and that is no failure.
func TestRetention_EndsWithTheOutbox(t *testing.T) {
	var log lines
	o, clock, fetches := retaining(t, newPostgres, WithLogger(log.logger()))
	write(t, o, named("a")...)
	s := o.Source()
	require.NoError(t, s.Mark(t.Context(), take(t, s, 1)))
	busy, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer busy.Rollback()
	// Which a fetch does not wait for, and a delete does.
	_, err = busy.ExecContext(t.Context(), `LOCK TABLE courier_outbox IN EXCLUSIVE MODE`)
	require.NoError(t, err)
	clock.advance(48 * time.Hour)
	o.pruner.look()
	o.pruner.look() // while it is under way
	require.Eventually(t, func() bool {
		return count(t, o.db, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'courier_outbox'::regclass`) == 1
	}, time.Minute, 5*time.Millisecond)
	require.NoError(t, o.Close())
	require.Empty(t, log.String())
	require.NoError(t, busy.Rollback())
	clock.advance(48 * time.Hour)
	fetches()
	require.True(t, o.pruner.wait())
	require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
}

func TestRetention_Validate(t *testing.T) {
	require.ErrorContains(t, New(open(t, t.TempDir()+"/a"), SQLite, WithRetention(time.Second)).Source().Validate(), "WithRetention")
	for _, d := range []time.Duration{-1, time.Hour} {
		inbox := NewInbox(open(t, t.TempDir()+"/a"), SQLite, InboxConfig{Consumer: "c", Retention: d})
		require.ErrorContains(t, inbox.Migrate(t.Context()), "InboxConfig.Retention")
		require.ErrorIs(t, inbox.Migrate(t.Context()), courier.ErrConfig)
		require.NoError(t, inbox.Close())
	}
}

// Notes are deleted by the appliers, and the time of an outage does not count: what was done
// before it may be delivered again.
func TestInbox_Retention(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		const day = 24 * time.Hour
		var log lines
		b := openBank(t, kind, InboxConfig{Retention: 7 * day, Logger: log.logger()})
		clock := &ticking{fixed: fixed{time.Now().Truncate(time.Microsecond)}}
		began := clock.now
		b.inbox.now = clock.Now
		audit := b.open(InboxConfig{Consumer: "audit"})
		audit.now = clock.Now
		note := func(id string, at time.Time) {
			execute(t, b.db, `INSERT INTO courier_inbox (consumer, id, done_at) VALUES ('bank', $1, $2)`, id, b.inbox.grammar.time(at.UnixMicro()))
		}
		apply := func(p payment, after time.Duration) (left int) {
			t.Helper()
			clock.advance(after)
			require.NoError(t, b.applier(pay).Apply(t.Context(), p))
			b.inbox.pruner.wait()
			return count(t, b.db, `SELECT count(*) FROM courier_inbox WHERE id IN ('very old', 'old', 'last') AND consumer = 'bank'`)
		}
		require.NoError(t, kind.applier(audit, pay).Apply(t.Context(), "old"))
		note("very old", began.Add(-30*day))
		note("old", began.Add(-16*day))
		note("last", began.Add(-10*day)) // and then an outage
		require.Equal(t, 3, apply("a", 0), "not when it starts")
		require.Equal(t, 2, apply("b", day/2))
		require.Equal(t, 1, apply("c", day), "more than 7 days of work before the outage and a day")
		require.Equal(t, 1, apply("d", 5*day))
		require.Equal(t, 0, apply("e", day))
		require.Equal(t, 1, count(t, b.db, `SELECT count(*) FROM courier_inbox WHERE consumer = 'audit'`))
		require.Empty(t, log.String())
		require.NoError(t, b.inbox.Close())
	})
}
