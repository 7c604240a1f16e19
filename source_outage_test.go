package courier_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// outage is a source of which a method fails until a time.
type outage struct {
	courier.Source[int]
	fetch, mark time.Time
	tries       atomic.Int64 // in vain
}

func (o *outage) Fetch(ctx context.Context, limit int) ([]int, error) {
	if time.Now().Before(o.fetch) {
		o.tries.Add(1)
		return nil, errTest
	}
	return o.Source.Fetch(ctx, limit)
}

func (o *outage) Mark(ctx context.Context, records []int) error {
	if time.Now().Before(o.mark) {
		o.tries.Add(1)
		return errTest
	}
	return o.Source.Mark(ctx, records)
}

// D10: however long the source was down, delivery goes on within ten seconds of its
// return, and until then it is asked some times a minute at most.
func TestD10_ALongOutageOfTheSource(t *testing.T) {
	for _, down := range []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour} {
		for _, what := range []string{"fetch", "mark"} {
			for _, streaming := range []bool{false, true} {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					end := time.Now().Add(down)
					o := &outage{Source: r.Source(numbers(300)...)}
					if streaming {
						o.Source = r.StreamSource(numbers(300)...)
					}
					if what == "fetch" {
						o.fetch = end
					} else {
						o.mark = end
					}
					var c courierttest.Starter = courier.NewPollingCoordinator[int](o, r.Applier(nil), quiet)
					if streaming {
						c = courier.NewStreamingCoordinator[int](o, r.Applier(nil), quiet)
					}
					run := courierttest.Start(t, c)
					time.Sleep(down)
					tries := o.tries.Load()
					time.Sleep(10 * time.Second)
					require.Len(t, r.Records(courierttest.Marked), 300, "%s, streaming %v, down %v", what, streaming, down)
					require.Less(t, tries, 20+int64(down/(2*time.Second)), "%s, streaming %v, down %v", what, streaming, down)
					require.NoError(t, run.Stop())
				})
			}
		}
	}
}
