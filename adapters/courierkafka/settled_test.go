package courierkafka

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier/window"
)

// What the metadata of a commit says is settled was settled, whatever was settled in
// whatever order, and nothing of it is missing while there is room.
func TestSettled_SaysWhatIsSettled(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		size := 1 + random.IntN(300)
		if seed%10 == 0 {
			size = 20_000 // more than there is room for
		}
		from := random.Int64N(1 << 40)
		w := window.New(position{EpochOffset: kgo.EpochOffset{Offset: from}})
		done := make(map[int64]bool)
		end := from
		for range size {
			end += 1 + random.Int64N(2)
			offset := end - 1
			ticket := w.Add(position{EpochOffset: kgo.EpochOffset{Offset: end, Epoch: 7}})
			if random.IntN(2) == 0 {
				w.Settle(ticket)
				done[offset] = true
			}
		}
		committed := w.Position().Offset
		text := settledOf(w).text(committed)
		require.LessOrEqual(t, len(text), settledMost)
		got := parseSettled(text, committed)
		for offset := committed; offset < end+5; offset++ {
			has := got.has(&kgo.Record{Offset: offset, LeaderEpoch: 7})
			require.False(t, has && !done[offset], "seed %d: %d is not settled", seed, offset)
			require.False(t, size < 500 && done[offset] && !has, "seed %d: %d is settled", seed, offset)
			require.False(t, got.has(&kgo.Record{Offset: offset, LeaderEpoch: 8}), "another leader wrote it")
		}
	}
}

// What the commit before says of records that are not read yet is said again.
func TestSettled_SaysAgainWhatIsNotReadYet(t *testing.T) {
	before := parseSettled("courier/1 100 3 2+1 4+10", 100) // 102, 107 to 116
	own := func() settled { return settled{runs: []run{{104, 106}}, epoch: 3} }
	require.Equal(t, settled{[]run{{104, 106}, {107, 117}}, 3}, own().with(before, 106))
	require.Equal(t, settled{[]run{{104, 106}, {110, 117}}, 3}, own().with(before, 110))
	require.Equal(t, settled{[]run{{104, 117}}, 3}, settled{[]run{{104, 107}}, 3}.with(before, 107))
	require.Equal(t, own(), own().with(before, 117))
	require.Equal(t, before, settled{epoch: -1}.with(before, 100))
	require.Empty(t, settled{epoch: -1}.text(100), "there is nothing to say")
	at := settled{epoch: -1}.with(before, 102) // the next record to be read is settled
	require.Equal(t, at, parseSettled(at.text(102), 102))
	newer := settled{runs: []run{{104, 106}}, epoch: 4}
	require.Equal(t, newer, newer.with(before, 106), "another leader may have written others")
}

// A text that is not whole, or not of this commit, says nothing.
func TestSettled_ADamagedTextSaysNothing(t *testing.T) {
	const text = "courier/1 100 3 2+1 4+10"
	require.Len(t, parseSettled(text, 100).runs, 2)
	for _, wrong := range []string{
		"", "courier/1", "courier/1 100 3", "courier/2 100 3 2+1", "kgo-member-1", strings.Repeat(" ", 50),
		"courier/1 100 x 2+1", "courier/1 100 3 2", "courier/1 100 3 2+", "courier/1 100 3 +2", "courier/1 100 3 -2+1",
		"courier/1 100 3 2+0", "courier/1 100 3 2+1 ", "courier/1 100 3 2+99999999999999999999",
		"courier/1 100 3 1125899906842624+1125899906842624 1+1 1125899906842625+1", "courier/1 100 99999999999 2+1",
	} {
		require.Empty(t, parseSettled(wrong, 100).runs, wrong)
	}
	require.Empty(t, parseSettled(text, 101).runs, "of another commit")
}

// Records that several leaders wrote are settled, each under its own.
func TestSettled_SpansLeaders(t *testing.T) {
	w := window.New(position{EpochOffset: kgo.EpochOffset{Offset: 10}})
	for offset := range int64(6) {
		ticket := w.Add(position{EpochOffset: kgo.EpochOffset{Offset: 11 + offset, Epoch: int32(3 + offset)}})
		if offset > 0 {
			w.Settle(ticket)
		}
	}
	got := parseSettled(settledOf(w).text(10), 10)
	for offset := range int64(6) {
		require.Equal(t, offset > 0, got.has(&kgo.Record{Offset: 10 + offset, LeaderEpoch: int32(3 + offset)}), "offset %d", offset)
	}
}
