package courierkafka

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

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
