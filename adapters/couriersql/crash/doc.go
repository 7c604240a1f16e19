// Package crash has no code of its own: its tests kill relays, cut their
// connections and crash the database under them, and see that nothing is lost.
//
//	go test ./crash -args -crash.kills=200 -crash.seed=7
package crash
