package courier_test

// Decoding appliers.

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestDecode_AnUndecodableRowIsParkedWithItsBytes(t *testing.T) {
	for name, batch := range map[string]bool{"one by one": false, "batch": true} {
		t.Run(name, func(t *testing.T) {
			s := &batchSink[int]{}
			var inner courier.Applier[int] = s
			if !batch {
				inner = &s.sink
			}
			applier, queue := withDLQ(courier.NewDecodingApplier(inner, func(row string) (int, error) { return strconv.Atoi(row) }))
			source := newShelf("1", "two", "3")
			require.NoError(t, courier.NewPollingCoordinator(source, applier, quiet).RunOnce(t.Context()))
			require.Equal(t, []int{1, 3}, s.got())
			parked, _ := queue.Receive(t.Context(), 10)
			require.Len(t, parked, 1)
			require.Equal(t, "two", parked[0].Record)
			require.ErrorIs(t, parked[0].Error, courier.ErrDecode)
			require.ErrorIs(t, parked[0].Error, strconv.ErrSyntax)
			require.Equal(t, courier.ReasonPermanent, parked[0].Reason)
			require.Equal(t, [][]string{{"1", "two", "3"}}, source.marks)
		})
	}
}

// While the destination is down, an undecodable row in the batch changes
// nothing about the outage.
func TestDecode_AnOutageWithAnUndecodableRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
			if time.Since(began) < time.Hour {
				return errTest
			}
			return nil
		}}
		s.fail = func(context.Context, int, int) error {
			if time.Since(began) < time.Hour {
				return errTest
			}
			return nil
		}
		applier, dlq := courier.ResilientApplier(courier.NewDecodingApplier[string](s, strconv.Atoi), nil)
		source := newShelf("1", "two", "3")
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet))
		time.Sleep(2 * time.Hour)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Len(t, parked, 1)
		require.Equal(t, "two", parked[0].Record)
		require.ElementsMatch(t, []int{1, 3}, s.got())
	})
}
