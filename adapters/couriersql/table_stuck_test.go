package couriersql

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
)

// deaf is a connection whose reads wait, once it is deaf, until it hears again.
type deaf struct {
	net.Conn
	is    *atomic.Bool
	hears chan struct{}
}

func (d deaf) Read(p []byte) (int, error) {
	if d.is.Load() {
		<-d.hears
	}
	return d.Conn.Read(p)
}

// A relay that takes no rows of its fetch any more, as it is frozen, or its machine gone, keeps
// the others from theirs for no longer than their query timeout.
func TestAFetchThatIsNotTaken(t *testing.T) {
	dsn := pgtest.Schema(t)
	r := newRelayed(t, Postgres, ownTables(Postgres)["updates"], 0)
	r.db = openPostgres(t, dsn)
	for _, text := range r.create {
		execute(t, r.db, text)
	}
	r.rows(1, 100)
	r.table()

	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	is, hears := new(atomic.Bool), make(chan struct{})
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return deaf{conn, is, hears}, err
	}
	db := stdlib.OpenDB(*config)
	defer func() { require.NoError(t, db.Close()) }()
	own := r.config
	own.Columns = []string{"id", "name || repeat('x', 200000)"} // more than goes into the buffers of a socket
	own.Logger = slog.New(slog.DiscardHandler)
	frozen := NewTable(db, Postgres, own).Source()
	_, err = frozen.Fetch(t.Context(), 1) // and so the table is described
	require.NoError(t, err)

	is.Store(true)
	failed := make(chan error)
	go func() {
		_, err := frozen.Fetch(context.WithoutCancel(t.Context()), 99)
		failed <- err
	}()
	require.Eventually(t, func() bool {
		return count(t, r.db, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE '%repeat%'`) == 1
	}, 10*time.Second, 5*time.Millisecond)

	r.config.QueryTimeout = time.Second
	other := r.table().Source()
	_, err = other.Fetch(t.Context(), 10)
	require.ErrorIs(t, err, ErrQueryTimeout)
	_, names := fetchNames(t, other, 100)
	require.Len(t, names, 99)
	require.Equal(t, 1, strings.Count(r.log.String(), "takes no rows of its fetch"))
	close(hears)
	require.ErrorContains(t, <-failed, "unexpected EOF", "its session was ended")
}
