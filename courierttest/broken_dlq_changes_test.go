package courierttest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/erfanmomeniii/courier"
)

var dlqChanges = []dlqDefect{
	{"all when none is named", "deletes by ID", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.del = func(ctx context.Context, ids ...string) error {
			for _, l := range q.Letters() {
				if len(ids) == 0 {
					_ = q.DLQ.Delete(ctx, l.ID)
				}
			}
			return q.DLQ.Delete(ctx, ids...)
		}
	}},
	{"the first only", "deletes by ID", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.del = func(ctx context.Context, ids ...string) error { return q.DLQ.Delete(ctx, ids[:min(1, len(ids))]...) }
	}},
	{"an error", "passes over IDs that no letter has", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.del = func(ctx context.Context, ids ...string) error {
			for _, id := range ids {
				if !slices.ContainsFunc(q.Letters(), func(l letter) bool { return l.ID == id }) {
					return errors.New("there is no such letter")
				}
			}
			return q.DLQ.Delete(ctx, ids...)
		}
	}},
	{"by place", "leaves the newer failure to a delete out of date", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.del = func(ctx context.Context, ids ...string) error {
			for _, id := range ids {
				_ = q.DLQ.Delete(ctx, q.newest(id))
			}
			return nil
		}
	}},
	{"the record's", "gives no ID twice", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.read = func(letters []letter, _ int) []letter {
			for i := range letters {
				letters[i].ID = numberName(letters[i].Record)
			}
			return letters
		}
		q.del = func(ctx context.Context, _ ...string) error { return q.DLQ.Delete(ctx, q.Letters()[0].ID) }
	}},
	{"to the end", "updates a letter in its place", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.update = func(ctx context.Context, l letter) error {
			return errors.Join(q.DLQ.Delete(ctx, l.ID), q.DLQ.Send(ctx, l))
		}
	}},
	{"under its old ID", "updates a letter in its place", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.read = func(letters []letter, _ int) []letter {
			for i := range letters {
				letters[i].ID, _, _ = strings.Cut(letters[i].ID, ".")
			}
			return letters
		}
		q.update = func(ctx context.Context, l letter) error {
			l.ID = q.newest(l.ID + ".1")
			return q.DLQ.Update(ctx, l)
		}
	}},
	sets("record", func(l *letter, to letter) { l.Record = to.Record }),
	sets("branch", func(l *letter, to letter) { l.Branch = to.Branch }),
	keepsOld("key", func(l *letter, old letter) { l.Key = old.Key }),
	keepsOld("error", func(l *letter, old letter) { l.Error = old.Error }),
	keepsOld("reason", func(l *letter, old letter) { l.Reason = old.Reason }),
	keepsOld("attempts", func(l *letter, old letter) { l.Attempts = old.Attempts }),
	keepsOld("times", func(l *letter, old letter) { l.FirstFailedAt, l.FailedAt = old.FirstFailedAt, old.FailedAt }),
	keepsOld("redrives", func(l *letter, old letter) { l.FailedRedrives = old.FailedRedrives }),
	{"by place", "does nothing for an update out of date", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.update = func(ctx context.Context, l letter) error {
			l.ID = q.newest(l.ID)
			return q.DLQ.Update(ctx, l)
		}
	}},
	{"puts back what is gone", "does nothing for an update out of date", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.update = func(ctx context.Context, l letter) error {
			if q.newest(l.ID) == l.ID && !slices.ContainsFunc(q.Letters(), func(o letter) bool { return o.ID == l.ID }) {
				return q.DLQ.Send(ctx, l)
			}
			return q.DLQ.Update(ctx, l)
		}
	}},
	{"one for all branches", "keeps the letters of branches apart", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			for _, old := range q.Letters() {
				if old.Record == l.Record {
					l.ID = old.ID
					return q.DLQ.Update(ctx, l)
				}
			}
			return q.DLQ.Send(ctx, l)
		}
	}},
	{"updates those of all branches", "keeps the letters of branches apart", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.update = func(ctx context.Context, l letter) (err error) {
			for _, old := range q.Letters() {
				l.ID = old.ID
				err = errors.Join(err, q.DLQ.Update(ctx, l))
			}
			return err
		}
	}},
	{"deletes those of all branches", "keeps the letters of branches apart", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.del = func(ctx context.Context, ids ...string) error {
			letters := q.Letters()
			for _, l := range letters {
				if slices.Contains(ids, l.ID) {
					for _, other := range letters {
						if other.Record == l.Record {
							ids = append(ids, other.ID)
						}
					}
				}
			}
			return q.DLQ.Delete(ctx, ids...)
		}
	}},
	{"knows a deleted branch's letter", "keeps the letters of branches apart", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		gone := make(map[string]bool)
		q.del = func(ctx context.Context, ids ...string) error {
			for _, l := range q.Letters() {
				gone[l.Branch] = gone[l.Branch] || slices.Contains(ids, l.ID)
			}
			return q.DLQ.Delete(ctx, ids...)
		}
		q.send = func(ctx context.Context, l letter) error {
			if gone[l.Branch] {
				return nil
			}
			return q.DLQ.Send(ctx, l)
		}
	}},
	{"does not delete", "redrives", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.del = func(context.Context, ...string) error { return nil }
	}},
	{"does not update", "redrives", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.update = func(context.Context, letter) error { return nil }
	}},
}

var dlqCapabilities = []dlqDefect{
	{"a capability is not there", "has the features it is said to have", func(_ *testing.T, q *dlqWith, x *DLQFixture[int]) {
		x.DLQ = struct{ courier.DLQ[int] }{q}
	}},
	{"two letters", "keeps one letter of a record", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.MemoryDLQ = &courier.MemoryDLQ[int]{}
	}},
	{"the first failure anew", "keeps one letter of a record", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			err := q.DLQ.Send(ctx, l)
			for _, now := range q.Letters() {
				if now.Record == l.Record {
					now.FirstFailedAt = l.FirstFailedAt
					err = errors.Join(err, q.DLQ.Update(ctx, now))
				}
			}
			return err
		}
	}},
	{"nothing of the newer failure", "keeps one letter of a record", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			if slices.ContainsFunc(q.Letters(), func(o letter) bool { return o.Record == l.Record }) {
				return nil
			}
			return q.DLQ.Send(ctx, l)
		}
	}},
	{"replaces it", "keeps what a parked key knows less of", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			for _, old := range q.Letters() {
				if old.Record == l.Record {
					l.ID = old.ID
					return q.DLQ.Update(ctx, l)
				}
			}
			return q.DLQ.Send(ctx, l)
		}
	}},
	{"none that says less than another branch's", "keeps one letter of a record for each branch", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			known := slices.ContainsFunc(q.Letters(), func(o letter) bool { return o.Record == l.Record })
			if l.Reason == courier.ReasonKeyParked && known {
				return nil
			}
			return q.DLQ.Send(ctx, l)
		}
	}},
	{"replaces every branch's", "keeps one letter of a record for each branch", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			err := q.DLQ.Send(ctx, l)
			for _, old := range q.Letters() {
				if old.Record == l.Record && old.Branch != l.Branch {
					l.ID = old.ID
					err = errors.Join(err, q.DLQ.Update(ctx, l))
				}
			}
			return err
		}
	}},
	{"two letters of a branch", "keeps one letter of a record for each branch", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.MemoryDLQ = &courier.MemoryDLQ[int]{}
	}},
	{"those of all branches", "tells the parked keys of a branch", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.keys = func(ctx context.Context, _ string, keys []string) (parked []string, err error) {
			for _, branch := range branches {
				some, _ := q.DLQ.ParkedKeys(ctx, branch, keys)
				parked = append(parked, some...)
			}
			return parked, nil
		}
	}},
	{"those of no branch", "tells the parked keys of a branch", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.keys = func(ctx context.Context, _ string, keys []string) ([]string, error) {
			return q.DLQ.ParkedKeys(ctx, "", keys)
		}
	}},
	{"the branch and the key in one", "tells the parked keys of a branch", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.keys = func(_ context.Context, branch string, keys []string) (parked []string, err error) {
			for _, key := range keys {
				if slices.ContainsFunc(q.Letters(), func(l letter) bool { return l.Branch+l.Key == branch+key }) {
					parked = append(parked, key)
				}
			}
			return parked, nil
		}
	}},
	{"every key that is asked", "tells parked keys", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.keys = func(_ context.Context, _ string, keys []string) ([]string, error) { return keys, nil }
	}},
	{"once parked, always parked", "tells parked keys", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		known := make(map[string]bool)
		q.keys = func(ctx context.Context, branch string, keys []string) ([]string, error) {
			now, err := q.DLQ.ParkedKeys(ctx, branch, keys)
			for _, key := range now {
				known[key] = true
			}
			return slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return !known[key] }), err
		}
	}},
	{"a stranger to itself", "knows itself", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.same = func(courier.DeadLetterSink[int]) bool { return false }
	}},
	{"the same as any", "knows itself", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.same = func(courier.DeadLetterSink[int]) bool { return true }
	}},
	{"takes more", "refuses when it is full", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.MemoryDLQ = &courier.MemoryDLQ[int]{Identity: numberName}
	}},
	{"another error", "refuses when it is full", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			if err := q.DLQ.Send(ctx, l); err != nil {
				return errors.New("no room")
			}
			return nil
		}
	}},
	{"drops the oldest", "refuses when it is full", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			if err := q.DLQ.Send(ctx, l); !errors.Is(err, courier.ErrDLQFull) {
				return err
			}
			return errors.Join(q.DLQ.Delete(ctx, q.Letters()[0].ID), q.DLQ.Send(ctx, l))
		}
	}},
	{"refuses", "updates when it is full", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.update = func(ctx context.Context, l letter) error {
			if n, _ := q.Count(ctx); n == dlqFeatures.Capacity {
				return courier.ErrDLQFull
			}
			return q.DLQ.Update(ctx, l)
		}
	}},
}
