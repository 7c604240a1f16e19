package couriersql

import (
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func TestBadConfigurationIsReportedByEveryMethod(t *testing.T) {
	db := open(t, t.TempDir()+"/test.db")
	for want, o := range map[string]*Outbox{
		"db is nil":      New(nil, SQLite),
		"dialect 0 is ":  New(db, 0),
		`table "" is`:    New(db, SQLite, WithTable("")),
		`table "a b" is`: New(db, SQLite, WithTable("a b")),
	} {
		t.Run(want, func(t *testing.T) {
			_, fetched := o.Source().Fetch(t.Context(), 1)
			_, counted := o.Pending(t.Context())
			_, received := o.DLQ().Receive(t.Context(), 1)
			_, listed := o.DLQ().List(t.Context(), "1.1", 1)
			_, keys := o.DLQ().ParkedKeys(t.Context(), "", []string{"k"})
			_, parked := o.DLQ().Count(t.Context())
			for _, err := range []error{
				o.Migrate(t.Context()), o.Write(t.Context(), new(sql.Tx)), fetched, counted, received, listed, keys, parked,
				o.Source().Mark(t.Context(), []Row{{}}), o.DLQ().Send(t.Context(), courier.DeadLetter[Row]{}), o.DLQ().Delete(t.Context(), "1.1"),
				o.DLQ().Update(t.Context(), courier.DeadLetter[Row]{ID: "1.1"}),
			} {
				require.ErrorIs(t, err, courier.ErrConfig)
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestTableNamesThatAreRefused(t *testing.T) {
	for _, name := range []string{`a"b`, "a;DROP TABLE x", "1a", "Orders", "main.orders", "ä", "a-b", "{table}", "a\n", strings.Repeat("a", 49)} {
		require.ErrorIs(t, New(new(sql.DB), SQLite, WithTable(name)).fault, courier.ErrConfig, name)
	}
}

func TestTableNames(t *testing.T) {
	db := open(t, t.TempDir()+"/test.db")
	for _, name := range []string{"order", "_x1", strings.Repeat("a", 48)} { // a keyword is a name like any other
		o := outboxIn(t, db, WithTable(name))
		write(t, o, named(name)...)
		require.Equal(t, []string{name}, idsOf(fetch(t, o, 10)))
		require.NoError(t, o.Source().Mark(t.Context(), fetch(t, o, 10)))
		require.NoError(t, o.DLQ().Send(t.Context(), letter(name, nil)))
	}
}

func TestTheSystemsClockIsTheDefault(t *testing.T) {
	o := newOutbox(t, WithClock(nil))
	before := time.Now().UnixMicro()
	write(t, o, named("a")...)
	require.GreaterOrEqual(t, fetch(t, o, 1)[0].CreatedAt, before)
}
