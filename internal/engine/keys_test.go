package engine_test

import (
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The blocked keys against a map, for a poller's passes (D4).
func TestD4_BlockedKeysAgainstAModel(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var g engine.BlockedKeys
		now := start
		model := map[string]time.Time{}
		keys := rapid.SampledFrom([]string{"", "a", "b", "c"})
		until := func(t *rapid.T) time.Time {
			return now.Add(time.Duration(rapid.IntRange(-2, 5).Draw(t, "until")) * time.Second)
		}
		t.Repeat(map[string]func(*rapid.T){
			"block": func(t *rapid.T) {
				key := keys.Draw(t, "key")
				g.Block(key)
				if _, held := model[key]; !held {
					model[key] = time.Time{}
				}
			},
			"hold": func(t *rapid.T) {
				key, at := keys.Draw(t, "key"), until(t)
				g.BlockUntil(key, at)
				if at.After(model[key]) {
					model[key] = at
				}
			},
			"lift": func(t *rapid.T) {
				at := until(t)
				g.Lift(now, at)
				for key, held := range model {
					switch {
					case held.IsZero() && at.After(now):
						model[key] = at
					case !held.After(now):
						delete(model, key)
					}
				}
			},
			"free": func(t *rapid.T) {
				key := keys.Draw(t, "key")
				g.Free(key)
				delete(model, key)
			},
			"clear":     func(*rapid.T) { g.Clear(); deleteUntimed(model) },
			"time goes": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "by")) * time.Second) },
			"": func(t *rapid.T) {
				for _, key := range []string{"", "a", "b", "c"} {
					at, held := model[key]
					if g.Blocks(key) != held || !g.Until(key).Equal(at) {
						t.Fatalf("key %q: blocked %v until %v, want %v until %v", key, g.Blocks(key), g.Until(key), held, at)
					}
				}
			},
		})
	})
}

// deleteUntimed is what Clear does to the model.
func deleteUntimed(model map[string]time.Time) {
	for key, until := range model {
		if until.IsZero() {
			delete(model, key)
		}
	}
}

// Chains have every record once, those of a key in order, and one of each key at
// a time (D4).
func TestD4_ChainsHaveTheRecordsOfEachKeyInOrder(t *testing.T) {
	var c engine.Chains // is reused from batch to batch
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOf(rapid.SampledFrom([]string{"", "a", "b", "c", "d"})).Draw(t, "keys")
		c.Reset()
		c.Link(keys)
		if !slices.IsSorted(c.Heads) {
			t.Fatalf("the heads are out of order: %v", c.Heads)
		}
		last := map[string]int{}
		met, long := 0, 0
		for head := range c.Heads {
			long += c.Length(head)
		}
		for list := slices.Clone(c.Heads); len(list) > 0; list = c.Follow(list) {
			here := map[string]bool{}
			for _, i := range list {
				if before, ok := last[keys[i]]; here[keys[i]] || ok && before >= i {
					t.Fatalf("record %d of %v is out of order in %v", i, keys, list)
				}
				here[keys[i]] = true
				last[keys[i]] = i
				met++
			}
		}
		if met != len(keys) || long != len(keys) {
			t.Fatalf("%d records of %d are in chains, of length %d in all", met, len(keys), long)
		}
	})
}
