package courierttest

// TB is the part of testing.TB that the assertions need. *testing.T, *testing.B,
// *testing.F and *rapid.T have it, and your own recorder may.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}
