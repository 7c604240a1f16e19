//go:build synctests

package courierkafka_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// A revoke commits the records that the member applied while every commit failed, before the
// member gives the partition back.
func TestSource_ARevokeCommitsWhatCouldNotBeCommittedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		const records = 40
		k.write(t, "wide", 0, records, strconv.Itoa)
		var refused atomic.Bool
		refused.Store(true)
		k.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			if refused.Load() {
				return refuseCommit(request, kerr.UnknownServerError), nil, true
			}
			return nil, nil, false
		})
		l := new(ledger)
		note := func(member int) func(context.Context, *kgo.Record) error {
			return func(_ context.Context, r *kgo.Record) error {
				l.note(member, r)
				return nil
			}
		}
		first := k.run(t, "wide", note(1), nil)
		time.Sleep(10 * time.Second)
		require.Len(t, l.numbers(), records)
		second := k.run(t, "wide", note(2), nil)
		time.AfterFunc(4*time.Second, func() { refused.Store(false) })
		time.Sleep(time.Minute)
		require.Len(t, l.numbers(), records, "the second member applies nothing again")
		require.True(t, k.settled(t, "wide"))
		first.leave(t)
		second.leave(t)
	})
}

// A member that gives a partition back begins no more records of it, so that the next one
// has not to wait until all in hand are applied.
func TestSource_ARevokeLetsGoOfWhatWasNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		const records = 200
		k.write(t, "wide", 0, records, strconv.Itoa)
		l := new(ledger)
		slow := func(member int) func(context.Context, *kgo.Record) error {
			return func(_ context.Context, r *kgo.Record) error {
				time.Sleep(300 * time.Millisecond)
				l.note(member, r)
				return nil
			}
		}
		first := k.run(t, "wide", slow(1), nil)
		time.Sleep(3 * time.Second)
		joined := time.Now()
		second := k.run(t, "wide", slow(2), nil)
		time.Sleep(2 * time.Minute)
		var began time.Time
		for _, a := range l.all() {
			if a.member == 2 && began.IsZero() {
				began = a.at
			}
		}
		require.Less(t, began.Sub(joined), 5*time.Second)
		require.Len(t, l.numbers(), records)
		require.Len(t, l.times(), records)
		first.leave(t)
		second.leave(t)
	})
}

// A revoke waits for nothing if no record of the partition is in progress: those that wait for
// their next attempt are let go of.
func TestSource_ARevokeDoesNotWaitForRecordsThatWait(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		for _, records := range []int{1, 20} {
			t.Run(fmt.Sprintf("by key: %v, %d records", keyed, records), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testRevokeOfWaiting(t, keyed, records) })
			})
		}
	}
}

func testRevokeOfWaiting(t *testing.T, keyed bool, records int) {
	k := startKafka(t)
	k.write(t, "orders", 0, records, func(int) string { return "key" })
	opts := []courier.Option{quiet, courier.WithStreamWorkers(2)}
	if keyed {
		opts = append(opts, courier.WithOrderKey(courierkafka.OrderKey))
	}
	eager := kgo.Balancers(kgo.RangeBalancer()) // gives back all
	var mu sync.Mutex
	at := make(map[string]time.Time)
	watched := courierkafka.Watched(func(what string, _ map[string][]int32) {
		mu.Lock()
		defer mu.Unlock()
		at[what] = time.Now()
	})
	client := k.joinAs(t, watched, new(cable), "orders", eager)
	down := courier.ProcessFunc(func(context.Context, *kgo.Record) error { return errors.New("down") })
	applier := courier.NewRetryableApplier(down, courier.RetryPolicy{MaxAttempts: 100, InitialDelay: time.Hour, MaxDelay: time.Hour})
	c := courier.NewStreamingCoordinator(courierkafka.NewSource(client), applier, opts...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Start(ctx) }()
	time.Sleep(10 * time.Second)
	require.EqualValues(t, records, c.Stats().InHand)

	k.join(t, new(cable), "orders", eager)
	time.Sleep(time.Minute)
	mu.Lock()
	took, revoked := at["revoked"].Sub(at["revoking"]), at["revoked"]
	mu.Unlock()
	cancel()
	require.NoError(t, <-ended)
	require.NotZero(t, revoked)
	require.Less(t, took, time.Second)
}
