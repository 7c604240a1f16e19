package courierttest

// TB is what the asserts need of a testing.TB. *testing.T, *testing.B,
// *testing.F and *rapid.T have it, and so has a recorder of one's own.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}
