// Package meter measures what a record costs, the same way for every case, so
// that bench/report can divide one case by another.
package meter

import (
	"runtime"
	"testing"
)

// Records runs work, which takes the given number of operations of n records
// each, and reports what one record cost: its time, and its allocations on all
// goroutines. (testing counts whole allocations of an operation only.) What
// work does once is divided by all records too, so it is best done before.
func Records(b *testing.B, n int, work func(operations int)) {
	b.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	work(b.N)
	b.StopTimer()
	runtime.ReadMemStats(&after)
	records := float64(b.N) * float64(n)
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/records, "allocs/record")
	Time(b, n)
}

// Time reports what a record cost where the caller starts and stops the timer.
func Time(b *testing.B, n int) {
	b.Helper()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
	b.ReportMetric(0, "ns/op") // an operation is as long as a case finds fit
}
