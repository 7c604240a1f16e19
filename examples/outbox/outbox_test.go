package main

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
)

// childArgs makes this test binary the program itself, for the test that has
// to kill it.
const childArgs = "OUTBOX_TEST_ARGS"

func TestMain(m *testing.M) {
	if args := os.Getenv(childArgs); args != "" {
		os.Exit(run(context.Background(), strings.Split(args, "\n"), os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { pgtest.Exit(mytest.Stopped(code)) }))
}

// result is how the program ended.
type result struct {
	status         int
	stdout, stderr string
}

func program(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := run(t.Context(), args, &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// figure returns a number of the table.
func (r result) figure(t *testing.T, name string) int {
	t.Helper()
	match := regexp.MustCompile(`(?m)^` + name + ` +([\d,]+) `).FindStringSubmatch(r.stdout)
	require.NotNil(t, match, "%s in:\n%s\n%s", name, r.stdout, r.stderr)
	n, err := strconv.Atoi(strings.ReplaceAll(match[1], ",", ""))
	require.NoError(t, err)
	return n
}

// table is the figures that the verdict goes by.
type table struct{ written, delivered, dead, duplicates, pending, missing int }

func (r result) table(t *testing.T) table {
	t.Helper()
	return table{
		r.figure(t, "written"), r.figure(t, "delivered"), r.figure(t, "dead-lettered"),
		r.figure(t, "counted twice"), r.figure(t, "still pending"), r.figure(t, "missing"),
	}
}

func (r result) require(t *testing.T, status int, want table) {
	t.Helper()
	require.Equal(t, status, r.status, "%s\n%s", r.stdout, r.stderr)
	require.Equal(t, want, r.table(t), "%s\n%s", r.stdout, r.stderr)
}

func TestOutageAndPoison(t *testing.T) {
	t.Parallel()
	r := program(t, "-n", "300", "-outage", "500ms", "-batch", "50")
	r.require(t, 0, table{written: 300, delivered: 297, dead: 3})
	require.Contains(t, r.stdout, "-0000075: courier: gave up after 1 attempt")
	require.Contains(t, r.stdout, "the column headers is not a JSON object")
	require.Contains(t, r.stdout, "maximum payload exceeded")
	require.Contains(t, r.stdout, `no subject is known for topic "refunds"`)
	require.Contains(t, r.stdout, "Every order is delivered once or dead-lettered.")
	for _, text := range []string{"takes the broker down", "is lost", "is back", "outbox: 300 of 300 relayed"} {
		require.Contains(t, r.stderr, text)
	}
	for line := range strings.Lines(r.stderr) {
		require.Regexp(t, `^(outbox: |time=\S+ level=WARN )`, line)
	}
}

func TestPreload(t *testing.T) {
	t.Parallel()
	r := program(t, "-n", "2500", "-outage", "0", "-poison", "0", "-preload")
	r.require(t, 0, table{written: 2500, delivered: 2500})
	require.Positive(t, r.figure(t, "relay speed"))
}

// A second run with more orders writes those that are not there.
func TestKeptDatabase(t *testing.T) {
	t.Parallel()
	db := filepath.Join(t.TempDir(), "orders.db")
	program(t, "-db", db, "-n", "20", "-outage", "0", "-poison", "1").
		require(t, 0, table{written: 20, delivered: 19, dead: 1})
	r := program(t, "-db", db, "-n", "30", "-outage", "0", "-poison", "0")
	r.require(t, 0, table{written: 30, delivered: 29, dead: 1})
	require.Contains(t, r.stderr, "20 orders written before, 0 pending")
	require.Zero(t, r.figure(t, "sent again"))
}

func TestCrash(t *testing.T) {
	t.Parallel()
	db := filepath.Join(t.TempDir(), "orders.db")
	self, err := os.Executable()
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), self)
	child.Env = append(os.Environ(), childArgs+"="+strings.Join([]string{"-db", db, "-n", "600", "-outage", "0", "-batch", "100", "-crash", "250"}, "\n"))
	output, err := child.CombinedOutput()
	require.Error(t, err)
	status, ok := child.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	require.Equal(t, syscall.SIGKILL, status.Signal(), "%s", output)
	require.Contains(t, string(output), "killing this process")

	r := program(t, "-db", db, "-n", "600", "-outage", "0")
	r.require(t, 0, table{written: 600, delivered: 597, dead: 3})
	require.Positive(t, r.figure(t, "sent again"), "what was delivered and not marked came again")
	require.Contains(t, r.stderr, "continuing with "+db)
}

// The same in PostgreSQL and MySQL: an outage, poison, and a run that goes on.
func TestPostgres(t *testing.T) { testServer(t, "-pg", pgtest.Schema(t), openPostgres) }
func TestMySQL(t *testing.T)    { testServer(t, "-mysql", mytest.Database(t), openMySQL) }

func testServer(t *testing.T, flag, dsn string, open func(context.Context, string) (*database, error)) {
	args := []string{flag, dsn, "-n", "300", "-batch", "50", "-outage", "100ms"}
	program(t, args...).require(t, 0, table{written: 300, delivered: 297, dead: 3})
	t.Cleanup(func() {
		db, err := open(context.Background(), dsn)
		require.NoError(t, err)
		require.NoError(t, os.RemoveAll(filepath.Join(os.TempDir(), "courier-outbox-"+db.name+".jetstream")))
		db.close()
	})
	r := program(t, flag, dsn, "-n", "400", "-batch", "50", "-outage", "0")
	r.require(t, 0, table{written: 400, delivered: 397, dead: 3})
	require.Contains(t, r.stderr, "continuing with the database of "+flag+": 300 orders written before")
}

func TestCrashNotReached(t *testing.T) {
	t.Parallel()
	r := program(t, "-db", filepath.Join(t.TempDir(), "a.db"), "-n", "5", "-outage", "0", "-crash", "6")
	r.require(t, 0, table{written: 5, delivered: 2, dead: 3})
	require.Contains(t, r.stderr, "fewer orders than that were delivered")
}

// A signal in the middle of an outage: the relay stops, the server comes back,
// and the table tells what is pending.
func TestSignal(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	db := filepath.Join(t.TempDir(), "orders.db")
	var stdout bytes.Buffer
	stderr := &trigger{text: "courier: paused", do: cancel}
	status := run(ctx, []string{"-db", db, "-n", "200", "-poison", "0", "-batch", "50", "-preload", "-outage", "1h"}, &stdout, stderr)
	r := result{status, stdout.String(), stderr.String()}
	require.Zero(t, r.status, "%s\n%s", r.stdout, r.stderr)
	found := r.table(t)
	require.Zero(t, found.missing)
	require.Positive(t, found.pending)
	require.Contains(t, r.stdout, "start again with the same database")

	program(t, "-db", db, "-n", "200", "-poison", "0", "-outage", "0").require(t, 0, table{written: 200, delivered: 200})
}

// trigger is a standard error on which something is waited for.
type trigger struct {
	text string
	do   func()

	mu  sync.Mutex
	all bytes.Buffer
}

func (w *trigger) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(string(p), w.text) {
		w.do()
	}
	return w.all.Write(p)
}

func (w *trigger) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

func TestRowsOfAnyShape(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file, text string
		want       []string
	}{
		"csv": {
			"rows.csv", "\ufeffid,name,note\n1,Zoë,\"a \"\"q\"\" <b>\"\n2,Bob,\"two\nlines\"\n",
			[]string{`{"id":"1","name":"Zoë","note":"a \"q\" <b>"}`, `{"id":"2","name":"Bob","note":"two\nlines"}`},
		},
		"json lines": {
			"rows.jsonl", "{\"a\": 1}\r\n\n[1,2]\n\"x\"\n{\"a\": 1}",
			[]string{`{"a": 1}`, `[1,2]`, `"x"`, `{"a": 1}`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			file, db := filepath.Join(folder, c.file), filepath.Join(folder, "rows.db")
			write(t, file, c.text)
			outside := startOutside(t)
			n := len(c.want)
			args := []string{"-in", file, "-db", db, "-out", outside.address()}
			program(t, args...).require(t, 0, table{written: n, delivered: n})
			require.Equal(t, c.want, payloads(t, outside))

			// Again, with a line more.
			last := map[string]string{"csv": "3,Ann,\n", "json lines": "\nnull\n"}[name]
			write(t, file, c.text+last)
			program(t, args...).require(t, 0, table{written: n + 1, delivered: n + 1})
		})
	}
}

// A row too large for the server is a dead letter, as in made-up orders.
func TestRowTooLarge(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rows.ndjson")
	write(t, file, "1\n\""+strings.Repeat("x", 2<<20)+"\"\n3\n")
	program(t, "-in", file, "-outage", "0").require(t, 0, table{written: 3, delivered: 2, dead: 1})
}

// What others have in the stream is not counted, neither are runs with other
// databases.
func TestOutside(t *testing.T) {
	t.Parallel()
	outside := startOutside(t)
	program(t, "-n", "10", "-poison", "1", "-out", outside.address()).require(t, 0, table{written: 10, delivered: 9, dead: 1})
	js := client(t, outside)
	_, err := js.Publish(t.Context(), subjectPrefix+"other", nil, jetstream.WithMsgID("theirs"))
	require.NoError(t, err)
	program(t, "-n", "10", "-poison", "0", "-out", outside.address()).require(t, 0, table{written: 10, delivered: 10})
	require.Len(t, payloads(t, outside), 20)
}

// The server goes away for good. What it has not acked stays pending.
func TestOutsideGone(t *testing.T) {
	t.Parallel()
	outside := startOutside(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	db := filepath.Join(t.TempDir(), "orders.db")
	stderr := &trigger{text: "courier: paused", do: cancel}
	down := &trigger{text: "writing 100 orders", do: outside.stop}
	status := run(ctx, []string{"-db", db, "-n", "100", "-poison", "0", "-preload", "-out", outside.address()}, io.Discard, io.MultiWriter(stderr, down))
	require.Equal(t, exitCannotRun, status, stderr.String())
	require.Contains(t, stderr.String(), "cannot be read back")
	require.Equal(t, 100, count(t, db, `SELECT count(*) FROM courier_outbox`))
}

// A row of another program, without an order, is relayed or dead-lettered too.
func TestUndecodableRow(t *testing.T) {
	t.Parallel()
	db := filepath.Join(t.TempDir(), "orders.db")
	program(t, "-db", db, "-n", "5", "-poison", "0", "-outage", "0").require(t, 0, table{written: 5, delivered: 5})
	execute(t, db, `INSERT INTO courier_outbox (id, topic, key, payload, headers, trace, created_at) VALUES ('theirs', 'orders', '', x'', '[]', '', 0)`)
	r := program(t, "-db", db, "-n", "5", "-poison", "0", "-outage", "0")
	r.require(t, 0, table{written: 5, delivered: 5, dead: 1})
	require.Regexp(t, `(?m)^  theirs: .*the column headers is not a JSON object`, r.stdout)
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		harm func(t *testing.T, db string)
		want table
		says string
	}{
		"a message is deleted": {
			func(t *testing.T, db string) {
				stream := openKept(t, db)
				require.NoError(t, stream.DeleteMsg(t.Context(), 5))
			},
			table{written: 5, delivered: 4, missing: 1}, "1 of the orders are missing, such as ",
		},
		"all messages are deleted": {
			func(t *testing.T, db string) { require.NoError(t, openKept(t, db).Purge(t.Context())) },
			table{written: 5, missing: 5}, "5 of the orders are missing",
		},
		"an outbox row is deleted": {
			func(t *testing.T, db string) { execute(t, db, `INSERT INTO orders VALUES ('x', '{}')`) },
			table{written: 6, delivered: 5, missing: 1}, "such as x",
		},
		"an order is delivered and dead-lettered": {
			func(t *testing.T, db string) {
				pool := openPool(t, db)
				letter := courier.DeadLetter[couriersql.Row]{Record: couriersql.Row{ID: theOrder(t, pool)}}
				require.NoError(t, couriersql.New(pool, couriersql.SQLite).DLQ().Send(t.Context(), letter))
			},
			table{written: 5, delivered: 5, dead: 1, duplicates: 1}, "counted twice",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := filepath.Join(t.TempDir(), "orders.db")
			args := []string{"-db", db, "-n", "5", "-poison", "0", "-outage", "0"}
			program(t, args...).require(t, 0, table{written: 5, delivered: 5})
			t.Run("harm", func(t *testing.T) { c.harm(t, db) }) // its cleanups run before the program
			r := program(t, args...)
			r.require(t, exitVerdict, c.want)
			require.Contains(t, r.stderr, c.says)
			require.NotContains(t, r.stdout, "Every order is delivered")
		})
	}
}

// A stream that forgets message IDs too soon takes an order twice.
func TestDeliveredTwice(t *testing.T) {
	t.Parallel()
	outside := startOutside(t)
	js := client(t, outside)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: streamName, Subjects: []string{subjectPrefix + ">"}, Duplicates: 100 * time.Millisecond,
	})
	require.NoError(t, err)
	db := filepath.Join(t.TempDir(), "orders.db")
	args := []string{"-db", db, "-n", "5", "-poison", "0", "-out", outside.address()}
	program(t, args...).require(t, 0, table{written: 5, delivered: 5})
	id := theOrder(t, openPool(t, db))
	require.Eventually(t, func() bool {
		ack, err := js.Publish(t.Context(), subjectPrefix+"orders", nil, jetstream.WithMsgID(id))
		return err == nil && !ack.Duplicate
	}, 10*time.Second, 20*time.Millisecond)
	r := program(t, args...)
	r.require(t, exitVerdict, table{written: 5, delivered: 5, duplicates: 1})
	require.Contains(t, r.stderr, "counted twice")
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	in := func(name, text string) string {
		path := filepath.Join(folder, name)
		write(t, path, text)
		return path
	}
	other := filepath.Join(folder, "other.db")
	execute(t, other, `CREATE TABLE courier_outbox (id INTEGER PRIMARY KEY, body TEXT)`)
	orders := filepath.Join(folder, "orders.db")
	execute(t, orders, `CREATE TABLE orders (id INTEGER PRIMARY KEY, total INTEGER)`)
	plain := startServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	taken := filepath.Join(folder, "taken.db")
	lock := flock.New(taken + ".lock")
	locked, err := lock.TryLock()
	require.NoError(t, err)
	require.True(t, locked)
	t.Cleanup(func() { _ = lock.Unlock() }) // after the subtests, which are parallel

	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"unknown flag":         {[]string{"-x"}, "not defined: -x: see outbox -h"},
		"not a number":         {[]string{"-n", "many"}, `invalid value "many" for flag -n`},
		"argument":             {[]string{"x"}, `unexpected argument "x"`},
		"negative n":           {[]string{"-n", "-1"}, "-n -1: pass 0 or more"},
		"more poison than all": {[]string{"-n", "2", "-poison", "3"}, "-poison 3: pass from 0"},
		"batch":                {[]string{"-batch", "0"}, "-batch 0: pass 1 or more"},
		"outage":               {[]string{"-outage", "-1s"}, "-outage -1s: pass 0 or more"},
		"negative crash":       {[]string{"-crash", "-1"}, "-crash -1: pass 1 or more"},
		"crash without db":     {[]string{"-crash", "5"}, "-crash: pass -db PATH too, or -pg or -mysql DSN"},
		"two databases":        {[]string{"-mysql", "u@tcp(h)/d", "-db", "a"}, "-mysql: leave out -db and -pg"},
		"in with n":            {[]string{"-in", "a.csv", "-n", "5"}, "-in: leave out -n"},
		"out with outage":      {[]string{"-out", "nats://127.0.0.1:1", "-outage", "1s"}, "-out: leave out -outage"},

		"missing folder":        {[]string{"-db", filepath.Join(folder, "none", "a.db")}, "there is no folder " + filepath.Join(folder, "none") + ": create it"},
		"folder as database":    {[]string{"-db", folder}, "pass the path of an SQLite file"},
		"database in use":       {[]string{"-db", taken}, "another run has it: wait for its end"},
		"text as database":      {[]string{"-db", in("notes.txt", strings.Repeat("not a database ", 100))}, "file is not a database"},
		"outbox of other shape": {[]string{"-db", other}, "the table courier_outbox is not one of this package: column seq INTEGER is missing"},
		"orders of other shape": {[]string{"-db", orders}, "it has a table orders of another program: pass another path"},
		"store is a file":       {[]string{"-db", strings.TrimSuffix(in("a.db.jetstream", ""), ".jetstream")}, "does not start"},

		"not a NATS URL": {[]string{"-out", "http://127.0.0.1:1"}, "such as nats://127.0.0.1:4222"},
		"no server":      {[]string{"-out", "nats://me:secret@127.0.0.1:1"}, "no connection to nats://me:xxxxx@127.0.0.1:1: nats: no servers available for connection: start a server there"},
		"no JetStream":   {[]string{"-out", plain.ClientURL()}, "has no JetStream: start it with nats-server -js"},

		"no such file":      {[]string{"-in", filepath.Join(folder, "none.csv")}, "none.csv: no such file"},
		"kind of file":      {[]string{"-in", in("a.txt", "a")}, "must end in .csv, .jsonl or .ndjson"},
		"empty csv":         {[]string{"-in", in("empty.csv", "")}, "it holds no rows"},
		"csv without rows":  {[]string{"-in", in("header.csv", "a,b\n")}, "it holds no rows"},
		"csv field missing": {[]string{"-in", in("fields.csv", "a,b\n1,2\n3\n")}, "fields.csv:3: the number of its fields is 1, that of the header 2: correct or remove the line; nothing of the file was written"},
		"csv quote":         {[]string{"-in", in("quote.csv", "a,b\n1,x\"y\n")}, "quote.csv:2: bare \" in non-quoted-field"},
		"csv header":        {[]string{"-in", in("twice.csv", "a,a\n1,2\n")}, `twice.csv:1: column 2 of the header is named "a"`},
		"csv encoding":      {[]string{"-in", in("latin.csv", "a\n\xe9\n")}, "latin.csv:2: it is not UTF-8"},
		"json":              {[]string{"-in", in("half.jsonl", "{}\n\n{\"a\":\n")}, "half.jsonl:3: it is not valid JSON"},
		"json encoding":     {[]string{"-in", in("latin.ndjson", "\"\xe9\"\n")}, "latin.ndjson:1: it is not UTF-8"},
		"json line":         {[]string{"-in", in("long.jsonl", "1\n\""+strings.Repeat("x", maxLine)+"\"\n")}, "long.jsonl:2: it is longer than 64 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := program(t, c.args...)
			require.Equal(t, exitCannotRun, r.status, r.stderr)
			require.Empty(t, r.stdout)
			require.Contains(t, r.stderr, c.says)
			require.Equal(t, 1, strings.Count(r.stderr, "\n"), "one line: %s", r.stderr)
			require.True(t, strings.HasPrefix(r.stderr, "outbox: "), r.stderr)
		})
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	r := program(t, "-h")
	require.Zero(t, r.status)
	require.Empty(t, r.stderr)
	for _, name := range []string{"-pg", "-n", "-in", "-out", "-db", "-crash", "-batch", "-outage", "-poison", "-preload"} {
		require.Regexp(t, `(?m)^  `+name+`\b`, r.stdout)
	}
}

func TestAnotherStream(t *testing.T) {
	t.Parallel()
	outside := startOutside(t)
	_, err := client(t, outside).CreateStream(t.Context(), jetstream.StreamConfig{Name: streamName, Subjects: []string{"theirs"}})
	require.NoError(t, err)
	r := program(t, "-n", "5", "-out", outside.address())
	require.Equal(t, exitCannotRun, r.status)
	require.Contains(t, r.stderr, "has a stream COURIER_DEMO of another program")
}

func TestPoisonIsSpread(t *testing.T) {
	t.Parallel()
	for n := range 20 {
		for poison := range n + 1 {
			spoilt := 0
			names := make(map[string]bool)
			for o, err := range generated(n, poison, 100) {
				require.NoError(t, err)
				names[o.name] = true
				if o.rawHeaders != "" || len(o.body) > 100 || o.topic != topicOrders {
					spoilt++
				}
			}
			require.Len(t, names, n)
			require.Equal(t, poison, spoilt, "of %d", n)
		}
	}
}

func TestReadingStops(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rows.jsonl")
	write(t, file, "1\n2\nbad\n")
	for o, err := range readFile(file) {
		require.NoError(t, err)
		require.Equal(t, "1", string(o.body))
		break
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func openPool(t *testing.T, path string) *sql.DB {
	t.Helper()
	pool, err := sql.Open("sqlite", couriersql.SQLiteDSN(path))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	return pool
}

func execute(t *testing.T, path, text string) {
	t.Helper()
	_, err := openPool(t, path).ExecContext(t.Context(), text)
	require.NoError(t, err)
}

func count(t *testing.T, path, query string) (n int) {
	t.Helper()
	require.NoError(t, openPool(t, path).QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

func theOrder(t *testing.T, pool *sql.DB) (id string) {
	t.Helper()
	require.NoError(t, pool.QueryRowContext(t.Context(), `SELECT min(id) FROM orders`).Scan(&id))
	return id
}

func startServer(t *testing.T, options *server.Options) *server.Server {
	t.Helper()
	s, err := server.NewServer(options)
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(brokerTimeout))
	return s
}

// startOutside starts a server that the program did not.
func startOutside(t *testing.T) *broker {
	t.Helper()
	return startIn(t, t.TempDir())
}

func startIn(t *testing.T, folder string) *broker {
	t.Helper()
	b, err := startBroker(folder, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(b.stop)
	return b
}

func client(t *testing.T, b *broker) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(b.address())
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	return js
}

// startKept starts a server on what the program left beside a database.
func startKept(t *testing.T, db string) jetstream.JetStream {
	t.Helper()
	return client(t, startIn(t, db+".jetstream"))
}

func openKept(t *testing.T, db string) jetstream.Stream {
	t.Helper()
	stream, err := startKept(t, db).Stream(t.Context(), streamName)
	require.NoError(t, err)
	return stream
}

// payloads returns what the stream holds of rows and orders, in its order.
func payloads(t *testing.T, b *broker) (list []string) {
	t.Helper()
	stream, err := client(t, b).Stream(t.Context(), streamName)
	require.NoError(t, err)
	for seq := stream.CachedInfo().State.FirstSeq; seq <= stream.CachedInfo().State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		require.NoError(t, err, fmt.Sprint(seq))
		list = append(list, string(m.Data))
	}
	return list
}
