package couriersql

import (
	"context"
	"database/sql"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
)

// mortal is a connection that can die without a sign: what is written is lost, and nothing
// comes.
type mortal struct {
	net.Conn
	dead   atomic.Bool
	closed chan struct{}
	close  func()
}

func (m *mortal) Read(p []byte) (int, error) {
	if m.dead.Load() {
		<-m.closed
	}
	return m.Conn.Read(p)
}

func (m *mortal) Write(p []byte) (int, error) {
	if m.dead.Load() {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

func (m *mortal) Close() error {
	m.close()
	return m.Conn.Close()
}

// openMortal opens a database of MySQL whose connections so far die when kill is called.
func openMortal(t *testing.T, dsn string) (db *sql.DB, kill func()) {
	t.Helper()
	config, err := mysql.ParseDSN(dsn)
	require.NoError(t, err)
	config.Logger = &mysql.NopLogger{}
	var mu sync.Mutex
	var all []*mortal
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		m := &mortal{Conn: conn, closed: make(chan struct{})}
		m.close = sync.OnceFunc(func() { close(m.closed) })
		mu.Lock()
		defer mu.Unlock()
		all = append(all, m)
		return m, nil
	}
	connector, err := mysql.NewConnector(config)
	require.NoError(t, err)
	db = sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() })
	return db, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range all {
			m.dead.Store(true)
		}
	}
}

// idle has so many connections of a pool idle.
func idle(t *testing.T, db *sql.DB, n int) {
	t.Helper()
	db.SetMaxIdleConns(n)
	conns := make([]*sql.Conn, n)
	for i := range conns {
		var err error
		conns[i], err = db.Conn(t.Context())
		require.NoError(t, err)
	}
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
	require.Equal(t, n, db.Stats().Idle)
}

// Connections of MySQL that died while they were idle cost no query timeout.
func TestIdleConnectionsThatDied(t *testing.T) {
	t.Parallel() // it waits most of the time
	db, kill := openMortal(t, mytest.Database(t))
	o := outboxIn(t, db, WithQueryTimeout(time.Hour))
	write(t, o, named("a")...)
	s := o.Source()
	rows := take(t, s, 1)
	idle(t, db, 3)
	clear(o.relayed.used.last) // it is a while ago
	kill()
	ctx, cancel := context.WithTimeout(t.Context(), 3*idleTimeout+10*time.Second)
	defer cancel()
	require.NoError(t, s.Mark(ctx, rows))
	require.Empty(t, pendingOf(t, o))
}

// A renewal that meets such a connection right after its last use ends early enough to be
// tried again.
func TestARenewalOverADeadConnection(t *testing.T) {
	t.Parallel() // it waits most of the time
	db, kill := openMortal(t, mytest.Database(t))
	o := outboxIn(t, db, WithQueryTimeout(time.Hour), WithLease(12*time.Second), WithClock(nil))
	write(t, o, named("a")...)
	s := o.Source()
	rows := take(t, s, 1)
	idle(t, db, 1)
	require.NoError(t, s.Renew(t.Context(), rows))
	kill()
	ctx, cancel := context.WithTimeout(t.Context(), 11*time.Second)
	defer cancel()
	require.ErrorIs(t, s.Renew(ctx, rows), ErrQueryTimeout)
	require.NoError(t, s.Renew(ctx, rows))
	require.NoError(t, s.Mark(t.Context(), rows))
	require.Empty(t, pendingOf(t, o))
}
