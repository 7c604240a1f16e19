package courier_test

// MemoryDLQ.

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/internal/dlqtest"
)

// A queue in memory, and redrives of it, against a list of letters.
func TestMemoryDLQ_AgainstAModel(t *testing.T) {
	type parked struct{ name, number int }
	for name, identity := range map[string]func(parked) string{
		"every record is another": nil,
		"by identity":             func(r parked) string { return fmt.Sprint(r.name) },
	} {
		t.Run(name, func(t *testing.T) {
			dlqtest.Check(t, func(t *rapid.T) dlqtest.Queue[parked] {
				capacity := rapid.SampledFrom([]int{5, 12, 250}).Draw(t, "capacity")
				return dlqtest.Queue[parked]{
					DLQ:      &courier.MemoryDLQ[parked]{Capacity: capacity, Identity: identity},
					Capacity: capacity,
					Identity: identity != nil,
					Record:   func(name, number int) parked { return parked{name, number} },
					Number:   func(r parked) int { return r.number },
				}
			})
		})
	}
}

func TestMemoryDLQ_APlaceThatIsNone(t *testing.T) {
	_, err := new(courier.MemoryDLQ[int]).List(t.Context(), "order-7", 10)
	require.ErrorContains(t, err, `no place "order-7"`)
}

func TestMemoryDLQ_KeepsWhatIsKnownOfARecordThatIsParkedAgain(t *testing.T) {
	q := &courier.MemoryDLQ[int]{Capacity: 1, Identity: func(r int) string { return fmt.Sprint(r) }}
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 7, Error: errTest, FailedRedrives: 3, Attempts: 1}))
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 7, Error: errTest, Attempts: 2}))
	require.ErrorIs(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 8}), courier.ErrDLQFull)
	letters, _ := q.Receive(t.Context(), 10)
	require.Len(t, letters, 1)
	require.Equal(t, 3, letters[0].FailedRedrives)
	require.Equal(t, 2, letters[0].Attempts)
}

func TestMemoryDLQ(t *testing.T) {
	ctx := t.Context()
	q := &courier.MemoryDLQ[int]{Capacity: 3}
	for i := range 3 {
		require.NoError(t, q.Send(ctx, courier.DeadLetter[int]{Record: i}))
	}
	require.ErrorIs(t, q.Send(ctx, courier.DeadLetter[int]{Record: 3}), courier.ErrDLQFull)
	first, err := q.Receive(ctx, 2)
	require.NoError(t, err)
	require.Len(t, first, 2)
	again, _ := q.Receive(ctx, 2)
	require.Equal(t, first, again, "receiving removes nothing")
	first[0].Record = 99
	again, _ = q.Receive(ctx, 2)
	require.Equal(t, 0, again[0].Record, "the slice is the caller's own")
	require.NoError(t, q.Delete(ctx, again[0].ID, "unknown"))
	require.Equal(t, 2, countOf(q))
	rest, _ := q.Receive(ctx, 10)
	require.Equal(t, 1, rest[0].Record)
	none, err := q.Receive(ctx, 0)
	require.NoError(t, err)
	require.Empty(t, none)
	require.NoError(t, q.Send(ctx, courier.DeadLetter[int]{Record: 4}), "room again")

	unbounded := &courier.MemoryDLQ[int]{}
	for range courier.DefaultDLQCapacity {
		require.NoError(t, unbounded.Send(ctx, courier.DeadLetter[int]{}))
	}
	require.ErrorIs(t, unbounded.Send(ctx, courier.DeadLetter[int]{}), courier.ErrDLQFull)
}
