package couriersql

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSQLiteDSN(t *testing.T) {
	for _, name := range []string{"plain.db", "with space.db", "a?b.db", "a#b.db", "100%.db", "%41.db", "a&_pragma=x.db", "ä;+'\".db"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name)
			db := open(t, path)
			require.NoError(t, New(db, SQLite).Migrate(t.Context()))
			_, err := os.Stat(path)
			require.NoError(t, err)
			var mode string
			require.NoError(t, db.QueryRowContext(t.Context(), "PRAGMA journal_mode").Scan(&mode))
			require.Equal(t, "wal", mode)
			require.Equal(t, 5000, count(t, db, "PRAGMA busy_timeout"))
			require.Equal(t, 2, count(t, db, "PRAGMA synchronous"), "FULL")
			require.Equal(t, 1, count(t, db, "PRAGMA foreign_keys"))
		})
	}
}

func TestSQLiteDSNOfARelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, New(open(t, ".//test.db"), SQLite).Migrate(t.Context()))
	require.FileExists(t, "test.db")
}

func TestSQLiteDSNCanBeLowered(t *testing.T) {
	dsn := SQLiteDSN(filepath.Join(t.TempDir(), "test.db")) + "&_synchronous=NORMAL"
	require.Equal(t, 1, count(t, openDSN(t, dsn), "PRAGMA synchronous"))
}
