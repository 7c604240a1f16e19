// Package courierttest helps to test your own pipeline. It has sources, destinations and
// dead letter queues in memory that fail on demand, a record of what happened, virtual
// time, and assertions about the delivery contract. No real time passes.
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
// To test your own functions, give them to the fakes: [Applier].ApplyFunc puts faults
// around a real process function, and [Source].FetchFunc and MarkFunc do the same for a
// source. [Recorder.WatchSource] and [Recorder.WatchApplier] record your own types. An
// [ObserverRecorder] keeps the events of a coordinator.
//
// # Faults
//
// A [Fault] is an effect and a condition. It has a text form that [Parse] reads back, so
// that a failing case can be printed, kept in a file, and passed as a flag. Every error
// that a fault causes is [ErrInjected] to errors.Is.
//
// # Suites
//
// [TestSource], [TestStreamSource], [TestApplier], [TestBatchApplier] and [TestDLQ] check
// that an implementation keeps the contract of its interface. They are for authors of
// adapters, and for your own Source or Applier.
package courierttest
