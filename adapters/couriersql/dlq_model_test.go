package couriersql

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/internal/dlqtest"
)

// The durable queue, and redrives of it, against a list of letters, with crashes
// at any point.
func TestDLQAgainstAModel(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		f := files{folder: t.TempDir()}
		dlqtest.Check(t, func(t *rapid.T) dlqtest.Queue[Row] {
			o := f.open(t, f.next())
			require.NoError(t, o.Migrate(t.Context()))
			t.Cleanup(func() { f.close(t, o) })
			return modelled(o, func() *Outbox {
				o = f.crash(t, o)
				return o
			})
		})
	})
	t.Run("postgres", func(t *testing.T) {
		db := openPostgres(t, pgtest.Schema(t))
		tables := 0
		dlqtest.Check(t, func(t *rapid.T) dlqtest.Queue[Row] {
			tables++
			another := func() *Outbox {
				o := New(db, Postgres, WithTable(fmt.Sprint("outbox_", tables)))
				t.Cleanup(func() { require.NoError(t, o.Close()) })
				return o
			}
			o := another()
			require.NoError(t, o.Migrate(t.Context()))
			return modelled(o, another)
		})
	})
}

func modelled(o *Outbox, crash func() *Outbox) dlqtest.Queue[Row] {
	return dlqtest.Queue[Row]{
		DLQ:      o.DLQ(),
		Identity: true,
		Slow:     true,
		Record: func(name, number int) Row {
			return Row{Seq: int64(number + 1), ID: fmt.Sprint(name), Topic: "orders", CreatedAt: start.UnixMicro()}
		},
		Number: func(r Row) int { return int(r.Seq - 1) },
		Crash:  func() courier.DLQ[Row] { return crash().DLQ() },
	}
}

// files are databases, each what a killed process left of another.
type files struct {
	folder string
	n      int
}

func (f *files) path() string { return filepath.Join(f.folder, fmt.Sprintf("%d.db", f.n)) }

func (f *files) next() string {
	f.n++
	return f.path()
}

func (f *files) open(t *rapid.T, path string) *Outbox {
	db, err := sql.Open("sqlite", SQLiteDSN(path)+"&_pragma=synchronous(OFF)") // of power failures there are none
	require.NoError(t, err)
	return New(db, SQLite)
}

func (f *files) close(t *rapid.T, o *Outbox) {
	require.NoError(t, o.Close())
	require.NoError(t, o.db.Close())
}

func (f *files) crash(t *rapid.T, o *Outbox) *Outbox {
	was, left := f.path(), f.next()
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(was + suffix)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(left+suffix, content, 0o600))
	}
	f.close(t, o)
	return f.open(t, left)
}
