//go:build synctests

package courierkafka_test

import (
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

// slowCommits is a logger of a client that delays its commits, once they are made and
// before the client looks in which generation of the group it is: so may a process that
// gets no processor time.
type slowCommits struct{ until chan struct{} }

func (slowCommits) Level() kgo.LogLevel { return kgo.LogLevelDebug }

func (s slowCommits) Log(_ kgo.LogLevel, message string, _ ...any) {
	if message == "in CommitOffsetsSync" {
		<-s.until
	}
}

// fetchAll returns the next n records of a source.
func fetchAll(t *testing.T, s *courierkafka.Source, n int) (all []*kgo.Record) {
	t.Helper()
	for len(all) < n {
		some, err := s.Fetch(t.Context(), n)
		require.NoError(t, err)
		all = append(all, some...)
	}
	return all
}

// A commit that was made before the member lost a partition does not go out after it has
// joined the group anew: the brokers would take it, and what the new owner of the partition
// has committed would be undone.
func TestSource_ACommitThatWaitedLeavesOutWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		wire, slow := new(cable), slowCommits{make(chan struct{})}
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
