package courierttest

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// history makes a recorder of events in short: the kind and the record.
func history(events ...any) *Recorder[string] {
	var r Recorder[string]
	for i := 0; i < len(events); i += 2 {
		r.note(events[i].(Kind), nil, events[i+1].(string))
	}
	return &r
}

func TestAsserts(t *testing.T) {
	delivered := func(tb TB, r *Recorder[string]) { AssertDelivered(tb, r) }
	once := func(tb TB, r *Recorder[string]) { AssertDeliveredOnce(tb, r) }
	marked := func(tb TB, r *Recorder[string]) { AssertMarkedAfterApplied(tb, r) }
	order := func(tb TB, r *Recorder[string]) { AssertOrder(tb, r, nil) }
	byKey := func(tb TB, r *Recorder[string]) { AssertOrder(tb, r, func(record string) string { return record[:1] }) }
	for _, test := range []struct {
		name   string
		assert func(TB, *Recorder[string])
		r      *Recorder[string]
		want   []string // a part of each report
	}{
		{"all is well", delivered, history(Added, "a", Added, "b", Added, "c", Applied, "a", Applied, "a", Marked, "a", Parked, "b", Marked, "b", Skipped, "c", Marked, "c"), nil},
		{"never applied", delivered, history(Added, "a", Failed, "a"), []string{"record a was neither applied nor parked"}},
		{"only fetched", delivered, history(Fetched, "a"), []string{"record a was neither applied nor parked"}},
		{"the answer was lost", delivered, history(Added, "a", Unacked, "a", Marked, "a"), []string{"record a was neither applied nor parked"}},
		{"never marked", delivered, history(Added, "a", Applied, "a", MarkFailed, "a"), []string{"record a was settled and is not marked"}},
		{"each its own", delivered, history(Added, "a", Added, "b", Applied, "b"), []string{"record a was neither", "record b was settled"}},

		{"once", once, history(Added, "a", Failed, "a", Applied, "a", Marked, "a", Marked, "a"), nil},
		{"twice", once, history(Added, "a", Applied, "a", Applied, "a", Marked, "a"), []string{"record a was delivered 2 times"}},
		{"with a lost answer", once, history(Added, "a", Unacked, "a", Applied, "a", Marked, "a"), []string{"record a was delivered 2 times"}},
		{"applied and parked", once, history(Added, "a", Applied, "a", Parked, "a", Marked, "a"), []string{"record a was delivered 2 times"}},
		{"never", once, history(Added, "a"), []string{"record a was neither applied nor parked"}},

		{"after", marked, history(Applied, "a", Marked, "a", Skipped, "b", Marked, "b", Parked, "c", MarkFailed, "c", Marked, "c"), nil},
		{"before", marked, history(Marked, "a", Applied, "a", Marked, "a"), []string{"record a was marked before"}},
		{"on an error", marked, history(Failed, "a", MarkFailed, "a"), []string{"record a was marked before"}},
		{"on a lost answer", marked, history(Unacked, "a", Marked, "a"), []string{"record a was marked before"}},
		{"on a refused park", marked, history(ParkFailed, "a", Marked, "a", Applied, "b", Marked, "b"), []string{"record a was marked before"}},

		{"in order", order, history(Added, "a", Added, "b", Added, "c", Applied, "a", Applied, "c", Applied, "a"), nil},
		{"out of order", order, history(Added, "a", Added, "b", Applied, "b", Failed, "a", Applied, "a"), []string{"record a was applied after record b"}},
		{"by fetch", order, history(Fetched, "a", Fetched, "b", Unacked, "b", Applied, "a"), []string{"record a was applied after record b"}},
		{"by key", byKey, history(Added, "a1", Added, "b1", Added, "a2", Applied, "b1", Applied, "a1", Applied, "a2"), nil},
		{"in a key", byKey, history(Added, "a1", Added, "b1", Added, "a2", Applied, "b1", Applied, "a2", Applied, "a1"), []string{`record a1 was applied after record a2, and comes before it in the order of the key "a"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			reports := reportsOf(t, func(tb TB) { test.assert(tb, test.r) })
			require.Len(t, reports.failures, len(test.want))
			require.False(t, reports.fatal)
			for i, want := range test.want {
				require.Contains(t, reports.failures[i], want)
			}
		})
	}
}

func TestAssertDrained(t *testing.T) {
	var r Recorder[string]
	for _, source := range []interface {
		Pending() []string
	}{r.Source("a"), r.LeasingSource(lease, "a"), r.StreamSource("a")} {
		reports := reportsOf(t, func(tb TB) { AssertDrained(tb, source) })
		require.Equal(t, []string{"1 records are pending at the source: [a]"}, reports.failures)
	}
	require.Empty(t, reportsOf(t, func(tb TB) { AssertDrained(tb, r.Source()) }).failures)
}

// A report shows what happened to the record, and to no other.
func TestReportsShowTheTimeline(t *testing.T) {
	r := &Recorder[string]{Clock: fixedClock{}}
	r.note(Added, nil, "a", "b")
	r.note(Failed, errors.New("boom"), "a")
	reports := reportsOf(t, func(tb TB) { AssertDelivered(tb, r) })
	require.Equal(t, "record a was neither applied nor parked:\n"+
		"12:30:00.000 added       a\n"+
		"12:30:00.000 failed      a: boom\n", reports.failures[0])
	require.Contains(t, r.Timeline(), "added       b")
}
