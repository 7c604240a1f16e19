package courier_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// modelLetter is what a model of a queue knows of a letter.
type modelLetter struct {
	record, redriven int
	text, id         string
}

// TestMemoryDLQ_AgainstAModel runs random calls against a queue and a list.
func TestMemoryDLQ_AgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		capacity := rapid.IntRange(1, 12).Draw(t, "capacity")
		byIdentity := rapid.Bool().Draw(t, "by identity")
		var identity func(int) string
		if byIdentity {
			identity = func(r int) string { return fmt.Sprint(r) }
		}
		q := courier.NewMemoryDLQByIdentity(capacity, identity)
		var model []modelLetter
		ids := map[string]bool{} // ever given
		var stale []string
		refresh := func() {
			letters, err := q.Receive(ctx, 100)
			require.NoError(t, err)
			require.Len(t, letters, len(model))
			keys := map[string]bool{}
			for i, l := range letters {
				m := &model[i]
				require.Equal(t, m.record, l.Record)
				require.EqualError(t, l.Error, m.text)
				require.Equal(t, m.redriven, l.Redriven)
				if l.ID != m.id {
					require.False(t, ids[l.ID], "an ID is given once")
					ids[l.ID] = true
					m.id = l.ID
				}
				keys[l.Key] = true
			}
			parked, err := q.ParkedKeys(ctx, []string{"k0", "k1", "k2"})
			require.NoError(t, err)
			delete(keys, "")
			require.Len(t, parked, len(keys))
		}
		sent := 0
		anyID := func() string {
			if len(stale) > 0 && rapid.Bool().Draw(t, "stale") {
				return rapid.SampledFrom(stale).Draw(t, "id")
			}
			if len(model) == 0 {
				return rapid.SampledFrom([]string{"x", "1", "1.", ".1", "0.0", "1.0", "-1.1"}).Draw(t, "no id")
			}
			return model[rapid.IntRange(0, len(model)-1).Draw(t, "index")].id
		}
		find := func(id string) int {
			return slices.IndexFunc(model, func(m modelLetter) bool { return m.id == id })
		}
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				sent++
				record := rapid.IntRange(0, 15).Draw(t, "record")
				behind := rapid.IntRange(0, 4).Draw(t, "behind") == 0
				letter := courier.DeadLetter[int]{ID: "of the caller", Record: record, Error: fmt.Errorf("error %d", sent), Key: rapid.SampledFrom([]string{"", "k0", "k1", "k2"}).Draw(t, "key")}
				if behind {
					letter.Reason = courier.KeyParked
				}
				err := q.Send(ctx, letter)
				at := slices.IndexFunc(model, func(m modelLetter) bool { return m.record == record })
				switch {
				case byIdentity && at >= 0:
					require.NoError(t, err)
					if !behind {
						stale = append(stale, model[at].id)
						model[at].text = letter.Error.Error()
					}
				case len(model) >= capacity:
					require.ErrorIs(t, err, courier.ErrDLQFull)
				default:
					require.NoError(t, err)
					model = append(model, modelLetter{record: record, text: letter.Error.Error()})
				}
			},
			"delete": func(t *rapid.T) {
				var gone []string
				for range rapid.IntRange(0, 3).Draw(t, "n") {
					gone = append(gone, anyID())
				}
				require.NoError(t, q.Delete(ctx, gone...))
				for _, id := range gone {
					if i := find(id); i >= 0 {
						model = slices.Delete(model, i, i+1)
						stale = append(stale, id)
					}
				}
			},
			"update": func(t *rapid.T) {
				sent++
				id := anyID()
				require.NoError(t, q.Update(ctx, courier.DeadLetter[int]{ID: id, Record: -1, Error: fmt.Errorf("error %d", sent), Redriven: sent}))
				if i := find(id); i >= 0 {
					stale = append(stale, id)
					model[i].text, model[i].redriven = fmt.Sprintf("error %d", sent), sent
				}
			},
			"list": func(t *rapid.T) {
				if len(model) == 0 {
					return
				}
				i, max := rapid.IntRange(0, len(model)-1).Draw(t, "behind"), rapid.IntRange(-1, 5).Draw(t, "max")
				page, err := q.List(ctx, model[i].id, max)
				require.NoError(t, err)
				require.Len(t, page, min(len(model)-i-1, maxOf(max)))
				for j, l := range page {
					require.Equal(t, model[i+1+j].id, l.ID)
				}
			},
			"": func(t *rapid.T) {
				refresh()
				require.Equal(t, len(model), q.Len())
			},
		})
	})
}

func maxOf(n int) int { return max(0, n) }

func TestMemoryDLQ_APlaceThatIsNone(t *testing.T) {
	_, err := courier.NewMemoryDLQ[int](0).List(t.Context(), "order-7", 10)
	require.ErrorContains(t, err, `no place "order-7"`)
}

func TestMemoryDLQ_KeepsWhatIsKnownOfARecordThatIsParkedAgain(t *testing.T) {
	q := courier.NewMemoryDLQByIdentity(1, func(r int) string { return fmt.Sprint(r) })
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 7, Error: errTest, Redriven: 3, Attempts: 1}))
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 7, Error: errTest, Attempts: 2}))
	require.ErrorIs(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 8}), courier.ErrDLQFull)
	letters, _ := q.Receive(t.Context(), 10)
	require.Len(t, letters, 1)
	require.Equal(t, 3, letters[0].Redriven)
	require.Equal(t, 2, letters[0].Attempts)
}
