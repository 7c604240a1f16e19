package courierttest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// watchedFixture has the source of a fixture watched.
func watchedFixture(open func(*testing.T) SourceFixture[int]) func(*testing.T) SourceFixture[int] {
	return func(t *testing.T) SourceFixture[int] {
		var r Recorder[int]
		x := open(t)
		reopen := x.Reopen
		x.Source = r.WatchSource(x.Source)
		x.Reopen = func() courier.Source[int] { return r.WatchSource(reopen()) }
		return x
	}
}

// Whoever is watched keeps the contract and every capability, and gains none.
func TestWatchedSourcesAreSources(t *testing.T) {
	t.Run("polling", func(t *testing.T) { TestSource(t, watchedFixture(openPolling), pollingFeatures) })
	t.Run("leasing", func(t *testing.T) { TestSource(t, watchedFixture(openLeasing), leasingFeatures) })
	t.Run("scheduling", func(t *testing.T) { TestSource(t, watchedFixture(openScheduling), schedulingFeatures()) })
	t.Run("stream", func(t *testing.T) { TestStreamSource(t, watchedFixture(openStream), streamFeatures) })
}

func TestWatchedAppliersAreAppliers(t *testing.T) {
	TestBatchApplier(t, func(t *testing.T) ApplierFixture[int] {
		var r Recorder[int]
		x := openShop(t)
		x.Applier = r.WatchApplier(x.Applier)
		return x
	}, batchFeatures)
}

// bare has nothing but what the contract asks for, and fails as told.
type bare struct{ err error }

func (s bare) Fetch(context.Context, int) ([]int, error) { return []int{7}, s.err }
func (s bare) Mark(context.Context, []int) error         { return s.err }

// failing is bare with a Fail, and without a Release.
type failing struct{ bare }

func (s failing) Fail(context.Context, []courier.FailedRecord[int]) error { return s.err }

// paging is bare with more than it returns.
type paging struct{ bare }

func (paging) More() bool { return true }

func TestWatchSource_GainsNoCapability(t *testing.T) {
	var r Recorder[int]
	source := r.WatchSource(bare{})
	_, releases := source.(courier.Releaser[int])
	_, fails := source.(courier.Failer[int])
	require.False(t, releases || fails)
	require.Zero(t, source.(courier.Renewer[int]).RenewEvery())
	require.NoError(t, source.(courier.Renewer[int]).Renew(t.Context(), []int{7}))
	require.Nil(t, source.(courier.Waker).Wake())
	require.Nil(t, source.(courier.Revoker).Revoked())
	require.False(t, source.(courier.Pager).More())
	require.True(t, r.WatchSource(paging{}).(courier.Pager).More())
	_, err := source.(courier.Lagger).Lag(t.Context())
	require.ErrorIs(t, err, courier.ErrNoLag)
	require.NoError(t, source.(courier.Validator).Validate())
	require.Equal(t, "7", source.(courier.Identifier[int]).Identity(7))
	require.Nil(t, r.WatchSource(nil), "that it is missing is for the coordinator to say")

	watched := r.WatchSource(failing{})
	_, releases = watched.(courier.Releaser[int])
	_, fails = watched.(courier.Failer[int])
	require.True(t, fails && !releases)
}

func TestWatchSource_RecordsWhatTheSourceSaid(t *testing.T) {
	boom := errors.New("boom")
	var r Recorder[int]
	for _, err := range []error{nil, boom} {
		source := r.WatchSource(failing{bare{err}})
		records, fetchErr := source.Fetch(t.Context(), 1)
		require.Equal(t, []int{7}, records)
		require.Equal(t, err, fetchErr)
		require.Equal(t, err, source.Mark(t.Context(), records))
		require.Equal(t, err, source.(courier.Failer[int]).Fail(t.Context(), []courier.FailedRecord[int]{{Record: 7, Error: boom}}))
	}
	var told []string
	for _, e := range r.Events() {
		told = append(told, fmt.Sprint(e.Kind, " ", e.Name, " ", e.Err))
	}
	require.Equal(t, []string{
		"fetched 7 <nil>", "marked 7 <nil>", "released 7 boom", // by Fail
		"fetched 7 <nil>", "mark failed 7 boom", // the records came with the error
	}, told)

	leased := r.WatchSource(r.LeasingSource(time.Minute, 8))
	records, err := leased.Fetch(t.Context(), 1)
	require.NoError(t, err)
	require.Error(t, leased.(courier.Releaser[int]).Release(canceled(), records, 0))
	before := len(r.Events())
	require.NoError(t, leased.(courier.Releaser[int]).Release(t.Context(), records, 0))
	require.Len(t, r.Events(), before+2, "by the fake, and by who watches it")
}

// moody is an applier of one's own that fails by the record.
type moody struct{ batch func(records []int) error }

func (moody) Apply(_ context.Context, record int) error {
	switch record {
	case 1:
		return errors.New("boom")
	case 2:
		return courier.Skip(errors.New("old"))
	case 3:
		panic("boom")
	case 4:
		runtime.Goexit()
	}
	return nil
}

func (m moody) ApplyBatch(_ context.Context, records []int) error { return m.batch(records) }

func TestWatchApplier_RecordsWhatTheApplierSaid(t *testing.T) {
	var r Recorder[int]
	require.Nil(t, r.WatchApplier(nil))
	_, batches := r.WatchApplier(courier.ProcessFunc(moody{}.Apply)).(courier.BatchApplier[int])
	require.False(t, batches)
	require.Error(t, r.WatchApplier(courier.ProcessFunc[int](nil)).(courier.Validator).Validate())

	watched := r.WatchApplier(moody{})
	for record := range 5 {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { _ = recover() }()
			_ = watched.Apply(context.Background(), record)
		}()
		<-ended
	}
	require.Equal(t, []int{0}, r.Records(Applied))
	require.Equal(t, []int{2}, r.Records(Skipped))
	require.Equal(t, []int{1, 3, 4}, r.Records(Failed))
}

func TestWatchApplier_RecordsBatches(t *testing.T) {
	list := &courier.BatchError{Failures: []courier.BatchFailure{{Index: 1, Err: errors.New("boom")}, {Index: 2, Err: courier.Skip(errors.New("old"))}, {Index: 9, Err: errors.New("of nobody")}}}
	for name, c := range map[string]struct {
		err                      error
		applied, failed, skipped []int
	}{
		"all applied":   {nil, []int{5, 6, 7}, nil, nil},
		"some failed":   {list, []int{5}, []int{6}, []int{7}},
		"with a remark": {fmt.Errorf("shop: %w", list), []int{5}, []int{6}, []int{7}},
		"none applied":  {errors.New("down"), nil, []int{5, 6, 7}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var r Recorder[int]
			watched := r.WatchApplier(moody{func([]int) error { return c.err }}).(courier.BatchApplier[int])
			require.Equal(t, c.err, watched.ApplyBatch(t.Context(), []int{5, 6, 7}))
			require.Equal(t, c.applied, r.Records(Applied))
			require.Equal(t, c.failed, r.Records(Failed))
			require.Equal(t, c.skipped, r.Records(Skipped))
		})
	}
}

// A source of one's own that marks what it fetched, and an applier that returns
// before it has done the work: the asserts see both.
func TestTheAssertsSeeWhatIsWatched(t *testing.T) {
	var r Recorder[int]
	source, shop := r.WatchSource(bare{}), r.WatchApplier(moody{})
	records, err := source.Fetch(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, reportsOf(t, func(tb TB) { AssertDelivered(tb, &r) }).failures, 1)
	require.NoError(t, source.Mark(t.Context(), records))
	require.Len(t, reportsOf(t, func(tb TB) { AssertMarkedAfterApplied(tb, &r) }).failures, 1)
	require.NoError(t, shop.Apply(t.Context(), 7))
	require.Empty(t, reportsOf(t, func(tb TB) { AssertDeliveredOnce(tb, &r) }).failures)
	require.NoError(t, shop.Apply(t.Context(), 7))
	require.Len(t, reportsOf(t, func(tb TB) { AssertDeliveredOnce(tb, &r) }).failures, 1)
}
