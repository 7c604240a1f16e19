package couriersql

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

// A file that is gone, or another one by now, is told of, and the relay goes on with
// the new one.
func TestAFileThatIsReplaced(t *testing.T) {
	for name, opts := range map[string][]Option{"shared": nil, "leased": holds["sqlite leased"].opts} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, "o.db")
			o := outboxIn(t, open(t, path), opts...)
			write(t, o, named("a")...)
			s := o.Source()
			require.NoError(t, s.Mark(t.Context(), take(t, s, 10)))
			require.Empty(t, take(t, s, 10))
			connections := func(look func(*sql.Conn)) {
				for range 2 { // as many as the pool keeps, all at a time
					conn, err := o.db.Conn(t.Context())
					require.NoError(t, err)
					defer conn.Close()
					look(conn)
				}
			}
			connections(func(*sql.Conn) {})

			for _, suffix := range []string{"", "-wal", "-shm"} {
				require.NoError(t, os.Rename(path+suffix, filepath.Join(folder, "former.db"+suffix)))
			}
			for range 2 {
				_, err := s.Fetch(t.Context(), 10)
				require.ErrorContains(t, err, "couriersql: fetching up to 10 pending rows of courier_outbox: the file of the database is gone")
				require.NoFileExists(t, path, "and none is made in its place")
			}
			write(t, outboxIn(t, open(t, path)), named("b")...)
			_, err := s.Fetch(t.Context(), 10)
			require.ErrorContains(t, err, "o.db of the database was replaced: this relay goes on with the new one")
			connections(func(conn *sql.Conn) {
				var id string
				require.NoError(t, conn.QueryRowContext(t.Context(), `SELECT id FROM courier_outbox`).Scan(&id), "it has the former file open")
				require.Equal(t, "b", id)
			})
			require.Equal(t, []string{"b"}, idsOf(take(t, s, 10)))
		})
	}
}

// A database in memory is one for all connections, or refused.
func TestADatabaseInMemory(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, dsn := range []string{SQLiteDSN(":memory:"), ":memory:", "file::memory:"} {
		o := New(openDSN(t, dsn), SQLite)
		err := o.Migrate(t.Context())
		require.ErrorIs(t, err, courier.ErrConfig, dsn)
		require.ErrorContains(t, err, "is in memory, and each connection of the pool has a database of its own")
		require.ErrorIs(t, NewDLQ(o.db, SQLite, DLQConfig[order]{Table: "dead_orders"}).Migrate(t.Context()), courier.ErrConfig, dsn)
	}
	one := openDSN(t, SQLiteDSN(":memory:"))
	one.SetMaxOpenConns(1)
	db := openDSN(t, "file:/shared?vfs=memdb")
	held, err := db.Conn(t.Context())
	require.NoError(t, err)
	defer held.Close()
	for _, o := range []*Outbox{outboxIn(t, one), outboxIn(t, db)} {
		write(t, o, named("a")...)
		s := o.Source()
		rows := take(t, s, 10)
		require.Equal(t, []string{"a"}, idsOf(rows))
		require.NoError(t, s.Mark(t.Context(), rows))
	}
}
