package mytest

import (
	"database/sql"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
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

func open(t *testing.T, config *mysql.Config) *sql.DB {
	t.Helper()
	connector, err := mysql.NewConnector(config)
	require.NoError(t, err)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() }) // one of its connections may have been cut
	return db
}

func number(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

func TestDatabasesAreApart(t *testing.T) {
	config := func() *mysql.Config {
		config, err := mysql.ParseDSN(Database(t))
		require.NoError(t, err)
		return config
	}
	first, second := open(t, config()), open(t, config())
	_, err := first.ExecContext(t.Context(), `CREATE TABLE a AS SELECT 1 AS one`)
	require.NoError(t, err)
	const tables = `SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE()`
	require.Equal(t, 1, number(t, first, tables))
	require.Equal(t, 0, number(t, second, tables))
}

func TestCrashAndRestart(t *testing.T) {
	t.Setenv(DSNVariable, "")
	s, err := Start()
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Stop()) }()
	require.True(t, s.Private())
	dsn, _, err := s.NewDatabase(t.Context())
	require.NoError(t, err)
	config, err := mysql.ParseDSN(dsn)
	require.NoError(t, err)
	config.Logger = &mysql.NopLogger{}
	db := open(t, config)
	for _, text := range []string{`CREATE TABLE a (n integer PRIMARY KEY)`, `INSERT INTO a VALUES (7)`, `SET GLOBAL innodb_flush_log_at_trx_commit = 1`, `INSERT INTO a VALUES (8)`} {
		_, err := db.ExecContext(t.Context(), text)
		require.NoError(t, err)
	}
	require.NoError(t, s.Crash())
	require.Error(t, db.PingContext(t.Context()))
	require.NoError(t, s.Restart())
	require.Equal(t, 15, number(t, db, `SELECT sum(n) FROM a`))
	require.ErrorContains(t, s.execute(t.Context(), `SELECT nothing`), "nothing")
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
	require.False(t, s.Private())
	require.Equal(t, "someone@tcp(somewhere)/", s.DSN)
	require.NoError(t, s.Stop())
}
