//go:build race

package courier_test

const raceEnabled = true
