package crash

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var (
	kills = flag.Int("crash.kills", 3, "kill `N` relays in each test")
	seed  = flag.Uint64("crash.seed", 1, "the `seed` of what happens when")
)

func TestMain(m *testing.M) {
	if text := os.Getenv(relayVariable); text != "" {
		relayMain(text)
	}
	if text := os.Getenv(effectsVariable); text != "" {
		effectsMain(text)
	}
	if text := os.Getenv(tableVariable); text != "" {
		tableMain(text)
	}
	if text := os.Getenv(poisonVariable); text != "" {
		poisonMain(text)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { pgtest.Exit(mytest.Stopped(code)) }))
}

// trial is a test: relays on one outbox, writers, and what befalls them.
type trial struct {
	t       *testing.T
	server  *pgtest.Server // nil for SQLite and MySQL
	config  relayConfig
	db      *sql.DB
	outbox  *couriersql.Outbox
	stream  *stream
	random  *rand.Rand
	relays  []*relay
	started int
	deck    []string       // blows to come
	tally   map[string]int // of what befell them
	numbers [4]int         // of what each writer has written
	pace    time.Duration  // of a writer, at most
	gate    sync.RWMutex   // is held while none is to write
	losses  []span         // of which a promoted replica missed the commits
}

// backlog is what writers leave to be delivered: more than all relays take in hand, and
// not so much that a recovery is about how fast they are.
const backlog = 300

// commitTimeout is how long a writer's transaction may take.
const commitTimeout = 10 * time.Second

type span struct{ from, to time.Time }

// missed says whether a message is of a commit that a promoted replica may have missed:
// one that was under way meanwhile.
func (tr *trial) missed(o *order) bool {
	return slices.ContainsFunc(tr.losses, func(lost span) bool {
		return o.committing.Before(lost.to) && (o.acked.After(lost.from) || o.acked.IsZero() && o.committing.Add(commitTimeout).After(lost.from))
	})
}

type relay struct {
	name string
	cmd  *exec.Cmd
}

func newTrial(t *testing.T, server *pgtest.Server, driver, dsn, hold string, relays int) *trial {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	tr := newTrialOf(t, t.Name(), db, relayConfig{Driver: driver, DSN: dsn, Hold: hold, Slack: 3})
	tr.server = server
	if !tr.stream.ordered {
		tr.config.Failures = 50
	}
	for range relays {
		tr.relays = append(tr.relays, tr.spawn())
	}
	return tr
}

// newTrialOf is one that has no relays yet. It closes the database.
func newTrialOf(t *testing.T, name string, db *sql.DB, config relayConfig) *trial {
	t.Helper()
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(name))
	tr := &trial{t: t, config: config, db: db, random: rand.New(rand.NewPCG(*seed, hash.Sum64())), tally: map[string]int{}, pace: 2 * time.Millisecond}
	tr.stream = newStream(t, config.Hold == "strict" || config.Driver == "sqlite" && config.Hold == "")
	tr.config.Socket = tr.stream.listener.Addr().String()
	tr.outbox = tr.config.outbox(tr.db)
	require.NoError(t, tr.outbox.Migrate(t.Context()))
	_, err := tr.db.ExecContext(t.Context(), `CREATE TABLE orders (id VARCHAR(100) PRIMARY KEY, topic TEXT)`)
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, r := range tr.relays {
			tr.kill(r)
		}
		tr.stream.close()
		require.NoError(t, tr.outbox.Close())
		require.NoError(t, tr.db.Close())
	})
	return tr
}

func (tr *trial) spawn() *relay {
	tr.started++
	config := tr.config
	config.Name = fmt.Sprint("relay-", tr.started)
	config.Seed = tr.random.Uint64()
	if config.Driver == "pgx" {
		config.DSN += " application_name=" + config.Name
	}
	return &relay{config.Name, startChild(tr.t, relayVariable, config)}
}

// startChild starts this test binary as the process that a variable of the environment
// tells it to be.
func startChild(t *testing.T, variable string, config relayConfig) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(config)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), variable+"="+string(text))
	cmd.Stderr = os.Stderr
	_, err = cmd.StdinPipe() // which Wait closes
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return cmd
}

// kill ends a relay as kill -9 does. What it has in hand is noted before, as
// another relay may have it before this process knows that the first is dead.
func (tr *trial) kill(r *relay) {
	tr.stream.disturb(r.name)
	tr.stream.expectDeath(r.name)
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	if h := tr.stream.hand(r.name); h != nil {
		<-h.gone // all that it had sent is read
	}
}

// write writes orders of one key, each in a transaction with its message, until
// stop, and some of them for long, so that others overtake them.
func (tr *trial) write(key int, stop *atomic.Bool) {
	random := rand.New(rand.NewPCG(*seed, uint64(1000+key)))
	for !stop.Load() {
		if tr.stream.owes() > backlog {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		tr.numbers[key]++
		if err := tr.writeOne(fmt.Sprintf("k%d/%d", key, tr.numbers[key]), fmt.Sprint("k", key), random); err != nil {
			// The database is down, or full. Whether the order was committed is
			// for the table to say.
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Duration(random.Int64N(int64(tr.pace)))) // the pace of the load
	}
}

func (tr *trial) writeOne(id, key string, random *rand.Rand) error {
	topic := "orders"
	if random.IntN(15) == 0 {
		topic = poison
	}
	return tr.commit(id, key, topic, []byte("an order"), random)
}

func (tr *trial) commit(id, key, topic string, payload []byte, random *rand.Rand) error {
	tr.gate.RLock()
	defer tr.gate.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	tx, err := tr.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := tr.outbox.Write(ctx, tx, couriersql.Message{ID: id, Topic: topic, Key: key, Payload: payload}); err != nil {
		return err
	}
	if random.IntN(20) == 0 && tr.config.Driver != "sqlite" {
		time.Sleep(30 * time.Millisecond) // a long transaction
	}
	if _, err := tx.ExecContext(ctx, tr.config.sql(`INSERT INTO orders VALUES ($1, $2)`), id, topic); err != nil {
		return err
	}
	if random.IntN(20) == 0 {
		return errors.New("rolled back")
	}
	tr.stream.committing(id)
	if err := tx.Commit(); err != nil {
		return err
	}
	tr.stream.committed(id)
	return nil
}

// progress waits until n more messages have been delivered.
func (tr *trial) progress(n int) {
	tr.t.Helper()
	want := tr.stream.count() + n
	require.Eventually(tr.t, func() bool { return tr.stream.count() >= want }, 60*time.Second, time.Millisecond,
		"nothing is delivered any more, after %v", tr.tally)
}

// run lets relays be killed, and the rest befall them, until enough of them
// were, and then sees whether all is there.
func (tr *trial) run() {
	t := tr.t
	var stop atomic.Bool
	var writers sync.WaitGroup
	for key := range 4 {
		writers.Go(func() { tr.write(key, &stop) })
	}
	defer writers.Wait()
	defer stop.Store(true)
	tr.progress(1)
	for tr.tally[kill]+tr.tally[parkKill] < *kills {
		tr.progress(1 + tr.random.IntN(60))
		tr.befall()
	}
	stop.Store(true)
	writers.Wait()
	letters := tr.verify()
	t.Logf("seed %d: %v; %d messages delivered and %d parked; %d deliveries repeated, of %d rows in hand at a blow",
		*seed, tr.tally, tr.stream.total-tr.stream.repeated, letters, tr.stream.repeated, tr.stream.struck)
}

// The blows, of which each deck has all.
const (
	kill     = "kill"
	parkKill = "kill between a letter and its mark"
	cut      = "connections cut"
	full     = "server full"
	crashed  = "server crashed"
	freeze   = "frozen for longer than a lease"
)

// blow draws the next one from a shuffled deck.
func (tr *trial) blow() string {
	if len(tr.deck) == 0 {
		tr.deck = []string{kill, kill, kill, kill, kill, parkKill, parkKill}
		if tr.config.Driver != "sqlite" { // where it may have locked the file
			tr.deck = append(tr.deck, freeze)
		}
		if tr.server != nil {
			tr.deck = append(tr.deck, cut, cut, full)
		}
		if tr.server != nil && tr.server.Private() {
			tr.deck = append(tr.deck, crashed)
		}
		tr.random.Shuffle(len(tr.deck), func(i, j int) { tr.deck[i], tr.deck[j] = tr.deck[j], tr.deck[i] })
	}
	next := tr.deck[0]
	tr.deck = tr.deck[1:]
	return next
}

func (tr *trial) befall() {
	i := tr.random.IntN(len(tr.relays))
	what := tr.blow()
	tr.tally[what]++
	switch what {
	case kill:
		tr.kill(tr.relays[i])
		tr.relays[i] = tr.spawn()
	case parkKill:
		select {
		case name := <-tr.stream.nextToPark():
			i = slices.IndexFunc(tr.relays, func(r *relay) bool { return r.name == name })
		case <-time.After(60 * time.Second):
			require.Fail(tr.t, "nothing is parked any more", "after %v", tr.tally)
		}
		tr.kill(tr.relays[i])
		tr.relays[i] = tr.spawn()
	case cut:
		tr.stream.disturb(tr.relays[i].name)
		_, err := tr.db.ExecContext(tr.t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`, tr.relays[i].name)
		require.NoError(tr.t, err)
	case freeze:
		r := tr.relays[i]
		tr.stream.disturbFor(r.name, tr.config.slack(leaseTime)+2*time.Second)
		require.NoError(tr.t, r.cmd.Process.Signal(syscall.SIGSTOP))
		time.Sleep(tr.config.slack(leaseTime) + 200*time.Millisecond)
		require.NoError(tr.t, r.cmd.Process.Signal(syscall.SIGCONT))
	case full:
		tr.fill()
	case crashed:
		for _, r := range tr.relays {
			tr.stream.disturb(r.name)
		}
		require.NoError(tr.t, tr.server.Crash())
		require.NoError(tr.t, tr.server.Restart())
		for _, r := range tr.relays {
			tr.stream.disturb(r.name)
		}
	}
}

// fill takes all connections that the server has left, for a moment.
func (tr *trial) fill() {
	db, err := sql.Open("pgx", tr.config.DSN)
	require.NoError(tr.t, err)
	defer func() { require.NoError(tr.t, db.Close()) }()
	for range 300 {
		conn, err := db.Conn(tr.t.Context())
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
	}
}

// committed returns the topics of all orders that the database has, by their IDs.
func (tr *trial) committed(ctx context.Context) (map[string]string, error) {
	rows, err := tr.db.QueryContext(ctx, `SELECT id, topic FROM orders`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all := map[string]string{}
	for rows.Next() {
		var id, topic string
		if err := rows.Scan(&id, &topic); err != nil {
			return nil, err
		}
		all[id] = topic
	}
	return all, rows.Err()
}

// verify waits until everything is delivered or parked, and compares. It returns
// how many letters there are.
func (tr *trial) verify() int {
	t := tr.t
	want, err := tr.committed(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, want)
	require.Eventually(t, func() bool {
		pending, err := tr.outbox.Pending(t.Context())
		return err == nil && pending == 0
	}, 60*time.Second, 20*time.Millisecond)
	parked := map[string]bool{}
	for letter, err := range courier.Letters(t.Context(), tr.outbox.DLQ()) {
		require.NoError(t, err)
		require.False(t, parked[letter.Record.ID], "%s is parked twice", letter.Record.ID)
		parked[letter.Record.ID] = true
		// The second part is its version, which is how often it was parked.
		require.Equal(t, "1", strings.Split(letter.ID, ".")[1], "%s was parked twice: %s", letter.Record.ID, letter.ID)
	}
	require.Empty(t, tr.stream.faulty())
	require.Empty(t, tr.wrong(want, parked), "seed %d, %s", *seed, groups[tr.config.Hold])
	return len(parked)
}

// wrong compares what is committed, delivered and parked.
func (tr *trial) wrong(want map[string]string, parked map[string]bool) (wrong []string) {
	tr.stream.mu.Lock()
	defer tr.stream.mu.Unlock()
	note := func(id, what string, o *order) {
		wrong = append(wrong, fmt.Sprintf("%s (%s) %s: %v", id, want[id], what, o.history))
	}
	for id, topic := range want {
		switch o := tr.stream.order(id); {
		case o.deliveries == 0 && !parked[id]:
			note(id, "is LOST", o)
		case o.deliveries > 0 && topic == poison:
			note(id, "is delivered", o)
		case parked[id] && topic == "orders":
			note(id, "is parked", o)
		}
	}
	for id, o := range tr.stream.orders {
		if want[id] != "" || tr.missed(o) {
			continue
		}
		if o.deliveries > 0 || o.parked {
			note(id, "was never committed", o)
		}
		if !o.acked.IsZero() {
			note(id, "is LOST: it was committed, and the database does not have it", o)
		}
	}
	for id := range parked {
		if want[id] == "" && !tr.missed(tr.stream.order(id)) {
			note(id, "was parked and never committed", tr.stream.order(id))
		}
	}
	return wrong
}

func TestPostgres(t *testing.T) {
	for hold, name := range groups {
		t.Run(name, func(t *testing.T) {
			server, err := pgtest.Start() // of its own, to be crashed
			require.NoError(t, err)
			defer func() { require.NoError(t, server.Stop()) }()
			t.Log(server.Note)
			dsn, _, err := server.NewSchema(t.Context())
			require.NoError(t, err)
			newTrialOn(t, server, dsn, hold)
		})
	}
}

func newTrialOn(t *testing.T, server *pgtest.Server, dsn, hold string) {
	t.Run("trial", func(t *testing.T) { newTrial(t, server, "pgx", dsn, hold, 3).run() })
}

func TestSQLite(t *testing.T) {
	for name, test := range map[string]struct {
		hold   string
		relays int
	}{"one": {"", 1}, "leased": {"lease", 2}} {
		t.Run(name, func(t *testing.T) {
			newTrial(t, nil, "sqlite", couriersql.SQLiteDSN(filepath.Join(t.TempDir(), "orders.db")), test.hold, test.relays).run()
		})
	}
}

func TestMySQL(t *testing.T) {
	for name, hold := range map[string]string{"leased": "lease", "strict": "strict"} {
		t.Run(name, func(t *testing.T) {
			newTrial(t, nil, "mysql", mytest.Database(t), hold, 3).run()
		})
	}
}

// After kill -9 of the relay that delivers, another one does within two seconds.
func TestTakeoverAfterAKill(t *testing.T) {
	server := pgtest.Shared(t)
	dsn := pgtest.Schema(t)
	tr := newTrial(t, server, "pgx", dsn, "strict", 3)
	var stop atomic.Bool
	var writers sync.WaitGroup
	writers.Go(func() { tr.write(0, &stop) })
	defer writers.Wait()
	defer stop.Store(true)
	var took []time.Duration
	for len(took) < 3 || slices.Min(took) >= 2*time.Second { // a busy machine may be the reason
		require.Less(t, len(took), 10, "%v", took)
		tr.progress(20)
		leader := tr.stream.lastRelay()
		i := slices.IndexFunc(tr.relays, func(r *relay) bool { return r.name == leader })
		tr.kill(tr.relays[i])
		killed := time.Now()
		tr.progress(1)
		took = append(took, time.Since(killed))
		require.Less(t, time.Since(killed), 15*time.Second, "the server would take a relay for gone")
		tr.relays[i] = tr.spawn()
	}
	t.Logf("taken over after %v", took)
}
