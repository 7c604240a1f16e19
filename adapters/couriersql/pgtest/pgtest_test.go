package pgtest

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/courierttest/network"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// orphanVariable makes the test binary start a server and wait to be killed.
const orphanVariable = "PGTEST_ORPHAN"

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
	_, _ = os.Stdout.WriteString(s.cluster.Folder + "\n")
	select {}
}

func number(t *testing.T, dsn, query string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	require.NoError(t, conn.QueryRow(t.Context(), query).Scan(&n))
	return n
}

func TestSchemasAreApart(t *testing.T) {
	first, second := Schema(t), Schema(t)
	conn, err := pgx.Connect(t.Context(), first)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), `CREATE TABLE a AS SELECT 1 AS one`)
	require.NoError(t, err)
	require.Equal(t, 1, number(t, first, `SELECT one FROM a`))
	require.Equal(t, 0, number(t, second, `SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()`))
}

func TestASchemaAfterTheServersConnectionWasEnded(t *testing.T) {
	t.Setenv(DSNVariable, "")
	s, err := Start()
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Stop()) }()
	const last = `SELECT 'to be ended'`
	const those = `FROM pg_stat_activity WHERE query = $$` + last + `$$`
	require.NoError(t, s.execute(t.Context(), last))
	require.Equal(t, 1, number(t, s.DSN, `SELECT count(pg_terminate_backend(pid)) `+those))
	dsn, drop, err := s.NewSchema(t.Context())
	require.NoError(t, err)
	require.Equal(t, 0, number(t, dsn, `SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()`))
	require.NoError(t, drop())
	require.ErrorContains(t, s.execute(t.Context(), `SELECT nothing`), "nothing")

	named := &Server{DSN: s.DSN} // which nobody stops
	require.NoError(t, named.execute(t.Context(), last))
	require.Eventually(t, func() bool { return number(t, s.DSN, `SELECT count(*) `+those) == 0 },
		30*time.Second, 10*time.Millisecond, "its connection is left open")
}

// The shared server of tests does not flush, one of their own does.
// A statement that a test has left running may hold a lock that the drop needs, and wait for
// one that the drop holds.
func TestASchemaWhoseDropMeetsADeadlock(t *testing.T) {
	s := Shared(t)
	dsn, drop, err := s.NewSchema(t.Context())
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	for _, statement := range []string{"CREATE TABLE a (); CREATE TABLE b (); CREATE TABLE c ()", "BEGIN", "LOCK b"} {
		_, err = conn.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	dropped := make(chan error, 1)
	go func() { dropped <- drop() }()
	held := "SELECT relation::regclass::text FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation IN ('a'::regclass, 'c'::regclass) LIMIT 1"
	var table string
	for table == "" {
		if err := conn.QueryRow(t.Context(), held).Scan(&table); err != nil {
			require.ErrorIs(t, err, pgx.ErrNoRows)
		}
	}
	_, err = conn.Exec(t.Context(), "LOCK "+table)
	require.NoError(t, err, "the drop waited first, so that it is the one to give way")
	_, err = conn.Exec(t.Context(), "ROLLBACK")
	require.NoError(t, err)
	require.NoError(t, <-dropped)
}

func TestWhatIsFlushed(t *testing.T) {
	if os.Getenv(DSNVariable) == "" {
		require.Equal(t, 1, number(t, Schema(t), `SELECT count(*) FROM pg_settings WHERE name = 'fsync' AND setting = 'off'`))
	}
	t.Setenv(DSNVariable, "")
	s, err := Start()
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Stop()) }()
	require.Equal(t, 1, number(t, s.DSN, `SELECT count(*) FROM pg_settings WHERE name = 'fsync' AND setting = 'on'`))
}

func TestCrashAndRestart(t *testing.T) {
	t.Setenv(DSNVariable, "")
	s, err := Start()
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Stop()) }()
	require.True(t, s.Private())
	conn, err := pgx.Connect(t.Context(), s.DSN)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), `CREATE TABLE a AS SELECT 7 AS n`)
	require.NoError(t, err)
	require.NoError(t, s.Crash())
	_, err = conn.Exec(t.Context(), `SELECT 1`)
	require.Error(t, err)
	require.NoError(t, s.Restart())
	require.Equal(t, 7, number(t, s.DSN, `SELECT n FROM a`))
}

func TestReplica(t *testing.T) {
	t.Setenv(DSNVariable, "")
	primary, err := Start()
	require.NoError(t, err)
	defer func() { require.NoError(t, primary.Stop()) }()
	replica, err := primary.Replica()
	require.NoError(t, err)
	defer func() { require.NoError(t, replica.Stop()) }()
	require.NoError(t, primary.execute(t.Context(), `CREATE TABLE a AS SELECT 7 AS n`))
	require.Eventually(t, func() bool {
		return number(t, replica.DSN, `SELECT count(*) FROM pg_tables WHERE tablename = 'a'`) == 1
	},
		30*time.Second, 10*time.Millisecond)
	require.ErrorContains(t, replica.execute(t.Context(), `INSERT INTO a VALUES (8)`), "read-only")
	require.NoError(t, replica.Crash())
	require.NoError(t, primary.execute(t.Context(), `INSERT INTO a VALUES (8)`))
	require.NoError(t, primary.Crash())
	require.NoError(t, replica.Restart())
	require.NoError(t, replica.Promote(t.Context()))
	require.NoError(t, replica.execute(t.Context(), `INSERT INTO a VALUES (9)`))
	require.Equal(t, 16, number(t, replica.DSN, `SELECT sum(n) FROM a`), "it missed the 8")
}

// A pooler in transaction mode gives each transaction another session.
func TestPooler(t *testing.T) {
	t.Setenv(DSNVariable, "")
	server, err := Start()
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Stop()) }()
	way := network.Local(t, func() (net.Conn, error) { return server.Dial() })
	pooler, err := StartPooler(way.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	defer func() { require.NoError(t, pooler.Stop()) }()
	require.NoError(t, server.execute(t.Context(), `CREATE DATABASE other`))
	session := func(dsn string) (pid int) {
		return number(t, dsn+" default_query_exec_mode=exec", `SELECT pg_backend_pid()`)
	}
	first := session(pooler.DSN)
	require.Equal(t, first, session(pooler.DSN), "one client after the other")
	require.NotEqual(t, first, session(pooler.DSN+" dbname=other"))
	require.NoError(t, pooler.Reconnect(t.Context()))
	require.Eventually(t, func() bool { return session(pooler.DSN) != first }, 10*time.Second, time.Millisecond)
	require.NoError(t, pooler.Crash())
	_, err = pgx.Connect(t.Context(), pooler.DSN)
	require.Error(t, err)
	require.NoError(t, pooler.Restart())
	require.NotZero(t, session(pooler.DSN))
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
	t.Setenv(DSNVariable, "host=somewhere")
	s, err := Start()
	require.NoError(t, err)
	require.False(t, s.Private())
	require.Equal(t, "host=somewhere", s.DSN)
	require.NoError(t, s.Stop())
}
