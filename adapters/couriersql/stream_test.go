package couriersql

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func TestStream(t *testing.T) {
	for name, newOutbox := range ways() {
		if name == "locked" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, WithClock(nil), WithBackoff(time.Millisecond, time.Millisecond))
			var ids []string
			for i := range 500 {
				ids = append(ids, fmt.Sprintf("k/%d", i))
			}
			l := newLedger()
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				done <- courier.NewStreamingCoordinator(o.Stream(time.Millisecond), l.applier(0),
					courier.WithBatchSize(20), courier.WithPrefetch(2), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(ctx)
			}()
			write(t, o, named(ids[:250]...)...)
			write(t, o, named(ids[250:]...)...)
			require.Eventually(t, func() bool { return l.count() >= 500 }, 60*time.Second, time.Millisecond)
			stop()
			require.NoError(t, <-done)
			require.ElementsMatch(t, ids, l.deliveries)
			require.True(t, slices.IsSorted(l.keys["k"]), l.keys["k"])
			pending, err := o.Pending(t.Context())
			require.NoError(t, err)
			require.Zero(t, pending)
		})
	}
}

func TestStreamsThatAreRefused(t *testing.T) {
	for want, s := range map[string]*Stream{
		"db is nil":               New(nil, SQLite).Stream(time.Second),
		"interval is 0s":          newOutbox(t).Stream(0),
		"Stream needs WithLease ": newPostgres(t).Stream(time.Second),
	} {
		_, err := s.Fetch(t.Context(), 1)
		for _, err := range []error{s.Validate(), err} {
			require.ErrorIs(t, err, courier.ErrConfig)
			require.ErrorContains(t, err, want)
		}
	}
}

func TestStreamStopsWaiting(t *testing.T) {
	s := newOutbox(t).Stream(time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	_, err := s.Fetch(ctx, 1)
	require.ErrorIs(t, err, context.Canceled)
}
