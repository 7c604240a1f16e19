package courierttest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

var dlqReads = []dlqDefect{
	{"waits for a letter", "is empty without waiting", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.list = func(ctx context.Context, after string, most int) ([]letter, error) {
			letters, err := q.DLQ.List(ctx, after, most)
			if len(letters) == 0 {
				<-ctx.Done()
			}
			return letters, err
		}
	}},
	{"takes out what it reads", "removes nothing when it is read", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.read = func(letters []letter, _ int) []letter {
			for _, l := range letters {
				_ = q.DLQ.Delete(context.Background(), l.ID)
			}
			return letters
		}
	}},
	{"the newest first", "reads the oldest first", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.read = func(letters []letter, _ int) []letter {
			slices.Reverse(letters)
			return letters
		}
	}},
	{"all there are", "reads up to a maximum", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.list = func(ctx context.Context, after string, _ int) ([]letter, error) { return q.DLQ.List(ctx, after, 1000) }
	}},
	{"its own slice", "hands out slices of the caller's own", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		var mine []letter
		q.read = func(letters []letter, _ int) []letter {
			if mine == nil {
				mine = letters
			}
			return mine
		}
	}},
	{"with the letter itself", "lists behind a letter", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.list = func(_ context.Context, after string, most int) ([]letter, error) {
			letters := q.Letters()
			at := max(0, slices.IndexFunc(letters, func(l letter) bool { return l.ID == after }))
			return letters[at:min(at+most, len(letters))], nil
		}
	}},
	{"finds nothing behind what is gone", "lists behind what is gone or changed", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.list = func(ctx context.Context, after string, most int) ([]letter, error) {
			if after != "" && !slices.ContainsFunc(q.Letters(), func(l letter) bool { return l.ID == after }) {
				return nil, nil
			}
			return q.DLQ.List(ctx, after, most)
		}
	}},
	{"begins anew behind what is gone", "lists behind what is gone or changed", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.list = func(ctx context.Context, after string, most int) ([]letter, error) {
			if !slices.ContainsFunc(q.Letters(), func(l letter) bool { return l.ID == after }) {
				after = ""
			}
			return q.DLQ.List(ctx, after, most)
		}
	}},
	{"counts places", "counts", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		n := 0
		q.send = func(ctx context.Context, l letter) error {
			n++
			return q.DLQ.Send(ctx, l)
		}
		q.count = func() int { return n }
	}},
}

var dlqWrites = []dlqDefect{
	forgets("record", func(l *letter) { l.Record = -l.Record - 1 }),
	forgets("key", func(l *letter) { l.Key = "" }),
	forgets("error", func(l *letter) { l.Error = nil }),
	forgets("reason", func(l *letter) { l.Reason = "" }),
	forgets("attempts", func(l *letter) { l.Attempts = 0 }),
	forgets("first failure", func(l *letter) { l.FirstFailedAt = l.FailedAt }),
	forgets("time of the failure", func(l *letter) { l.FailedAt = time.Time{} }),
	forgets("branch", func(l *letter) { l.Branch = "" }),
	forgets("redrives", func(l *letter) { l.FailedRedrives = 0 }),
	{"the sender's IDs", "gives the letters IDs of its own", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		ids := make(map[int]string)
		q.send = func(ctx context.Context, l letter) error {
			ids[l.Record] = l.ID
			return q.DLQ.Send(ctx, l)
		}
		q.read = func(letters []letter, _ int) []letter {
			for i := range letters {
				letters[i].ID = ids[letters[i].Record]
			}
			return letters
		}
	}},
	{"one at a time", "takes letters at once", func(t *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		var mu sync.Mutex
		n := 0
		q.send = func(ctx context.Context, l letter) error { // which is what a lost update comes to
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 7 {
				return nil
			}
			return q.DLQ.Send(ctx, l)
		}
	}},
	{"says nil and does nothing", "tells the truth of a send whose context has ended", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			if ctx.Err() != nil {
				return nil
			}
			return q.DLQ.Send(ctx, l)
		}
	}},
	{"swallows the error", "refuses when it fails", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			_ = q.DLQ.Send(ctx, l)
			return nil
		}
	}},
	{"broken for ever", "refuses when it fails", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		failed := error(nil)
		q.send = func(ctx context.Context, l letter) error {
			if failed == nil {
				failed = q.DLQ.Send(ctx, l)
			}
			return failed
		}
	}},
	{"in the process only", "is durable", func(_ *testing.T, _ *dlqWith, x *DLQFixture[int]) {
		x.Reopen = func() courier.DLQ[int] { return new(Recorder[int]).DLQ(0) }
	}},
	{"other IDs behind a restart", "is durable", func(t *testing.T, q *dlqWith, x *DLQFixture[int]) {
		x.Reopen = func() courier.DLQ[int] {
			other := new(Recorder[int]).DLQ(0)
			for _, l := range q.Letters() {
				_ = other.Send(t.Context(), l)
			}
			return other
		}
	}},
}
