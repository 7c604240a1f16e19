// Package sim runs pipelines in simulated worlds that fail as a seed says. It is
// for tests: of Courier itself, of adapters, and of your own fetch, process and
// mark.
//
//	sim.Check(t, sim.Options{Episodes: 300}, func(w *sim.World) {
//		shop := newShop() // lives through crashes of the process
//		w.Run(func(ctx context.Context) error { // called again after each of them
//			return courier.SyncWithRetry(
//				sim.WrapFetch(w, shop.fetch), sim.WrapProcess(w, shop.process), sim.WrapMark(w, shop.mark),
//				3, w.Options(ctx)...).Start(ctx)
//		})
//		w.Always(shop.check)                                         // after every event
//		w.Eventually(func() bool { return len(shop.pending) == 0 }) // once the faults have stopped
//	})
//
// The code under test is the real one, in a bubble of testing/synctest. Every
// call into the world parks, and so does every wait on the clock. When everything
// waits, exactly one goes on, in an order that the seed draws; time is virtual
// and costs nothing. So one seed is one run, whatever the machine does, and under
// the race detector too.
//
// A call may fail before or behind its effect, panic, hang or take long; the
// source, the destination or the queue may be out for a while; a process may crash
// after any call, be stopped, stand still, or have its clock set. Each episode
// draws which of these are on, and for how long there are any. After that
// everything has to be settled within [Options].Within.
//
// A failure is told with the fewest faults that were found to cause it, a timeline,
// and the command that replays it; the flag -sim.plot writes it as an SVG. The
// flags are -sim.seed, -sim.episodes, -sim.time, -sim.faults, -sim.trace,
// -sim.plot and -sim.json. A seed is of one version of the code and of the test.
//
// To be exact, what the code under test does must not depend on which of its
// goroutines came first, on the order of a map, on the clock of the system or on a
// random number of its own. [World.Options] and [World.Retry] see to Courier's
// part. User code runs on its own goroutine between two parks; it may block on
// what is in the bubble, but not on real input and output. An episode whose code
// waits by itself, by time.Sleep or context.WithTimeout say, needs
// [Options].Native.
package sim
