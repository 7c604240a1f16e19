package courierttest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestObserverRecorder_KeepsTheOrder(t *testing.T) {
	boom := errors.New("boom")
	told := ObserverRecorder{PerRecord: true}
	o := told.Observer()
	ctx := context.Background()
	o.Fetched(ctx, courier.FetchEvent{Records: 2})
	o.RecordStarted(ctx, courier.RecordEvent{Record: "a"})
	o.Retried(ctx, courier.RetryEvent{Attempt: 1, Err: boom})
	o.RecordEnded(ctx, courier.RecordEvent{Record: "a", Err: boom})
	o.Failed(ctx, courier.FailEvent{Record: "a", Class: courier.ClassRetryable, Err: boom})
	o.Parked(ctx, courier.ParkEvent{Record: "b"})
	o.Applied(ctx, courier.ApplyEvent{Records: 2, Applied: 1, Failed: 1})
	o.Renewed(ctx, courier.RenewEvent{Records: 1})
	o.Released(ctx, courier.ReleaseEvent{Records: 1})
	o.Marked(ctx, courier.MarkEvent{Records: 1})
	o.Paused(ctx, courier.PauseEvent{Err: boom})
	o.Resumed(ctx, courier.ResumeEvent{Pauses: 1})
	o.Stopped(ctx, courier.StopEvent{})
	want := []any{
		courier.FetchEvent{Records: 2},
		RecordStarted{Record: "a"},
		courier.RetryEvent{Attempt: 1, Err: boom},
		RecordEnded{Record: "a", Err: boom},
		courier.FailEvent{Record: "a", Class: courier.ClassRetryable, Err: boom},
		courier.ParkEvent{Record: "b"},
		courier.ApplyEvent{Records: 2, Applied: 1, Failed: 1},
		courier.RenewEvent{Records: 1},
		courier.ReleaseEvent{Records: 1},
		courier.MarkEvent{Records: 1},
		courier.PauseEvent{Err: boom},
		courier.ResumeEvent{Pauses: 1},
		courier.StopEvent{},
	}
	require.Equal(t, want, told.Events())
	require.Equal(t, []courier.MarkEvent{{Records: 1}}, EventsOf[courier.MarkEvent](&told))
	require.Equal(t, []RecordEnded{{Record: "a", Err: boom}}, EventsOf[RecordEnded](&told))
	require.Contains(t, told.String(), "RecordEnded{Record:a Number:0 Elapsed:0s Err:boom}\nFailEvent{Record:a Class:retryable Err:boom}\n")
	told.Events()[0] = nil
	require.Equal(t, want, told.Events(), "what is returned is the caller's")
}

// An event that nobody asked for costs nothing.
func TestObserverRecorder_RecordsPerRecordWhenAsked(t *testing.T) {
	o := new(ObserverRecorder).Observer()
	require.Nil(t, o.RecordStarted)
	require.Nil(t, o.RecordEnded)
}

func TestObserverRecorder_ManyAtOnce(t *testing.T) {
	var told ObserverRecorder
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				told.Observer().Retried(context.Background(), courier.RetryEvent{})
				_ = told.String()
			}
		})
	}
	all.Wait()
	require.Len(t, EventsOf[courier.RetryEvent](&told), 800)
}
