//go:build synctests

package courierkafka_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
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

// expelUnheard removes a member from the group. It hears of that when tell is called, and then
// of a rebalance: it joins anew as another member, and keeps the partitions that it has.
func (k *kafka) expelUnheard(t *testing.T, client *kgo.Client) (tell func()) {
	t.Helper()
	expelled, _ := client.GroupMetadata()
	var told atomic.Bool
	k.ControlKey(int16(kmsg.Heartbeat), func(request kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		answer := request.ResponseKind().(*kmsg.HeartbeatResponse)
		if request.(*kmsg.HeartbeatRequest).MemberID != expelled {
			return nil, nil, false
		}
		if told.Load() {
			answer.ErrorCode = kerr.RebalanceInProgress.Code
		}
		return answer, nil, true
	})
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group, leave.Members = "g", []kmsg.LeaveGroupRequestMember{{MemberID: expelled}}
	_, err := leave.RequestWith(t.Context(), k.client)
	require.NoError(t, err)
	return func() { told.Store(true) }
}

// heldPoll is a hook of a client. It holds a poll that has taken records from the client, and
// has not returned them.
type heldPoll struct {
	next  atomic.Bool // the next poll is held
	until chan struct{}
}

func (h *heldPoll) OnFetchRecordUnbuffered(_ *kgo.Record, polled bool) {
	if polled && h.next.CompareAndSwap(true, false) {
		<-h.until
	}
}

// A poll that ends just when a member returns after it was expelled brings records of before.
// They are dropped, whether the member has kept its partitions or gets them anew: it goes on
// where it has to, and if it took them for what it reads there, it would commit beyond records
// that nobody has applied.
func TestSource_APollThatEndsAsAMemberReturnsBringsNothing(t *testing.T) {
	for name, expel := range map[string]func(*testing.T, *kafka, *kgo.Client){
		"it keeps its partitions": func(t *testing.T, k *kafka, client *kgo.Client) { k.expelUnheard(t, client)() },
		"it gets them anew": func(_ *testing.T, k *kafka, _ *kgo.Client) {
			k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, read := range []int{0, 10} {
				t.Run(fmt.Sprint("after ", read, " records"), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { testPollDuringReturn(t, read, expel) })
				})
			}
		})
	}
}

func testPollDuringReturn(t *testing.T, read int, expel func(*testing.T, *kafka, *kgo.Client)) {
	k := startKafka(t)
	k.write(t, "orders", 0, 40, strconv.Itoa)
	poll := &heldPoll{until: make(chan struct{})}
	release := sync.OnceFunc(func() { close(poll.until) })
	defer release()
	client := k.join(t, new(cable), "orders", kgo.WithHooks(poll))
	source := courierkafka.NewSource(client)
	fetchAll(t, source, read)
	poll.next.Store(true)
	fetched := make(chan []*kgo.Record, 1)
	go func() {
		var all []*kgo.Record
		for len(all) < 10 && t.Context().Err() == nil {
			some, _ := source.Fetch(t.Context(), 10-len(all)) // one says that the member is not in the group
			all = append(all, some...)
		}
		fetched <- all
	}()
	time.Sleep(10 * time.Second)
	require.False(t, poll.next.Load(), "the poll has taken records")

	expel(t, k, client)
	time.Sleep(30 * time.Second)
	require.EqualValues(t, 1, source.Lost())
	release()
	records := <-fetched
	for offset, r := range records {
		require.EqualValues(t, offset, r.Offset, "none was settled before it was expelled")
	}
	require.NoError(t, source.Mark(t.Context(), records))
	require.EqualValues(t, 10, k.committed(t, "orders", 0))
}

// A Fetch that waits for more when a member returns after it was expelled brings the records
// that come again: they are before the place where it waits.
func TestSource_AFetchThatWaitsAsAMemberReturnsBringsWhatComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		client := k.join(t, new(cable), "orders")
		source := courierkafka.NewSource(client)
		fetchAll(t, source, 10)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		fetched := make(chan []*kgo.Record, 1)
		go func() {
			records, _ := source.Fetch(ctx, 10)
			fetched <- records
		}()
		k.expelUnheard(t, client)()
		records := <-fetched
		require.NotEmpty(t, records)
		require.Zero(t, records[0].Offset)
	})
}

// A member that returns after it was expelled, and keeps a partition, delivers nothing again
// that the metadata of the last commit says is settled.
func TestSource_AMemberThatReturnsReadsTheMetadataOfTheLastCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 20, strconv.Itoa)
		client := k.join(t, new(cable), "orders")
		source := courierkafka.NewSource(client)
		records := fetchAll(t, source, 20)
		require.NoError(t, source.Mark(t.Context(), append(records[:2:2], records[5:10]...)))
		require.EqualValues(t, 2, k.committed(t, "orders", 0))

		k.expelUnheard(t, client)()
		time.Sleep(30 * time.Second)
		var again []int64
		for _, r := range fetchAll(t, source, 13) {
			again = append(again, r.Offset)
		}
		require.Equal(t, []int64{2, 3, 4, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, again)
		require.EqualValues(t, 1, source.Lost())
	})
}

// A member that returns after it was expelled, and whose last commits the brokers do not tell,
// reads nothing, says so, and can be closed.
func TestSource_AMemberThatReturnsCanBeClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 20, strconv.Itoa)
		client := k.join(t, new(cable), "orders")
		source := courierkafka.NewSource(client)
		fetchAll(t, source, 10)
		k.expelUnheard(t, client)()
		refused := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.GroupAuthorizationFailed, Count: -1})
		defer refused.Remove()
		time.Sleep(30 * time.Second)
		for range 3 {
			records, err := fetch(t, source, 10)
			require.ErrorIs(t, err, kerr.GroupAuthorizationFailed)
			require.Empty(t, records)
		}
		closed := make(chan struct{})
		go func() {
			client.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(5 * time.Minute):
			refused.Remove()
			t.Error("the client waits for the brokers")
		}
		_, err := source.Fetch(t.Context(), 10)
		require.ErrorIs(t, err, courierkafka.ErrClosed)
	})
}

// A member that leaves, and that the group has expelled before, does not repeat its last commit:
// the brokers refuse it for good.
func TestSource_AMemberThatWasExpelledLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 20, strconv.Itoa)
		client := k.join(t, new(cable), "orders")
		source := courierkafka.NewSource(client)
		records := fetchAll(t, source, 10)
		k.expelUnheard(t, client)
		require.Error(t, source.Mark(t.Context(), records))
		began := time.Now()
		client.Close()
		require.Less(t, time.Since(began), 5*time.Second)
	})
}
