//go:build synctests

package courierkafka_test

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

var atEnd = kgo.ConsumeStartOffset(kgo.NewOffset().AtEnd())

// fetchWhatComes writes records when a source waits for them, and returns what it fetches.
func fetchWhatComes(t *testing.T, k *kafka, s *courierkafka.Source, from, to int) ([]*kgo.Record, error) {
	t.Helper()
	var records []*kgo.Record
	fetched := make(chan error, 1)
	go func() {
		var err error
		records, err = fetch(t, s, to-from)
		fetched <- err
	}()
	time.Sleep(10 * time.Second)
	k.write(t, "orders", from, to, strconv.Itoa)
	return records, <-fetched
}

// What a member has in hand of a group that began at the end is delivered again after the
// member has died: the next one does not begin at the end of then. The member hands nothing
// out before that is sure.
func TestSource_AGroupThatBeginsAtTheEndLosesNothingInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 5, strconv.Itoa)
		wire := new(cable)
		first := courierkafka.NewSource(k.join(t, wire, "orders", atEnd))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := first.Fetch(ctx, 1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		lag, err := first.Lag(t.Context())
		require.NoError(t, err)
		require.Zero(t, lag.Pending, "it is at the end")
		refused := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.GroupAuthorizationFailed, Count: -1})
		records, err := fetchWhatComes(t, k, first, 5, 8)
		require.ErrorIs(t, err, kerr.GroupAuthorizationFailed)
		require.Empty(t, records)
		refused.Remove()
		records = fetchAll(t, first, 3)
		require.Equal(t, 5, number(records[0]))
		require.EqualValues(t, 5, k.committed(t, "orders", 0))

		wire.set(true)
		second := courierkafka.NewSource(k.join(t, new(cable), "orders", atEnd))
		again := fetchAll(t, second, 3)
		require.Equal(t, 5, number(again[0]))
	})
}

// The same of a partition whose first record is the first of all, and of a member that was
// expelled before it had read.
func TestSource_AGroupThatBeginsAtTheEndOfAnEmptyPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		client := k.join(t, new(cable), "orders", atEnd)
		source := courierkafka.NewSource(client)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := source.Fetch(ctx, 1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		k.expelUnheard(t, client)()
		time.Sleep(30 * time.Second)
		records, err := fetchWhatComes(t, k, source, 0, 3)
		require.NoError(t, err)
		require.NotEmpty(t, records)
		require.Zero(t, k.committed(t, "orders", 0))
	})
}
