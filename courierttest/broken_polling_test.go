package courierttest

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/erfanmomeniii/courier"
)

// sourceWith is a source of which some methods are others.
type sourceWith struct {
	*Source[int]
	fetch    func(ctx context.Context, limit int) ([]int, error)
	mark     func(ctx context.Context, records []int) error
	identity func(int) string
}

func (s *sourceWith) Fetch(ctx context.Context, limit int) ([]int, error) {
	if s.fetch != nil {
		return s.fetch(ctx, limit)
	}
	return s.Source.Fetch(ctx, limit)
}

func (s *sourceWith) Mark(ctx context.Context, records []int) error {
	if s.mark != nil {
		return s.mark(ctx, records)
	}
	return s.Source.Mark(ctx, records)
}

func (s *sourceWith) Identity(record int) string {
	if s.identity != nil {
		return s.identity(record)
	}
	return s.Source.Identity(record)
}

type sourceDefect struct {
	defect, check string
	break_        func(t *testing.T, s *sourceWith, x *SourceFixture[int])
}

func TestBrokenPollingSources(t *testing.T) {
	var table []broken[sourceRun[int]]
	for _, d := range []sourceDefect{
		{"a capability is not there", "has the features it is said to have", func(_ *testing.T, s *sourceWith, x *SourceFixture[int]) {
			x.Source = struct{ courier.Source[int] }{s.Source}
		}},
		{"the newest is missing", "hands out what is pending", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(ctx context.Context, limit int) ([]int, error) {
				records, err := s.Source.Fetch(ctx, limit)
				return records[:max(0, len(records)-1)], err
			}
		}},
		{"a record twice", "hands out what is pending", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(ctx context.Context, limit int) ([]int, error) {
				records, err := s.Source.Fetch(ctx, limit)
				return append(records, records[0]), err
			}
		}},
		{"io.EOF", "hands out nothing when nothing is pending", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(context.Context, int) ([]int, error) { return nil, io.EOF }
		}},
		{"waits", "hands out nothing when nothing is pending", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(ctx context.Context, _ int) ([]int, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}},
		{"hangs", "hands out nothing when nothing is pending", func(t *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			end := make(chan struct{})
			t.Cleanup(func() { close(end) })
			s.fetch = func(context.Context, int) ([]int, error) {
				<-end
				return nil, nil
			}
		}},
		{"panics", "hands out nothing when nothing is pending", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(context.Context, int) ([]int, error) { panic("boom") }
		}},
		{"ignores the limit", "hands out all in portions of the limit", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(context.Context, int) ([]int, error) { return s.Pending(), nil }
		}},
		{"a cursor over what is pruned", "hands out all in portions of the limit", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			cursor := 0
			s.fetch = func(_ context.Context, limit int) ([]int, error) {
				all := s.Pending()
				records := all[min(cursor, len(all)):min(cursor+limit, len(all))]
				cursor += len(records)
				return records, nil
			}
		}},
		{"the newest first", "hands out the oldest first", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(_ context.Context, limit int) ([]int, error) {
				records := s.Pending()
				slices.Reverse(records)
				return records[:min(limit, len(records))], nil
			}
		}},
		{"fetch acknowledges", "hands out again what is not marked", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(ctx context.Context, limit int) ([]int, error) {
				records, err := s.Source.Fetch(ctx, limit)
				return records, errors.Join(err, s.Source.Mark(ctx, records))
			}
		}},
		{"one buffer for all fetches", "leaves fetched records alone", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			buffer := make([]int, 100)
			s.fetch = func(ctx context.Context, limit int) ([]int, error) {
				records, err := s.Source.Fetch(ctx, limit)
				return buffer[:copy(buffer, records)], err
			}
		}},
		{"takes, then looks at the context", "loses nothing to a fetch whose context has ended", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.fetch = func(ctx context.Context, limit int) ([]int, error) {
				records, err := s.Source.Fetch(context.WithoutCancel(ctx), limit)
				if ctx.Err() != nil {
					return nil, s.Source.Mark(context.WithoutCancel(ctx), records)
				}
				return records, err
			}
		}},
		{"marks all up to the last", "marks any subset in any order", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.mark = func(ctx context.Context, records []int) error {
				return s.Source.Mark(ctx, numbers(slices.Max(records)+1))
			}
		}},
		{"refuses what is marked", "marks again without harm", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.mark = func(ctx context.Context, records []int) error {
				for _, r := range records {
					if !slices.Contains(s.Pending(), r) {
						return errors.New("there is no such record")
					}
				}
				return s.Source.Mark(ctx, records)
			}
		}},
		{"marks by place", "takes no new record for an old mark", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.mark = func(ctx context.Context, records []int) error {
				all := s.Pending()
				return s.Source.Mark(ctx, all[:min(len(records), len(all))])
			}
		}},
		{"marks later", "does not keep the slice of a mark", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			var later []int
			s.mark = func(_ context.Context, records []int) error {
				later = records
				return nil
			}
			s.fetch = func(ctx context.Context, limit int) ([]int, error) {
				return errorless(s.Source.Fetch(ctx, limit))(s.Source.Mark(ctx, later))
			}
		}},
		{"says nil and does nothing", "tells the truth of a mark whose context has ended", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.mark = func(ctx context.Context, records []int) error {
				if ctx.Err() != nil {
					return nil
				}
				return s.Source.Mark(ctx, records)
			}
		}},
		{"one by one", "marks all or nothing", func(_ *testing.T, s *sourceWith, x *SourceFixture[int]) {
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
					if err := s.Source.Mark(ctx, []int{r}); err != nil {
						return err
					}
				}
				return nil
			}
		}},
		{"swallows the error", "marks all or nothing", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.mark = func(ctx context.Context, records []int) error {
				_ = s.Source.Mark(ctx, records)
				return nil
			}
		}},
		{"remembers what it could not store", "keeps a mark that failed before", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			known := make(map[int]bool)
			s.mark = func(ctx context.Context, records []int) error {
				fresh := slices.DeleteFunc(slices.Clone(records), func(r int) bool { return known[r] })
				for _, r := range records {
					known[r] = true
				}
				return s.Source.Mark(ctx, fresh)
			}
		}},
		{"keeps marks in the process", "is durable", func(_ *testing.T, s *sourceWith, x *SourceFixture[int]) {
			var all []int
			add := x.Add
			x.Add = func(n int) []string {
				names := add(n)
				all = s.Pending()
				return names
			}
			x.Reopen = func() courier.Source[int] { return new(Recorder[int]).Source(all...) }
		}},
		{"one name for all", "names records", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			s.identity = func(int) string { return "record" }
		}},
		{"another name each time", "names records", func(_ *testing.T, s *sourceWith, _ *SourceFixture[int]) {
			n := 0
			s.identity = func(int) string {
				n++
				return numberName(n)
			}
		}},
	} {
		table = append(table, broken[sourceRun[int]]{d.defect, d.check, func(t *testing.T, tb TB) *sourceRun[int] {
			x := openPolling(t)
			s := &sourceWith{Source: x.Source.(*Source[int])}
			x.Source = s
			x.Reopen = func() courier.Source[int] { return s }
			d.break_(t, s, &x)
			return newSourceRun(tb, x, pollingFeatures, false)
		}})
	}
	testBroken(t, sourceChecks[int](pollingFeatures, false), table)
}

// errorless returns what a fetch returned, unless there is an error.
func errorless(records []int, err error) func(error) ([]int, error) {
	return func(before error) ([]int, error) { return records, errors.Join(before, err) }
}

func numberName(n int) string { return string(rune('a' + n)) }
