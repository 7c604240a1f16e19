package couriersql

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
)

// Whatever the session's settings, a letter is read as it was sent.
func TestDLQOfRecordsWhateverTheSettingsOfMySQL(t *testing.T) {
	for name, settings := range map[string]struct {
		params map[string]string
		config func(*mysql.Config)
	}{
		"none":                 {nil, func(*mysql.Config) {}},
		"no backslash escapes": {map[string]string{"sql_mode": "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES'"}, func(*mysql.Config) {}},
		"found rows":           {nil, func(c *mysql.Config) { c.ClientFoundRows = true }},
		"interpolated, latin1": {nil, func(c *mysql.Config) { c.InterpolateParams, c.Collation = true, "latin1_swedish_ci" }},
	} {
		t.Run(name, func(t *testing.T) {
			db := openMySQLAs(t, databaseOf(t, MySQL), settings.params, settings.config)
			q := NewDLQ(db, MySQL, DLQConfig[Row]{Table: "dead_rows"})
			require.NoError(t, q.Migrate(t.Context()))
			row := Row{ID: "é 'x' \\", Topic: "tópic", Key: "ké\"y", Payload: []byte("\x00\xff'\\"), CreatedAt: start.UnixMicro()}
			letter := letterOf(row, errors.New("€ \\ 'failed'"))
			letter.Key, letter.Branch = "schlüssel "+strings.Repeat("x", 9000), "brânch"
			require.NoError(t, q.Send(t.Context(), letter))
			list, err := q.Receive(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, list, 1)
			got := list[0]
			require.Equal(t, []any{row.ID, row.Topic, row.Key, row.Payload, row.CreatedAt}, []any{got.Record.ID, got.Record.Topic, got.Record.Key, got.Record.Payload, got.Record.CreatedAt})
			require.Equal(t, []any{letter.Key, letter.Branch, "€ \\ 'failed'"}, []any{got.Key, got.Branch, got.Error.Error()})
			keys, err := q.ParkedKeys(t.Context(), letter.Branch, []string{"other", letter.Key, ""})
			require.NoError(t, err)
			require.Equal(t, []string{letter.Key}, keys)

			again := letter
			again.Reason, again.Error = courier.ReasonKeyParked, errors.New("less")
			require.NoError(t, q.Send(t.Context(), again), "it replaces none")
			again.Reason, again.Error = courier.ReasonExhausted, errors.New("more")
			require.NoError(t, q.Send(t.Context(), again))
			list, err = q.Receive(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, list, 1)
			require.Equal(t, "more", list[0].Error.Error())
			require.NoError(t, q.Update(t.Context(), list[0]))
			require.NoError(t, q.Update(t.Context(), list[0]), "it has changed since")
			removed, err := q.Remove(t.Context(), list[0].ID, "no ID", "1.x.2")
			require.NoError(t, err)
			require.Empty(t, removed)
			list, err = q.Receive(t.Context(), 10)
			require.NoError(t, err)
			removed, err = q.Remove(t.Context(), "9.9.9", list[0].ID)
			require.NoError(t, err)
			require.Equal(t, []string{list[0].ID}, removed)
		})
	}
}

// Of several that remove the same letters, one is told of each.
func TestDLQInMySQLWhoseLettersSeveralRemove(t *testing.T) {
	q := orders(t, MySQL, nil)
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		require.NoError(t, q.Send(t.Context(), letterOf(order{ID: id}, nil)))
	}
	list, err := q.Receive(t.Context(), 10)
	require.NoError(t, err)
	ids := make([]string, len(list))
	for i, letter := range list {
		ids[i] = letter.ID
	}
	var mu sync.Mutex
	var all []string
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			removed, err := q.Remove(t.Context(), ids...)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, removed...)
		})
	}
	group.Wait()
	require.ElementsMatch(t, ids, all)
}

func TestDLQInAnotherDatabaseOfMySQL(t *testing.T) {
	home := namesIn(t, databaseOf(t, MySQL), `SELECT DATABASE()`)[0]
	db := openMySQL(t, mytest.Database(t), spelledAsElsewhere)
	q := NewDLQ(db, MySQL, DLQConfig[order]{Table: home + ".dead_orders", Identity: orderID})
	require.NoError(t, q.Migrate(t.Context()))
	for range 2 {
		require.NoError(t, q.Send(t.Context(), letterOf(order{ID: "a"}, nil)))
	}
	n, err := q.Count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	long := letterOf(order{ID: "b"}, nil)
	long.Branch = strings.Repeat("x", 1001)
	require.ErrorContains(t, q.Send(t.Context(), long), "a branch 1,000")
}
