package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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
	*api
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
	n := &network{api: served}
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
		return &feed{client: &http.Client{Transport: &network{api: served}}, url: "http://api/items", saved: stored, next: stored,
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
