// Package sim runs pipelines under deterministic, seeded fault injection. It is for
// tests: of Courier itself, of adapters, and of your own fetch, process and mark.
//
//	sim.Check(t, sim.Options{Episodes: 300}, func(w *sim.World) {
//		shop := newShop() // lives through crashes of the process
//		w.Run(func(ctx context.Context) error { // called again after each of them
//			return courier.SyncWithRetry(
//				sim.WrapFetch(w, shop.fetch), sim.WrapProcess(w, shop.process), sim.WrapMark(w, shop.mark),
//				3, w.Options(ctx)...).Start(ctx)
//		})
//		w.Always(shop.check)                                         // after every event
//		w.Eventually("every order is shipped", func() bool { return len(shop.pending) == 0 }) // once the faults have stopped
//	})
//
// The code under test is the real code, in a bubble of testing/synctest. Every call into
// the world stops until it is released, and so does every wait for the clock. When every
// goroutine waits, exactly one call is released, in an order that the seed determines;
// time is virtual and costs nothing. So one seed is one run, on any machine, and under
// the race detector too.
//
// [WrapSource] does the same for a source of your own. A fault around a method comes before
// it begins or after it has returned, so pass what the source does to its store to
// [World.Call]: that fails in the middle of Mark.
//
// A call may fail before or after its effect, panic, hang or take long. The source, the
// destination or the queue may be down for a while. A process may crash after any call,
// be stopped, freeze, or have its clock changed. The seed of each episode decides which
// of these faults happen, and for how long. Afterwards everything must be settled within
// [Options].Within.
//
// A failure is reported with the smallest set of faults found to cause it, a timeline,
// and the command that replays it, which has the flags that the test was given, but no
// environment variables and build tags; the flag -sim.plot writes it as an SVG. The flags are
// -sim.seed, -sim.episodes, -sim.time, -sim.faults, -sim.trace, -sim.plot and -sim.json.
// A seed belongs to one version of the code and of the test.
//
// A run is exact only if the code under test does not depend on which of its goroutines
// comes first, on the order of a map, on the system's clock or on random numbers of its
// own. [World.Options] and [World.Retry] take care of Courier's part. User code runs on
// its own goroutine between two stops; it may block on things inside the bubble, but not
// on real input and output. If the code waits by itself, for example with time.Sleep or
// context.WithTimeout, set [Options].Native.
package sim
