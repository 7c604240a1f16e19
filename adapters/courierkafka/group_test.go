package courierkafka

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier/window"
)

// Once a partition leaves, the source hands out none of its records that the coordinator gave
// back, though they are due: the revoke may have counted the records in hand already.
func TestGroup_HandsOutNothingOfAPartitionThatLeaves(t *testing.T) {
	g := newGroup()
	a := &assignment{partition: partition{"orders", 0}, window: window.New(position{})}
	g.partitions[a.partition] = a
	r := &kgo.Record{Topic: "orders"}
	g.records[r] = &delivery{record: r, of: a, ticket: a.window.Add(position{EpochOffset: kgo.EpochOffset{Offset: 1}}), index: -1}
	a.out++
	g.release([]*kgo.Record{r}, 0)
	g.mu.Lock()
	g.leave(map[string][]int32{"orders": {0}})
	g.mu.Unlock()
	due, p, _, err := g.begin(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, due)
	p.cancel()
	require.Zero(t, a.out)
	require.Zero(t, a.window.Position().Offset, "it is not settled")
}

// A partition of which the brokers answer with an error has no last commit that is known: it
// must not be taken for a partition of which nothing was committed.
func TestGroup_ReadsTheLastCommits(t *testing.T) {
	known := func(number int32, offset int64) kmsg.OffsetFetchResponseTopicPartition {
		p := kmsg.NewOffsetFetchResponseTopicPartition()
		p.Partition, p.Offset, p.LeaderEpoch = number, offset, 7
		return p
	}
	text := "courier/1 5 6 1+2"
	settled, none, refused := known(0, 5), known(1, -1), known(2, -1)
	settled.Metadata, refused.ErrorCode = &text, kerr.UnstableOffsetCommit.Code
	answer := kmsg.NewPtrOffsetFetchResponse()
	answer.Topics = []kmsg.OffsetFetchResponseTopic{{Topic: "orders", Partitions: []kmsg.OffsetFetchResponseTopicPartition{settled, none, refused}}}
	commits, err := readCommits(answer)
	require.ErrorIs(t, err, kerr.UnstableOffsetCommit)
	require.Equal(t, map[partition]lastCommit{
		{"orders", 0}: {kgo.EpochOffset{Epoch: 7, Offset: 5}, parseSettled(text, 5)},
		{"orders", 1}: {EpochOffset: kgo.EpochOffset{Epoch: 7, Offset: -1}},
	}, commits)
	require.NotEmpty(t, commits[partition{"orders", 0}].settled.runs)

	answer.Topics, answer.ErrorCode = nil, kerr.GroupAuthorizationFailed.Code
	_, err = readCommits(answer)
	require.ErrorIs(t, err, kerr.GroupAuthorizationFailed)
}

// The client may assign a partition that it has already: one of a topic that was deleted and
// made anew. Nothing of the records before counts for the new ones.
func TestGroup_APartitionThatIsAssignedAgainBeginsAnew(t *testing.T) {
	client, err := kgo.NewClient()
	require.NoError(t, err)
	defer client.Close()
	g, orders := newGroup(), map[string][]int32{"orders": {0}}
	g.assigned(t.Context(), client, orders)
	before := g.partitions[partition{"orders", 0}]
	poll := func() *kgo.Record {
		_, p, _, err := g.begin(t.Context(), 10)
		require.NoError(t, err)
		p.cancel()
		topic := kgo.FetchTopic{Topic: "orders", Partitions: []kgo.FetchPartition{{Records: []*kgo.Record{{Topic: "orders"}}}}}
		records, err := g.admit(client, p, kgo.Fetches{{Topics: []kgo.FetchTopic{topic}}})
		require.NoError(t, err)
		return records[0]
	}
	first := poll()
	g.assigned(t.Context(), client, orders)
	require.True(t, before.gone, "a commit of it that waits is dropped")
	require.Error(t, g.renew([]*kgo.Record{first}), "a coordinator lets go of the record")
	second := poll()
	g.settle(client, []*kgo.Record{first})
	require.Zero(t, g.partitions[partition{"orders", 0}].window.Position().Offset)
	g.settle(client, []*kgo.Record{second})
	require.EqualValues(t, 1, g.partitions[partition{"orders", 0}].window.Position().Offset)
}
