// Package courierttest is the kit to test a pipeline of one's own with: sources,
// destinations and dead letter queues in memory that fail as they are told, a
// record of what happened, time that costs nothing, and asserts about the
// delivery contract. No real time passes in it.
//
//	func TestOrdersSurviveAFlakyShop(t *testing.T) {
//		courierttest.Bubble(t, func(t *testing.T) {
//			var records courierttest.Recorder[string]
//			source := records.Source("order 1", "order 2", "order 3")
//			shop := records.Applier(courierttest.MustParse(`error if every 2; panic if record "order 3" and attempt 1`))
//			coordinator := courier.NewPollingCoordinator(source, courier.WithRetry(shop))
//			courierttest.RunFor(t, coordinator, time.Minute) // of the bubble's time
//			courierttest.AssertDelivered(t, &records)
//			courierttest.AssertDrained(t, source)
//		})
//	}
//
// To test functions of one's own, give them to the fakes: [Applier].ApplyFunc
// is where faults go around a real process function, and [Source].FetchFunc and
// MarkFunc are watched in the same way. Types of one's own are recorded as they
// are by [Recorder.WatchSource] and [Recorder.WatchApplier]. What a coordinator
// tells of itself is for an [ObserverRecorder].
//
// # Faults
//
// A [Fault] is an effect and a condition, and has a text form that [Parse] reads
// back, so that a failing case can be printed, kept in a file, and passed as a
// flag. Whatever a fault causes is [ErrInjected], to errors.Is.
//
// # Suites
//
// [TestSource], [TestStreamSource], [TestApplier], [TestBatchApplier] and
// [TestDLQ] say whether an implementation keeps the contract of its interface.
// They are for authors of adapters, and for a Source or Applier of one's own.
package courierttest
