package mytest

import (
	"database/sql"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// orphanVariable makes the test binary start a server and wait to be killed.
const orphanVariable = "MYTEST_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanVariable) != "" {
		orphan()
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(Exit))
}

func orphan() {
	s, err := Start()
	if err != nil {
		panic(err)
	}
	_, _ = os.Stdout.WriteString(s.private.Folder + "\n")
	select {}
}

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func number(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

func TestDatabasesAreApart(t *testing.T) {
	first, second := open(t, Database(t)), open(t, Database(t))
	_, err := first.ExecContext(t.Context(), `CREATE TABLE a AS SELECT 1 AS one`)
	require.NoError(t, err)
	const tables = `SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE()`
	require.Equal(t, 1, number(t, first, tables))
	require.Equal(t, 0, number(t, second, tables))
	require.ErrorContains(t, Shared(t).execute(t.Context(), `SELECT nothing`), "nothing")
}

// Servers of several test binaries delete each other's temporary tables where they have one
// folder for them.
func TestTemporaryTablesAreApart(t *testing.T) {
	server, err := startPrivate()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	require.Equal(t, 1, number(t, open(t, server.DSN), `SELECT @@tmpdir = '`+server.private.Folder+`'`))
}

// A test binary that is killed leaves no server behind.
func TestServerDiesWithItsProcess(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), orphanVariable+"=1", DSNVariable+"=")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line := make([]byte, 200)
	n, err := out.Read(line)
	require.NoError(t, err)
	folder := strings.TrimSpace(string(line[:n]))
	require.DirExists(t, folder)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.Eventually(t, func() bool {
		_, err := os.Stat(folder)
		return os.IsNotExist(err)
	}, 30*time.Second, 50*time.Millisecond)
}

func TestTheServerThatIsNamed(t *testing.T) {
	t.Setenv(DSNVariable, "someone@tcp(somewhere)/")
	s, err := Start()
	require.NoError(t, err)
	require.Equal(t, "someone@tcp(somewhere)/", s.DSN)
	require.NoError(t, s.Stop())
}
