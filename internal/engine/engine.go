// Package engine is what both coordinators keep account of records in hand with, as far
// as that knows neither sources nor appliers nor errors: how workers claim the records of a
// batch, the order within a key and the keys that are held back, what waits until it is
// due, the suspects of an outage, leases, what waits for its mark, and what goes back to
// the source. It starts no goroutine and asks no clock: times are arguments.
package engine
