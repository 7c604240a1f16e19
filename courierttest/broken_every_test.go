package courierttest

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/erfanmomeniii/courier"
)

// ofEverySource are the defects of sources that hand out once, whether their
// fetch waits or not. Those of sources that hand out again are a table of their
// own.
var ofEverySource = []leasingDefect{
	{"a capability is not there", "has the features it is said to have", func(_ *testing.T, s *leasingWith, x *SourceFixture[int]) {
		x.Source = struct{ courier.Source[int] }{s}
	}},
	{"the newest is missing", "hands out what is pending", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			records, err := s.LeasingSource.Fetch(ctx, limit)
			return records[:max(0, len(records)-1)], err
		}
	}},
	{"ignores the limit", "hands out all in portions of the limit", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, _ int) ([]int, error) { return s.LeasingSource.Fetch(ctx, 100) }
	}},
	{"keeps to itself that there is more", "hands out all in portions of the limit", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) { return s.LeasingSource.Fetch(ctx, min(limit, 1)) }
	}},
	{"cuts what it took", "hands out all in portions of the limit", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			records, err := s.LeasingSource.Fetch(ctx, limit+1)
			return records[:min(limit, len(records))], err
		}
	}},
	{"the newest first", "hands out the oldest first", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			records, err := s.LeasingSource.Fetch(ctx, limit)
			slices.Reverse(records)
			return records, err
		}
	}},
	{"the same again", "hands out once", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(_ context.Context, limit int) ([]int, error) {
			records := s.Pending()
			return records[:min(limit, len(records))], nil
		}
	}},
	{"one buffer for all fetches", "leaves fetched records alone", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		buffer := make([]int, 100)
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			records, err := s.LeasingSource.Fetch(ctx, limit)
			return buffer[:copy(buffer, records)], err
		}
	}},
	{"takes, then looks at the context", "loses nothing to a fetch whose context has ended", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			if ctx.Err() == nil {
				return s.LeasingSource.Fetch(ctx, limit)
			}
			live := context.WithoutCancel(ctx)
			records, _ := s.LeasingSource.Fetch(live, limit)
			return nil, errors.Join(ctx.Err(), s.LeasingSource.Mark(live, records))
		}
	}},
	{"marks all up to the last", "marks any subset in any order", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.mark = func(ctx context.Context, records []int) error {
			return s.LeasingSource.Mark(ctx, numbers(slices.Max(records)+1))
		}
	}},
	{"marks the first", "marks any subset in any order", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.mark = func(ctx context.Context, records []int) error { return s.LeasingSource.Mark(ctx, records[:1]) }
	}},
	{"refuses what is marked", "marks again without harm", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.mark = func(ctx context.Context, records []int) error {
			for _, r := range records {
				if !slices.Contains(s.Pending(), r) {
					return errors.New("there is no such record")
				}
			}
			return s.LeasingSource.Mark(ctx, records)
		}
	}},
	{"marks by place", "takes no new record for an old mark", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.mark = func(_ context.Context, records []int) error {
			s.shared.records = s.shared.records[len(records):]
			return nil
		}
	}},
	{"marks later", "does not keep the slice of a mark", func(_ *testing.T, s *leasingWith, x *SourceFixture[int]) {
		var later []int
		s.mark = func(_ context.Context, records []int) error {
			later = records
			return nil
		}
		s.fetch = func(ctx context.Context, limit int) ([]int, error) {
			_ = s.LeasingSource.Mark(context.WithoutCancel(ctx), later)
			return s.LeasingSource.Fetch(ctx, limit)
		}
	}},
	{"says nil and does nothing", "tells the truth of a mark whose context has ended", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.mark = func(ctx context.Context, records []int) error {
			if ctx.Err() != nil {
				return nil
			}
			return s.LeasingSource.Mark(ctx, records)
		}
	}},
	{"one by one", "marks all or nothing", func(_ *testing.T, s *leasingWith, x *SourceFixture[int]) {
		bad := -1
		x.FailMarks = func(record int) func() {
			bad = record
			return func() { bad = -1 }
		}
		s.mark = func(ctx context.Context, records []int) error {
			for _, r := range records {
				if r == bad {
					return errors.New("refused")
				}
				if err := s.LeasingSource.Mark(ctx, []int{r}); err != nil {
					return err
				}
			}
			return nil
		}
	}},
	{"remembers what it could not store", "keeps a mark that failed before", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		known := make(map[int]bool)
		s.mark = func(ctx context.Context, records []int) error {
			fresh := slices.DeleteFunc(slices.Clone(records), func(r int) bool { return known[r] })
			for _, r := range records {
				known[r] = true
			}
			return s.LeasingSource.Mark(ctx, fresh)
		}
	}},
	{"marks in the process only", "is durable", func(_ *testing.T, s *leasingWith, x *SourceFixture[int]) {
		var all []int
		add := x.Add
		x.Add = func(n int) []string {
			names := add(n)
			all = s.Pending()
			return names
		}
		block := s.shared.block
		x.Reopen = func() courier.Source[int] {
			other := new(Recorder[int]).LeasingSource(lease, all...)
			other.shared.block = block
			return other
		}
	}},
	{"one name for all", "names records", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.identity = func(int) string { return "record" }
	}},
	{"io.EOF", "hands out nothing when nothing is pending", func(_ *testing.T, s *leasingWith, _ *SourceFixture[int]) {
		s.fetch = func(context.Context, int) ([]int, error) { return nil, io.EOF }
	}},
}

// without removes the defects that are there for a check.
func without(defects []leasingDefect, name string) []leasingDefect {
	return slices.DeleteFunc(slices.Clone(defects), func(d leasingDefect) bool { return d.check == name })
}
