//go:build synctests

package courierkafka_test

import (
	"flag"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	realSeed     = flag.Uint64("real.seed", 1, "TestRebalances: the first seed")
	realEpisodes = flag.Int("real.episodes", 3, "TestRebalances: how many seeds")
)

// TestRebalances is what TestSimulation is, in real time, over sockets, and ten times faster:
// members of a group join, leave, are expelled, killed and cut off, while relays are killed. The
// same model judges each step. Of three seeds, members of one assign the partitions eagerly, those
// of one cooperatively, and in one the brokers do (KIP-848). The brokers make no errors of their
// own here.
//
// The long form is 1,000 rebalances or more:
//
//	go test -tags synctests -run TestRebalances -v -timeout 0 -args -real.episodes=100
func TestRebalances(t *testing.T) {
	const (
		haste  = 10
		beside = 6 // episodes at a time, which wait for most of their time
	)
	var mu sync.Mutex
	total := make(map[string]int)
	turn := make(chan struct{}, beside)
	var episodes sync.WaitGroup
	for i := range *realEpisodes {
		turn <- struct{}{}
		episodes.Go(func() {
			defer func() { <-turn }()
			seed := *realSeed + uint64(i)
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				count := simulate(t, seed, haste)
				mu.Lock()
				defer mu.Unlock()
				for what, n := range count {
					total[what] += n
				}
			})
		})
	}
	episodes.Wait()
	t.Logf("%d episodes: %v", *realEpisodes, total)
	const sweep = 50
	for _, what := range []string{inOrder, partedWith, killed, "kept by an expelled member", "parked", "repeats", "commits refused", "relays killed", "rows stored twice"} {
		require.False(t, *realEpisodes >= sweep && total[what] == 0, "no episode has seen: %s", what)
	}
}
