// Package crash has no code of its own: its tests kill relays, cut their connections
// and crash the database under them, and see that nothing is lost. TestChaos does that
// with all that is between rows in PostgreSQL and messages in JetStream.
//
//	go test ./crash -args -crash.kills=200 -crash.seed=7
//	go test ./crash -run TestChaos -v -timeout 0 -args -crash.chaos=1h -crash.seed=7
package crash
