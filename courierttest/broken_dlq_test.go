package courierttest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/erfanmomeniii/courier"
)

type letter = courier.DeadLetter[int]

// dlqWith is a queue of which some methods are others.
type dlqWith struct {
	*DLQ[int]
	send   func(ctx context.Context, l letter) error
	read   func(letters []letter, most int) []letter // what Receive and List return
	list   func(ctx context.Context, after string, most int) ([]letter, error)
	update func(ctx context.Context, l letter) error
	del    func(ctx context.Context, ids ...string) error
	count  func() int
	keys   func(ctx context.Context, branch string, keys []string) ([]string, error)
	same   func(other courier.DeadLetterSink[int]) bool
}

func (q *dlqWith) Send(ctx context.Context, l letter) error {
	if q.send != nil {
		return q.send(ctx, l)
	}
	return q.DLQ.Send(ctx, l)
}

func (q *dlqWith) Receive(ctx context.Context, most int) ([]letter, error) {
	return q.List(ctx, "", most)
}

func (q *dlqWith) List(ctx context.Context, after string, most int) ([]letter, error) {
	if q.list != nil {
		return q.list(ctx, after, most)
	}
	letters, err := q.DLQ.List(ctx, after, most)
	if q.read != nil {
		letters = q.read(letters, most)
	}
	return letters, err
}

func (q *dlqWith) Update(ctx context.Context, l letter) error {
	if q.update != nil {
		return q.update(ctx, l)
	}
	return q.DLQ.Update(ctx, l)
}

func (q *dlqWith) Delete(ctx context.Context, ids ...string) error {
	if q.del != nil {
		return q.del(ctx, ids...)
	}
	return q.DLQ.Delete(ctx, ids...)
}

func (q *dlqWith) Count(ctx context.Context) (int, error) {
	if q.count != nil {
		return q.count(), nil
	}
	return q.DLQ.Count(ctx)
}

func (q *dlqWith) ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error) {
	if q.keys != nil {
		return q.keys(ctx, branch, keys)
	}
	return q.DLQ.ParkedKeys(ctx, branch, keys)
}

func (q *dlqWith) SameQueue(other courier.DeadLetterSink[int]) bool {
	if q.same != nil {
		return q.same(other)
	}
	if o, ok := other.(*dlqWith); ok {
		other = o.DLQ
	}
	return q.DLQ.SameQueue(other)
}

// newest returns the ID by which a letter goes now that had another one.
func (q *dlqWith) newest(id string) string {
	place, _, _ := strings.Cut(id, ".")
	for _, l := range q.Letters() {
		if strings.HasPrefix(l.ID, place+".") {
			return l.ID
		}
	}
	return id
}

// forgets returns a defect that loses a part of each letter that is sent.
func forgets(part string, forget func(l *letter)) dlqDefect {
	return dlqDefect{"forgets the " + part, "gives back what was sent", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.send = func(ctx context.Context, l letter) error {
			forget(&l)
			return q.DLQ.Send(ctx, l)
		}
	}}
}

// keepsOld returns a defect by which an update does not set a part of a letter.
func keepsOld(part string, keep func(l *letter, old letter)) dlqDefect {
	return dlqDefect{"does not set the " + part, "updates a letter in its place", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		q.update = func(ctx context.Context, l letter) error {
			for _, old := range q.Letters() {
				if old.ID == l.ID {
					keep(&l, old)
				}
			}
			return q.DLQ.Update(ctx, l)
		}
	}}
}

// sets returns a defect by which an update sets a part of a letter that it is
// known by.
func sets(part string, set func(l *letter, to letter)) dlqDefect {
	return dlqDefect{"sets the " + part, "updates a letter in its place", func(_ *testing.T, q *dlqWith, _ *DLQFixture[int]) {
		changed := make(map[string]letter) // by place
		q.update = func(ctx context.Context, l letter) error {
			place, _, _ := strings.Cut(l.ID, ".")
			changed[place] = l
			return q.DLQ.Update(ctx, l)
		}
		q.read = func(letters []letter, _ int) []letter {
			for i := range letters {
				place, _, _ := strings.Cut(letters[i].ID, ".")
				if to, ok := changed[place]; ok {
					set(&letters[i], to)
				}
			}
			return letters
		}
	}}
}

type dlqDefect struct {
	defect, check string
	break_        func(t *testing.T, q *dlqWith, x *DLQFixture[int])
}

func TestBrokenDLQs(t *testing.T) {
	var table []broken[dlqRun[int]]
	for _, d := range slices.Concat(dlqReads, dlqWrites, dlqChanges, dlqCapabilities) {
		table = append(table, broken[dlqRun[int]]{d.defect, d.check, func(t *testing.T, tb TB) *dlqRun[int] {
			x := openDLQ(t)
			q := &dlqWith{DLQ: x.DLQ.(*DLQ[int])}
			x.DLQ = q
			x.Reopen = func() courier.DLQ[int] { return q }
			d.break_(t, q, &x)
			return newDLQRun(tb, x, dlqFeatures)
		}})
	}
	testBroken(t, dlqChecks[int](dlqFeatures), table)
}
