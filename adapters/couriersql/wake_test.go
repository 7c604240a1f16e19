package couriersql

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// logged is a log that tests read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logged) option() Option { return WithLogger(slog.New(slog.NewTextHandler(l, nil))) }

// warnings is option without what is told of an election.
func (l *logged) warnings() Option {
	return WithLogger(slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn})))
}

func awaken(t *testing.T, wake <-chan struct{}) {
	t.Helper()
	select {
	case <-wake:
	case <-time.After(20 * time.Second):
		t.Fatal("no wake-up")
	}
}

func TestAMessageWakesTheRelay(t *testing.T) {
	o := newPostgres(t, WithWakeUp(), WithTable("wake_plain"))
	require.NoError(t, o.Migrate(t.Context()), "twice")
	s := o.Source()
	wake := s.Wake()
	require.Equal(t, wake, s.Wake())
	awaken(t, wake) // it listens
	require.Empty(t, take(t, s, 1))

	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, o.Write(t.Context(), tx, named("a")...))
	require.Empty(t, wake, "it is not committed")
	require.NoError(t, tx.Commit())
	awaken(t, wake)
	require.Len(t, take(t, s, 1), 1)

	// By whoever inserts.
	execute(t, o.db, `INSERT INTO wake_plain (id, topic, payload) VALUES ('b', 't', '')`)
	awaken(t, wake)

	// Many notifications are one wake-up, and nobody waits for its reader.
	for range 20 {
		execute(t, o.db, `SELECT pg_notify('wake_plain', '')`)
	}
	awaken(t, wake)

	require.NoError(t, o.Close())
	require.NoError(t, o.Close())
	s.Wake() // begins anew
	awaken(t, wake)
}

func TestWakeUpSurvivesItsConnection(t *testing.T) {
	var log logged
	o := newPostgres(t, WithWakeUp(), WithTable("wake_cut"), log.option())
	wake := o.Source().Wake()
	awaken(t, wake)
	for range 2 {
		require.Eventually(t, func() bool { // it may have been awoken twice, and not listen again yet
			return count(t, o.db, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%tgrelid = ''"wake_cut"%' AND pid <> pg_backend_pid()`) == 1
		}, 20*time.Second, time.Millisecond)
		write(t, o, named(time.Now().String())...) // nobody listens, perhaps
		awaken(t, wake)
		require.Eventually(t, func() bool { // it listens again
			execute(t, o.db, `SELECT pg_notify('wake_cut', '')`)
			return len(wake) == 1
		}, 20*time.Second, 5*time.Millisecond)
		awaken(t, wake)
	}
	require.Contains(t, log.String(), "the wake-up is interrupted; the relay polls meanwhile")
}

// pooler is a server in between that, as a pooler in transaction mode does, has
// no place for a notification but within an answer.
func pooler(t *testing.T, dsn string) string {
	t.Helper()
	network, address := serverOf(t, dsn)
	folder := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(folder, ".s.PGSQL.5432"))
	require.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, address)
			if err != nil {
				_ = client.Close()
				return
			}
			wg.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
			wg.Go(func() { withoutNotifications(client, server); _ = client.Close() })
		}
	})
	return dsn + " host=" + folder
}

func serverOf(t *testing.T, dsn string) (network, address string) {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	if filepath.IsAbs(config.Host) {
		return "unix", filepath.Join(config.Host, ".s.PGSQL.5432")
	}
	return "tcp", net.JoinHostPort(config.Host, "5432")
}

func withoutNotifications(to io.Writer, from io.Reader) {
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		message := make([]byte, 1+binary.BigEndian.Uint32(head[1:]))
		copy(message, head)
		if _, err := io.ReadFull(from, message[5:]); err != nil {
			return
		}
		if head[0] == 'A' {
			continue
		}
		if _, err := to.Write(message); err != nil {
			return
		}
	}
}

func TestWakeUpBehindAPooler(t *testing.T) {
	var log logged
	o := outboxIn(t, openPostgres(t, pooler(t, pgtest.Schema(t))), WithWakeUp(), WithTable("wake_pooler"), log.option())
	s := o.Source()
	wake := s.Wake()
	require.Eventually(t, func() bool {
		return bytes.Contains([]byte(log.String()), []byte("there is no wake-up, and the relay polls: is there a pooler in transaction mode"))
	}, 20*time.Second, 10*time.Millisecond)
	write(t, o, named("a")...)
	require.Len(t, take(t, s, 1), 1)
	require.Empty(t, wake)
}

func TestWakeUpWithoutATrigger(t *testing.T) {
	var log logged
	o := newPostgres(t, WithTable("wake_none"))
	listening := New(o.db, Postgres, WithWakeUp(), WithTable("wake_none"), log.option())
	t.Cleanup(func() { require.NoError(t, listening.Close()) })
	awaken(t, listening.Source().Wake())
	require.Contains(t, log.String(), "the table has no trigger that sends notifications, or a disabled one, and the relay polls: call Migrate of an outbox made with WithWakeUp")
}

func TestNoWakeUp(t *testing.T) {
	require.Empty(t, newOutbox(t).Source().Wake())
	require.Empty(t, newPostgres(t).Source().Wake())
	require.Empty(t, New(nil, Postgres).Source().Wake())
	err := New(new(sql.DB), SQLite, WithWakeUp()).Source().Validate()
	require.ErrorIs(t, err, courier.ErrConfig)
	require.ErrorContains(t, err, "WithWakeUp is for PostgreSQL")
}

// A relay that stands by is elected, and woken, within two seconds of the other's end,
// however long its interval. It is not woken before.
func TestTakeover(t *testing.T) {
	for try := 1; takeOver(t) >= 2*time.Second; try++ { // a busy machine may be the reason
		require.Less(t, try, 10)
	}
}

// takeOver returns how long it takes a relay that stands by.
func takeOver(t *testing.T) time.Duration {
	t.Helper()
	o := newPostgres(t, WithStrictOrder(), WithWakeUp(), WithTable("wake_takeover"))
	write(t, o, named("a")...)
	first, second := o.Source(), o.Source()
	require.Len(t, take(t, first, 1), 1)
	wake := second.Wake()
	require.Empty(t, take(t, second, 1))
	write(t, o, named("b")...)
	require.Empty(t, wake)
	cut(t, first)
	began := time.Now()
	awaken(t, wake)
	require.Len(t, take(t, second, 10), 2)
	return time.Since(began)
}

func TestAListenerThatCannotConnectStopsWithItsOutbox(t *testing.T) {
	o := New(openPostgres(t, "host="+t.TempDir()+" user=nobody"), Postgres, WithWakeUp(), new(logged).option())
	o.Source().Wake()
	require.NoError(t, o.Close())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := o.Source().Fetch(ctx, 1)
	require.Error(t, err)
}
