//go:build !race

package courierkafka_test

const raceEnabled = false
