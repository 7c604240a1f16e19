package crash

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/courierttest/network"
	"github.com/stretchr/testify/require"
)

var (
	chaosTime = flag.Duration("crash.chaos", 10*time.Second, "TestChaos: let things befall the relays for `d`")
	chaosOnly = flag.String("crash.only", "", "TestChaos: let befall the relays those things alone that match `regexp`")
)

var (
	// recovery is how soon all that was pending at the end of a cause is delivered.
	recovery = 10 * time.Second

	// readyBound is how long a relay may be ready in a standstill. It goes by the
	// timeouts that the relays have, one after the other where one blow follows another;
	// by those of the defaults it is a minute.
	readyBound = 15 * time.Second
)

const roundTime = time.Minute // after which all is compared

// TestChaos relays from PostgreSQL to JetStream while all befalls both that befalls
// them in production, one thing at a time or two. Three groups of relays have an
// outbox each, in a database of its own: of locks, of leases, and in strict order.
//
// What counts as committed is what the surviving primary holds in the end. Beside
// that, each commit that was acknowledged before the moment from which on a promoted
// replica misses commits has to be there. No message that is there is lost: each is
// in the stream or, as poison, parked. Nothing else is parked. Of what was acked, a
// relay tries again what was in a hand that something befell, and what had its mark
// in the commits that are missed. Within recovery of a cause's end all is delivered
// that was pending then, and no relay is ready for long while its group stands still.
func TestChaos(t *testing.T) {
	if os.Getenv(pgtest.DSNVariable) != "" {
		t.Skip("it crashes the server, which is somebody's")
	}
	slack := 1
	if *chaosTime < time.Minute { // a slice of it, beside the other tests of a busy machine
		slack, recovery, readyBound = 3, 30*time.Second, 45*time.Second
	}
	c := startChaos(t, slack)
	c.run()
}

type chaos struct {
	t                *testing.T
	slack            int
	random           *rand.Rand
	primary, replica *pgtest.Server
	home             name // leads writers to the primary
	service          name // leads relays to it, and for a moment elsewhere
	way              *network.Network
	pooler           *pgtest.Pooler
	broker           *broker
	admin            *sql.DB
	groups           []*group
	bigs             int
	paused           bool // all writers are
	deck             []string
	tally            map[string]int
	worst            map[string]time.Duration // recoveries
	delivered        int
	repeated         int
	parked           int
}

// group is of relays that share an outbox.
type group struct {
	*trial
	name  string
	slots []*slot
}

// slot is a relay's place, which a later one takes when it is killed.
type slot struct {
	strict         bool
	pooled         atomic.Bool // the relay connects through the pooler
	database, nats *network.Network
}

func startChaos(t *testing.T, slack int) *chaos {
	c := &chaos{t: t, slack: slack, random: rand.New(rand.NewPCG(*seed, 17)), tally: map[string]int{}, worst: map[string]time.Duration{}}
	var err error
	c.primary, err = pgtest.Start()
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, server := range []*pgtest.Server{c.replica, c.primary} {
			if server != nil {
				_ = server.Crash() // to stop is to wait for connections that are lost
				require.NoError(t, server.Stop())
			}
		}
	})
	c.home.server.Store(c.primary)
	c.service.server.Store(c.primary)
	c.admin = c.home.open(t, "postgres")
	for _, text := range []string{
		// So that a relay whose connection died without a sign keeps no lock for long.
		`ALTER SYSTEM SET idle_in_transaction_session_timeout = '7s'`, `ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'`, `SELECT pg_reload_conf()`,
		`CREATE DATABASE locked`, `CREATE DATABASE leased`, `CREATE DATABASE strict`,
	} {
		_, err := c.admin.ExecContext(t.Context(), text)
		require.NoError(t, err)
	}
	c.way = network.Local(t, c.service.dial)
	c.pooler, err = pgtest.StartPooler(c.way.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.pooler.Stop()) })
	c.broker = startBroker(t)
	logs := t.TempDir()
	for _, hold := range []string{"", "lease", "strict"} {
		name := groups[hold]
		config := relayConfig{Driver: "pgx", Hold: hold, Slack: slack, Chaos: &chaosConfig{Credentials: c.broker.credentials, Log: filepath.Join(logs, name)}}
		g := &group{name: name, trial: newTrialOf(t, name, c.home.open(t, name), config)}
		g.pace = 30 * time.Millisecond
		t.Cleanup(func() {
			if t.Failed() {
				text, _ := os.ReadFile(config.Chaos.Log)
				t.Logf("the log of the relays of %s:\n%s", name, text[max(0, len(text)-20_000):])
			}
		})
		for range 2 {
			s := &slot{strict: hold == "strict"}
			s.database = network.Local(t, func() (net.Conn, error) {
				if s.pooled.Load() {
					return c.pooler.Dial()
				}
				return c.service.dial()
			})
			s.nats = network.Local(t, c.broker.dial)
			g.slots = append(g.slots, s)
			g.relays = append(g.relays, c.spawn(g, s))
		}
		c.groups = append(c.groups, g)
	}
	c.replica, err = c.primary.Replica()
	require.NoError(t, err)
	return c
}

// spawn starts a relay that is made in one of the ways that there are.
func (c *chaos) spawn(g *group, s *slot) *relay {
	s.pooled.Store(c.random.IntN(2) == 0)
	address := s.database.Addr().(*net.TCPAddr)
	g.config.DSN = fmt.Sprintf("host=%s port=%d user=courier dbname=%s sslmode=disable connect_timeout=2", address.IP, address.Port, g.name)
	switch {
	case s.pooled.Load():
		g.config.DSN += " default_query_exec_mode=exec"
	case c.random.IntN(2) == 0:
		g.config.DSN += " target_session_attrs=read-write"
	}
	chaos := *g.config.Chaos
	chaos.NATS = s.nats.Addr().String()
	chaos.Stream = g.config.Hold != "" && c.random.IntN(2) == 0
	chaos.Prefetch = c.random.IntN(3)
	g.config.Chaos = &chaos
	return g.spawn()
}

func (c *chaos) run() {
	t := c.t
	watching, stop := context.WithCancel(t.Context())
	var watchers sync.WaitGroup
	watchers.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-watching.Done():
				return
			case <-tick.C:
			}
			for _, g := range c.groups {
				g.stream.watch(readyBound)
			}
		}
	})
	defer watchers.Wait()
	defer stop()
	for start := time.Now(); time.Since(start) < *chaosTime; {
		c.round(start.Add(*chaosTime))
	}
	var still, silent time.Duration
	var slowest string
	for what, d := range c.worst {
		if slowest == "" || d > c.worst[slowest] {
			slowest = what
		}
	}
	for _, g := range c.groups {
		g.stream.mu.Lock()
		still, silent = max(still, g.stream.still.longest), max(silent, g.stream.still.silent)
		g.stream.mu.Unlock()
	}
	for _, what := range slices.Sorted(maps.Keys(c.tally)) {
		t.Logf("%4d × %-42s all delivered after %v at most", c.tally[what], what, c.worst[what].Round(10*time.Millisecond))
	}
	t.Logf("seed %d: %d messages delivered, %d deliveries repeated, %d parked; longest standstill %v, of which a relay was ready for %v; longest recovery %v, after: %s",
		*seed, c.delivered, c.repeated, c.parked, still.Round(10*time.Millisecond), silent.Round(10*time.Millisecond), c.worst[slowest].Round(10*time.Millisecond), slowest)
}

// round lets things befall the relays for some time, and compares.
func (c *chaos) round(end time.Time) {
	var stop atomic.Bool
	var writers sync.WaitGroup
	for _, g := range c.groups {
		for key := range 2 {
			writers.Go(func() { g.write(key, &stop) })
		}
	}
	defer func() {
		stop.Store(true)
		c.pause(false)
		writers.Wait()
	}()
	for start := time.Now(); time.Now().Before(end) && time.Since(start) < roundTime; {
		c.befall()
	}
	stop.Store(true)
	writers.Wait()
	c.verify()
}

// befall lets one thing or two begin, last, and end, and waits for what is pending then.
func (c *chaos) befall() {
	what := c.draw()
	causes := c.causes()
	title, lasts := what, c.duration()
	begin := time.Now()
	ends := []func(){causes[what].begin()}
	if c.random.IntN(3) == 0 {
		if other := c.draw(); causes[other].room != causes[what].room {
			title += ", and " + other
			c.tally[other]++
			ends = append(ends, causes[other].begin())
		} else {
			c.deck = append(c.deck, other)
		}
	}
	c.tally[what]++
	<-time.After(lasts)
	for _, end := range ends {
		end()
	}
	took := c.await(fmt.Sprintf("%s, for %v", title, time.Since(begin).Round(time.Millisecond)))
	c.worst[what] = max(c.worst[what], took)
	if testing.Verbose() {
		c.t.Logf("%s %s, for %v: %v", stamp(), title, time.Since(begin).Round(time.Millisecond)-took, took)
	}
	if c.replica == nil {
		var err error
		c.replica, err = c.primary.Replica()
		require.NoError(c.t, err)
	}
}

// pause keeps writers from writing.
func (c *chaos) pause(on bool) {
	if on == c.paused {
		return
	}
	for _, g := range c.groups {
		if on {
			g.gate.Lock()
		} else {
			g.gate.Unlock()
		}
	}
	c.paused = on
}

// duration is short mostly, sometimes longer than a relay may be ready in a standstill,
// and in the long form sometimes longer than any pause of a relay.
func (c *chaos) duration() time.Duration {
	d := time.Duration(200+c.random.IntN(500)) * time.Millisecond
	switch n := c.random.IntN(60); {
	case n == 0 && *chaosTime > 5*time.Minute:
		return 100 * d
	case n < 15:
		return 10 * d
	}
	return d
}

// await waits until all is settled that is owed now.
func (c *chaos) await(after string) time.Duration {
	c.t.Helper()
	start := time.Now()
	type debt struct {
		g  *group
		id string
	}
	var debts []debt
	for _, g := range c.groups {
		g.stream.mu.Lock()
		for id := range g.stream.owed {
			debts = append(debts, debt{g, id})
		}
		g.stream.mu.Unlock()
	}
	for looked := start; ; {
		// Of a letter whose relay did not get the answer, only the database knows.
		if time.Since(looked) > time.Second {
			looked = time.Now()
			for _, g := range c.groups {
				c.ask(func(ctx context.Context, _ *sql.DB) error { return g.settleParked(ctx) })
			}
		}
		debts = slices.DeleteFunc(debts, func(d debt) bool {
			d.g.stream.mu.Lock()
			defer d.g.stream.mu.Unlock()
			_, owed := d.g.stream.owed[d.id]
			return !owed
		})
		for _, g := range c.groups {
			require.Empty(c.t, g.stream.faulty(), "seed %d, %s, after: %s", *seed, g.name, after)
		}
		took := time.Since(start)
		if len(debts) == 0 {
			return took
		}
		if took > recovery {
			var list []string
			for _, d := range debts[:min(5, len(debts))] {
				d.g.stream.mu.Lock()
				list = append(list, fmt.Sprintf("%s %s: %v", d.g.name, d.id, d.g.stream.order(d.id).history))
				d.g.stream.mu.Unlock()
			}
			for _, g := range c.groups {
				for _, state := range g.stream.states() {
					list = append(list, g.name+" "+state)
				}
			}
			require.Fail(c.t, "it does not recover", "seed %d: %d are pending %v after the end of: %s\n%s\nthe sessions of relays:\n%s",
				*seed, len(debts), took, after, strings.Join(list, "\n"), strings.Join(c.sessions(), "\n"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// verify compares what was committed with what is stored and parked, once all that is
// pending is delivered.
func (c *chaos) verify() {
	t := c.t
	c.await("the writers stopped")
	copies := c.broker.stored()
	for _, g := range c.groups {
		letters := g.verify()
		require.Empty(t, g.stream.compare(copies[g.name]), "seed %d, %s", *seed, g.name)
		total, repeated := g.stream.forget()
		c.delivered += total
		c.repeated += repeated
		c.parked += letters
		_, err := g.db.ExecContext(t.Context(), `TRUNCATE orders, courier_outbox_dlq`)
		require.NoError(t, err)
	}
}

// draw takes a cause from a deck that has each.
func (c *chaos) draw() string {
	if len(c.deck) == 0 {
		for what := range c.causes() {
			if regexp.MustCompile(*chaosOnly).MatchString(what) {
				c.deck = append(c.deck, what)
			}
		}
		slices.Sort(c.deck)
		c.random.Shuffle(len(c.deck), func(i, j int) { c.deck[i], c.deck[j] = c.deck[j], c.deck[i] })
	}
	next := c.deck[0]
	c.deck = c.deck[1:]
	return next
}
