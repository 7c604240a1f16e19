//go:build synctests

package courierkafka_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
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

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// slowCommit is a logger of a client that delays its first commit, once it is made and
// before the client looks in which generation of the group it is: so may a process that
// gets no processor time.
type slowCommit struct {
	until chan struct{}
	begun atomic.Bool
}

func (*slowCommit) Level() kgo.LogLevel { return kgo.LogLevelDebug }

func (s *slowCommit) Log(_ kgo.LogLevel, message string, _ ...any) {
	if message == "in CommitOffsetsSync" && s.begun.CompareAndSwap(false, true) {
		<-s.until
	}
}

// fetchAll returns the next n records of a source.
func fetchAll(t *testing.T, s *courierkafka.Source, n int) (all []*kgo.Record) {
	t.Helper()
	for len(all) < n {
		some, err := fetch(t, s, n-len(all))
		require.NoError(t, err)
		all = append(all, some...)
	}
	return all
}

// fetch is one Fetch that does not wait for ever.
func fetch(t *testing.T, s *courierkafka.Source, n int) ([]*kgo.Record, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	return s.Fetch(ctx, n)
}

// A commit that was made before the member lost a partition does not go out after it has
// joined the group anew: the brokers would take it, and what the new owner of the partition
// has committed would be undone.
func TestSource_ACommitThatWaitedLeavesOutWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		wire, slow := new(cable), &slowCommit{until: make(chan struct{})}
		client := k.join(t, wire, "orders", kgo.WithLogger(slow))
		first := courierkafka.NewSource(client, courierkafka.WithCommitTimeout(5*time.Minute))
		records := fetchAll(t, first, 10)
		marked := make(chan error, 1)
		go func() { marked <- first.Mark(t.Context(), records[:5]) }()
		synctest.Wait()

		wire.set(true)
		second := courierkafka.NewSource(k.join(t, new(cable), "orders"))
		require.NoError(t, second.Mark(t.Context(), fetchAll(t, second, 10)))
		require.EqualValues(t, 10, k.committed(t, "orders", 0))
		wire.set(false)
		time.Sleep(30 * time.Second)
		require.EqualValues(t, 1, first.Lost())
		_, generation := client.GroupMetadata()
		require.Positive(t, generation, "the first is a member again")

		close(slow.until)
		require.NoError(t, <-marked, "what is lost is passed over")
		require.EqualValues(t, 10, k.committed(t, "orders", 0), "the commit of the second is undone")
	})
}

// A commit that takes long is not overtaken by the next one, which it would undo.
func TestSource_ACommitIsNotOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		slow := &slowCommit{until: make(chan struct{})}
		source := courierkafka.NewSource(k.join(t, new(cable), "orders", kgo.WithLogger(slow)))
		records := fetchAll(t, source, 10)
		marked := make(chan error, 2)
		go func() { marked <- source.Mark(t.Context(), records[:5]) }()
		synctest.Wait()
		require.True(t, slow.begun.Load())
		go func() { marked <- source.Mark(t.Context(), records[5:]) }()
		synctest.Wait()
		close(slow.until)
		require.NoError(t, errors.Join(<-marked, <-marked))
		require.EqualValues(t, 10, k.committed(t, "orders", 0))
	})
}

// A member that hears that it has lost its partitions commits nothing of them any more.
func TestSource_CommitsNothingWhenItHearsOfALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		source := courierkafka.NewSource(k.join(t, new(cable), "orders"))
		records := fetchAll(t, source, 10)
		refused := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.GroupAuthorizationFailed})
		require.ErrorIs(t, source.Mark(t.Context(), records[:5]), kerr.GroupAuthorizationFailed)
		refused.Remove()

		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID, Count: 1})
		time.Sleep(30 * time.Second)
		require.EqualValues(t, 1, source.Lost())
		require.EqualValues(t, -1, k.committed(t, "orders", 0))
		require.NoError(t, source.Mark(t.Context(), records[5:]), "what is lost is passed over")
		require.EqualValues(t, -1, k.committed(t, "orders", 0))
	})
}

// said is what a coordinator has said.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *said) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *said) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *said) option() courier.Option {
	return courier.WithLogger(slog.New(slog.NewTextHandler(l, nil)))
}

// A rebalance is no fault: the log has no warning of it, and says at INFO that records go to
// another process.
func TestSource_ARevokeIsNoWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "wide", 0, 200, strconv.Itoa)
		log, l := new(said), new(ledger)
		slow := func(member int) func(context.Context, *kgo.Record) error {
			return func(_ context.Context, r *kgo.Record) error {
				time.Sleep(300 * time.Millisecond)
				l.note(member, r)
				return nil
			}
		}
		first := k.run(t, "wide", slow(1), nil, log.option())
		time.Sleep(3 * time.Second)
		second := k.run(t, "wide", slow(2), nil, log.option())
		time.Sleep(2 * time.Minute)
		require.Len(t, l.times(), 200)
		require.Zero(t, first.source.Lost())
		require.Contains(t, log.String(), `level=INFO msg="courier: the source hands records over to another process`)
		require.NotContains(t, log.String(), "level=WARN")
		first.leave(t)
		second.leave(t)
		require.NotContains(t, log.String(), "level=WARN")
	})
}

// A loss of partitions is a warning, which says what happens to their records.
func TestSource_ALossIsAWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "wide", 0, 200, strconv.Itoa)
		log := new(said)
		m := k.run(t, "wide", func(context.Context, *kgo.Record) error { time.Sleep(time.Second); return nil }, nil, log.option())
		time.Sleep(3 * time.Second)
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID, Count: 1})
		time.Sleep(20 * time.Second)
		require.EqualValues(t, 2, m.source.Lost())
		require.Regexp(t, `level=WARN msg="courier: the hold on records was not renewed" records=.* error=".*its partition is not this member's any more`, log.String())
		require.NotContains(t, log.String(), "hands records over")
		m.leave(t)
	})
}

// Records that are settled while a commit is under way are committed by the next one.
func TestSource_CommitsWhatIsSettledDuringACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		wire := new(cable)
		source := courierkafka.NewSource(k.join(t, wire, "orders"))
		records := fetchAll(t, source, 10)
		wire.slow.Store(int64(time.Second))
		marked := make(chan error, 1)
		go func() { marked <- source.Mark(t.Context(), records[:5]) }()
		time.Sleep(500 * time.Millisecond)
		require.NoError(t, source.Mark(t.Context(), records[5:]))
		require.NoError(t, <-marked)
		require.EqualValues(t, 10, k.committed(t, "orders", 0))
	})
}

// A partition of which nothing was committed, and that an expelled member has kept, goes on
// with the first record that is not settled, whether the client has read beyond it or has not
// read of it.
func TestSource_AMemberThatWasExpelledGoesOnWithoutACommit(t *testing.T) {
	for _, read := range []int{5, 40} {
		t.Run(fmt.Sprint("after ", read, " records"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testExpelledWithoutACommit(t, read) })
		})
	}
}

func testExpelledWithoutACommit(t *testing.T, read int) {
	k := startKafka(t)
	k.write(t, "wide", 0, 40, strconv.Itoa)
	client := k.join(t, new(cable), "wide")
	source := courierkafka.NewSource(client)
	fetchAll(t, source, read)
	expelled, _ := client.GroupMetadata()
	k.expelUnheard(t, client)()
	time.Sleep(30 * time.Second)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	again := make(map[string]bool)
	for len(again) < 40 {
		records, err := source.Fetch(ctx, 40)
		require.NoError(t, err, "after %d records that came again", len(again))
		for _, r := range records {
			again[source.Identity(r)] = true
		}
	}
	require.EqualValues(t, 2, source.Lost())
	member, _ := client.GroupMetadata()
	require.NotEqual(t, expelled, member)
}

// A member that the group has expelled may hear first that the group rebalances. It then joins
// anew with the partitions that it had, and the brokers would take its commits of them, over
// those of the member that has them since. If it misses the first rebalance after that, the
// group even leaves it a partition, which the client takes for one that it has had all along.
func TestSource_AMemberThatWasExpelledUndoesNoCommit(t *testing.T) {
	for _, misses := range []bool{false, true} {
		t.Run(fmt.Sprint("it misses a rebalance: ", misses), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testExpelled(t, misses) })
		})
	}
}

func testExpelled(t *testing.T, misses bool) {
	k := startKafka(t)
	k.write(t, "wide", 0, 40, strconv.Itoa)
	all := [2]int64{k.PartitionInfo("wide", 0).HighWatermark, k.PartitionInfo("wide", 1).HighWatermark}
	client := k.join(t, new(cable), "wide")
	first := courierkafka.NewSource(client)
	records := fetchAll(t, first, 40)
	require.NoError(t, first.Mark(t.Context(), records[:1]))

	var expelled, told atomic.Bool
	k.ControlKey(int16(kmsg.Heartbeat), func(request kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		member, _ := client.GroupMetadata()
		answer := request.ResponseKind().(*kmsg.HeartbeatResponse)
		if !expelled.Load() || request.(*kmsg.HeartbeatRequest).MemberID != member {
			return nil, nil, false
		}
		if told.Load() {
			expelled.Store(false)
			answer.ErrorCode = kerr.RebalanceInProgress.Code
		}
		return answer, nil, true
	})
	expelled.Store(true)
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group, leave.Members = "g", []kmsg.LeaveGroupRequestMember{{}}
	leave.Members[0].MemberID, _ = client.GroupMetadata()
	_, err := leave.RequestWith(t.Context(), k.client)
	require.NoError(t, err)
	other := k.join(t, new(cable), "wide")
	second := courierkafka.NewSource(other)
	require.NoError(t, second.Mark(t.Context(), fetchAll(t, second, 39)))
	owner, _ := other.GroupMetadata()
	var missed atomic.Bool
	k.ControlKey(int16(kmsg.SyncGroup), func(request kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		if request.(*kmsg.SyncGroupRequest).MemberID == owner || !misses || missed.Swap(true) {
			return nil, nil, false
		}
		answer := request.ResponseKind().(*kmsg.SyncGroupResponse)
		answer.ErrorCode = kerr.RebalanceInProgress.Code
		return answer, nil, true
	})
	var asked atomic.Int64 // for the last commits, after a rebalance was missed
	k.ControlKey(int16(kmsg.OffsetFetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		answer := request.ResponseKind().(*kmsg.OffsetFetchResponse)
		answer.Groups = []kmsg.OffsetFetchResponseGroup{{Group: "g"}}
		if !request.(*kmsg.OffsetFetchRequest).RequireStable || !missed.Load() {
			return nil, nil, false
		}
		switch asked.Add(1) {
		case 1:
			answer.Groups[0].ErrorCode = kerr.GroupAuthorizationFailed.Code
		case 2: // which leaves all partitions out
		default:
			return nil, nil, false
		}
		return answer, nil, true
	})

	told.Store(true)
	for i := 1; i < 40; i++ {
		_ = first.Mark(t.Context(), records[i:i+1])
		for partition, end := range all {
			require.Equal(t, end, k.committed(t, "wide", int32(partition)), "the commit of the second is undone, by record %d", i)
		}
		time.Sleep(100 * time.Millisecond)
	}
	require.NotZero(t, first.Lost())
	if misses {
		_, err := fetch(t, first, 1)
		require.ErrorContains(t, err, "knows the last commits of its partitions: ask for them: GROUP_AUTHORIZATION_FAILED")
		require.ErrorContains(t, err, "grant it")
		_, err = fetch(t, first, 1)
		require.ErrorContains(t, err, "ask for them: the answer leaves a partition out")
	}
	k.write(t, "wide", 40, 80, strconv.Itoa)
	var again []*kgo.Record
	for _, source := range []*courierkafka.Source{first, second} {
		again = append(again, fetchAll(t, source, 1)...)
	}
	for _, r := range again {
		require.Equal(t, all[r.Partition], r.Offset, "each goes on with the first record that nobody has done")
	}
}
