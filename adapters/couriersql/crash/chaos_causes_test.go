package crash

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/erfanmomeniii/courier/courierttest/network"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"
)

// cause is what goes wrong for a while. Two of one room would get in each other's way.
type cause struct {
	room  string
	begin func() (end func())
}

func (c *chaos) causes() map[string]cause {
	database := func(s *slot) *network.Network { return s.database }
	broker := func(s *slot) *network.Network { return s.nats }
	return map[string]cause{
		"failover": {"server", func() func() { return c.failover(false) }},
		"failover to a replica that misses commits": {"server", func() func() { return c.failover(true) }},
		"the name leads to the standby":             {"server", c.astray},
		"the server crashes and restarts":           {"server", c.restart},
		"backends are frozen":                       {"server", c.freeze},
		"backends are terminated":                   {"server", c.terminate},
		"the pooler restarts":                       {"server", c.restartPooler},

		"the database's connections are cut":       {"network", func() func() { return c.cut(database) }},
		"the database's connections are forgotten": {"network", func() func() { return c.swallow(database, true) }},
		"the database's packets are swallowed":     {"network", func() func() { return c.swallow(database, false) }},
		"the database's packets are held back":     {"network", func() func() { return c.hold(database) }},
		"the broker's connections are cut":         {"network", func() func() { return c.cut(broker) }},
		"the broker's packets are swallowed":       {"network", func() func() { return c.swallow(broker, false) }},
		"the broker's packets are held back":       {"network", func() func() { return c.hold(broker) }},

		"the broker restarts":          {"broker", func() func() { c.broker.stop(); return c.broker.start }},
		"the stream is full":           {"broker", func() func() { c.broker.room(30); return func() { c.broker.room(-1) } }},
		"the payload limit is lowered": {"broker", c.lowerPayload},
		"the credentials are rotated":  {"broker", c.rotate},
		"the permission is taken":      {"broker", c.deny},

		"a relay is killed": {"relay", c.kill},
	}
}

// trouble excuses what relays, or all, have in hand until some time after the end.
func (c *chaos) trouble(slots ...*slot) (end func()) {
	disturb := func(d time.Duration) {
		for _, g := range c.groups {
			for i, r := range g.relays {
				if len(slots) == 0 || slices.Contains(slots, g.slots[i]) {
					g.stream.disturbFor(r.name, d)
				}
			}
		}
	}
	disturb(time.Hour)
	return func() { disturb(time.Duration(c.slack) * 3 * time.Second) }
}

// some draws one relay's place, or takes all. A broker's network excuses nothing: who
// cannot deliver does not have to deliver again.
func (c *chaos) some(of func(*slot) *network.Network) (slots []*slot, end func()) {
	for _, g := range c.groups {
		slots = append(slots, g.slots...)
	}
	if c.random.IntN(3) > 0 {
		i := c.random.IntN(len(slots))
		slots = slots[i : i+1]
	}
	if s := slots[0]; of(s) != s.database {
		return slots, func() {}
	}
	return slots, c.trouble(slots...)
}

func (c *chaos) cut(of func(*slot) *network.Network) func() {
	slots, end := c.some(of)
	for _, s := range slots {
		of(s).Cut()
	}
	return end
}

func (c *chaos) hold(of func(*slot) *network.Network) func() {
	slots, end := c.some(of)
	for _, s := range slots {
		of(s).Hold(true)
	}
	return func() {
		for _, s := range slots {
			of(s).Hold(false)
		}
		end()
	}
}

// swallow loses packets one way or both, of the connections that there are or of all.
// When that ends, the connections that were lost stay so, or both sides hear of it.
func (c *chaos) swallow(of func(*slot) *network.Network, forgotten bool) func() {
	slots, end := c.some(of)
	ways := network.Way(1 + c.random.IntN(3))
	stay := c.random.IntN(2) == 0
	for _, s := range slots {
		of(s).Swallow(ways)
		if forgotten {
			of(s).Swallow(0)
		}
	}
	return func() {
		for _, s := range slots {
			of(s).Swallow(0)
			// The server takes a leader for gone after 15 s.
			if !stay || s.strict && of(s) == s.database {
				of(s).Cut()
			}
		}
		end()
	}
}

func (c *chaos) kill() func() {
	g := c.groups[c.random.IntN(len(c.groups))]
	i := c.random.IntN(len(g.relays))
	g.kill(g.relays[i])
	return func() { g.relays[i] = c.spawn(g, g.slots[i]) }
}

func (c *chaos) lowerPayload() func() {
	c.broker.options.MaxPayload = 2000
	c.broker.reload()
	g := c.groups[c.random.IntN(len(c.groups))]
	for range 5 { // some are rolled back, and something may befall the database too
		if c.paused {
			break
		}
		c.bigs++
		_ = g.commit(fmt.Sprint("big/", c.bigs), "big", big, make([]byte, 3000), c.random)
	}
	return func() {
		c.broker.options.MaxPayload = 1 << 20
		c.broker.reload()
	}
}

func (c *chaos) rotate() func() {
	c.broker.password++
	c.broker.options.Users = c.broker.users(nil)
	c.broker.reload()
	return c.broker.handOut
}

func (c *chaos) deny() func() {
	c.broker.options.Users = c.broker.users([]string{"orders.>"})
	c.broker.reload()
	return func() {
		c.broker.options.Users = c.broker.users(nil)
		c.broker.reload()
	}
}

func (c *chaos) restart() func() { return c.restartOf(c.primary) }

func (c *chaos) restartPooler() func() { return c.restartOf(c.pooler) }

func (c *chaos) restartOf(server interface {
	Crash() error
	Restart() error
},
) func() {
	end := c.trouble()
	require.NoError(c.t, server.Crash())
	return func() {
		require.NoError(c.t, server.Restart())
		end()
	}
}

// ask asks the primary, which may have to recover from what befell it before.
func (c *chaos) ask(call func(ctx context.Context, db *sql.DB) error) {
	c.t.Helper()
	var err error
	for start := time.Now(); time.Since(start) < recovery; time.Sleep(10 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
		err = call(ctx, c.admin)
		cancel()
		if err == nil {
			return
		}
	}
	require.NoError(c.t, err)
}

// backends draws one of the sessions that relays have, or takes all.
func (c *chaos) backends() (pids []int) {
	c.ask(func(ctx context.Context, db *sql.DB) error {
		rows, err := db.QueryContext(ctx, `SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name LIKE 'relay-%' ORDER BY backend_start, pid`)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		pids = nil
		for rows.Next() {
			var pid int
			if err := rows.Scan(&pid); err != nil {
				return err
			}
			pids = append(pids, pid)
		}
		return rows.Err()
	})
	if len(pids) > 0 && c.random.IntN(2) == 0 {
		i := c.random.IntN(len(pids))
		pids = pids[i : i+1]
	}
	return pids
}

// sessions tells of those that relays have, for who looks into a failure.
func (c *chaos) sessions() (list []string) {
	c.ask(func(ctx context.Context, db *sql.DB) error {
		return db.QueryRowContext(ctx, `SELECT array_agg(format('%s %s %s %s %s, for %s: %s', pid, datname, application_name, state, wait_event, now() - state_change, left(query, 100)))
			FROM pg_stat_activity WHERE application_name LIKE 'relay-%'`).Scan(pgtype.NewMap().SQLScanner(&list))
	})
	return list
}

func (c *chaos) freeze() func() {
	end := c.trouble()
	pids := c.backends()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
	}
	return func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		end()
	}
}

func (c *chaos) terminate() func() {
	end := c.trouble()
	for _, pid := range c.backends() {
		c.ask(func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, `SELECT pg_terminate_backend($1)`, pid)
			return err
		})
	}
	return end
}

// cutAll has all relays connect again, and the pooler.
func (c *chaos) cutAll() {
	c.way.Cut()
	for _, g := range c.groups {
		for _, s := range g.slots {
			s.database.Cut()
		}
	}
}

// astray has all that connects for a while be led to the standby. What connected
// directly stays there then; a pooler is told after a failover.
func (c *chaos) astray() func() {
	end := c.trouble()
	c.service.server.Store(c.replica)
	c.cutAll()
	return func() {
		c.service.server.Store(c.primary)
		require.NoError(c.t, c.pooler.Reconnect(c.t.Context()))
		end()
	}
}

// failover has the primary die and the replica promoted, which has all that was
// committed before, or misses the last commits. The name leads to the dead primary
// first, and then to the replica while that is a standby still.
func (c *chaos) failover(misses bool) func() {
	end := c.trouble()
	c.pause(!misses) // relays go on to mark
	lost := span{from: time.Now()}
	c.catchUp()
	if misses {
		require.NoError(c.t, c.replica.Crash())
		time.Sleep(time.Duration(100+c.random.IntN(500)) * time.Millisecond)
	}
	require.NoError(c.t, c.primary.Crash())
	lost.to = time.Now()
	return func() {
		if misses {
			require.NoError(c.t, c.replica.Restart())
		}
		c.service.server.Store(c.replica)
		c.cutAll()
		time.Sleep(time.Duration(c.random.IntN(500)) * time.Millisecond)
		require.NoError(c.t, c.replica.Promote(c.t.Context()))
		old := c.primary
		c.primary, c.replica = c.replica, nil
		c.home.server.Store(c.primary)
		for _, g := range c.groups {
			g.losses = append(g.losses, lost)
			g.stream.unmark(lost.from)
			c.ask(func(ctx context.Context, _ *sql.DB) error { return g.reconcile(ctx) })
		}
		c.pause(false)
		end()
		require.NoError(c.t, old.Stop())
	}
}

// catchUp waits until the replica has all that was committed until now.
func (c *chaos) catchUp() {
	var lsn string
	c.ask(func(ctx context.Context, db *sql.DB) error {
		return db.QueryRowContext(ctx, `SELECT pg_current_wal_insert_lsn()`).Scan(&lsn)
	})
	c.ask(func(ctx context.Context, db *sql.DB) error {
		var has bool
		if err := db.QueryRowContext(ctx, `SELECT COALESCE(bool_or(flush_lsn >= $1::pg_lsn), false) FROM pg_stat_replication`, lsn).Scan(&has); err != nil {
			return err
		}
		if !has {
			return fmt.Errorf("the replica has not got to %s", lsn)
		}
		return nil
	})
}

// reconcile forgets the debts of commits that the primary does not have.
func (g *group) reconcile(ctx context.Context) error {
	has, err := g.committed(ctx)
	if err != nil {
		return err
	}
	g.stream.mu.Lock()
	defer g.stream.mu.Unlock()
	for id := range g.stream.owed {
		if has[id] == "" {
			delete(g.stream.owed, id)
		}
	}
	return nil
}

// settleParked settles the debts that are parked.
func (g *group) settleParked(ctx context.Context) error {
	rows, err := g.db.QueryContext(ctx, `SELECT id FROM courier_outbox_dlq`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return err
		}
		g.stream.parked(id)
	}
	return rows.Err()
}
