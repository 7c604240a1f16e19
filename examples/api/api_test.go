package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network leads to an API without a connection, of which a bubble knows nothing. It asks the
// readiness probe at each request.
type network struct {
	http.Handler
	ready func() error
	said  []error
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if n.ready != nil {
		n.said = append(n.said, n.ready())
	}
	answer := httptest.NewRecorder()
	n.ServeHTTP(answer, r)
	return answer.Result(), nil
}

// copyFor runs the program for a while, and returns what the probe said.
func copyFor(t *testing.T, file string, served *api, d time.Duration) []error {
	ctx, stop := context.WithTimeout(t.Context(), d)
	defer stop()
	n := &network{Handler: served}
	require.NoError(t, run(ctx, file, "http://api/items", n, func(ready func() error) { n.ready = ready }))
	return n.said
}

func count(t *testing.T, file, table string) (n int) {
	db, err := sql.Open("sqlite", file)
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.QueryRow("SELECT COUNT(*) FROM "+table).Scan(&n))
	return n
}

// Every item gets there, the bad ones as dead letters, through a quota, failures of the
// API and a restart. The probe says ready while the quota is used up.
func TestItems_GetThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "items.db")
		served := &api{items: 300}
		var unready []string
		for _, err := range copyFor(t, file, served, time.Minute) {
			if err != nil {
				unready = append(unready, err.Error())
			}
		}
		require.Contains(t, unready, "courier: the last fetch failed: the API answered 500 Internal Server Error")
		require.NotContains(t, unready, "courier: the last fetch failed: the API answered 429 Too Many Requests")
		require.Greater(t, served.requests, 14) // two quotas
		require.Equal(t, 297, count(t, file, "items"))
		require.Equal(t, 3, count(t, file, "dead_items"))

		served.items = 310 // ten new ones, which a new process reads
		copyFor(t, file, served, time.Minute)
		require.Equal(t, 307, count(t, file, "items"))
		require.Equal(t, 3, count(t, file, "dead_items"))
	})
}

// A 401 is an outage of the source: it is asked again every few seconds, the probe says
// why, and all goes on once it is over.
func TestItems_AWrongTokenIsAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "items.db")
		served := &api{items: 10, status: http.StatusUnauthorized}
		ready := copyFor(t, file, served, time.Minute)
		var refused *statusError
		require.ErrorAs(t, ready[len(ready)-1], &refused)
		require.Equal(t, http.StatusUnauthorized, refused.code)
		require.Greater(t, served.requests, 12)
		require.Less(t, served.requests, 25)

		served.status = 0
		copyFor(t, file, served, time.Minute)
		require.Equal(t, 10, count(t, file, "items"))
	})
}

// After a crash the page of the first entry that was not marked comes again, whole, and
// every page after it. A failed save is made again.
func TestFeed_ReadsOnFromTheFirstEntryThatIsNotMarked(t *testing.T) {
	ctx := t.Context()
	served, stored := &api{items: 300}, ""
	fails := errors.New("disk full")
	start := func() *feed {
		return &feed{client: &http.Client{Transport: &network{Handler: served}}, url: "http://api/items", saved: stored, next: stored,
			save: func(_ context.Context, cursor string) error {
				if fails != nil {
					return fails
				}
				stored = cursor
				return nil
			}}
	}
	f := start()
	entries, err := f.Fetch(ctx, 60)
	require.NoError(t, err)
	require.Len(t, entries, 60)
	require.Len(t, f.held, 75) // three pages

	done := append(entries[:30:30], entries[31:]...) // but the 31st
	require.ErrorIs(t, f.Mark(ctx, done), fails)
	fails = nil
	require.NoError(t, f.Mark(ctx, done))
	require.Equal(t, "25", stored)
	again, err := f.Fetch(ctx, 5)
	require.NoError(t, err)
	require.Equal(t, "item 31 (entry 31)", f.Identity(again[0])) // until it is marked
	require.Equal(t, 61, again[1].ID)

	served.requests = 0 // none of the next ones fails
	afterCrash, err := start().Fetch(ctx, 60)
	require.NoError(t, err)
	require.Equal(t, 26, afterCrash[0].ID)
}

// The last page may have the cursor for later, its own or none. No item is read twice, and
// one that is added is read, on that page or the next.
func TestFeed_LastPage(t *testing.T) {
	for name, last := range map[string]func(cursor, next string) string{
		"the cursor for later": func(_, next string) string { return next },
		"its own cursor":       func(cursor, _ string) string { return cursor },
		"none":                 func(string, string) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			items := 7
			served := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				cursor := r.URL.Query().Get("cursor")
				first, _ := strconv.Atoi(cursor)
				var p page
				for id := first + 1; id <= min(first+5, items); id++ {
					p.Items = append(p.Items, item{ID: id})
				}
				p.Next = strconv.Itoa(first + len(p.Items))
				if first+5 >= items {
					p.Next = last(cursor, p.Next)
				}
				_ = json.NewEncoder(w).Encode(p)
			})
			f := &feed{client: &http.Client{Transport: &network{Handler: served}}, url: "http://api/items",
				save: func(context.Context, string) error { return nil }}
			for _, want := range []int{7, 0, 1, 7, 0} {
				if want > 0 {
					items = f.read + want
				}
				entries, err := f.Fetch(t.Context(), 100)
				require.NoError(t, err)
				require.Len(t, entries, want)
				for i, e := range entries {
					require.Equal(t, items-want+i+1, e.ID)
				}
				require.NoError(t, f.Mark(t.Context(), entries))
			}
		})
	}
}

// Retry-After has seconds or a date.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for value, want := range map[string]time.Duration{
			"": 0, "soon": 0, "120": 2 * time.Minute, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): time.Hour,
		} {
			require.Equal(t, want, retryAfter(http.Header{"Retry-After": {value}}), fmt.Sprintf("%q", value))
		}
	})
}
