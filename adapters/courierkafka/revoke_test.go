//go:build synctests

package courierkafka_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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
