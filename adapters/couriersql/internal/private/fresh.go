package private

import (
	"context"
	"errors"
	"os"
	"testing"
)

// Need fails a test that has no server for err, or skips it where there is none to start and
// the environment variable skip allows it. In CI a missing server is a failure.
func Need(t testing.TB, err, none error, skip string) {
	t.Helper()
	if errors.Is(err, none) && os.Getenv(skip) == "skip" && os.Getenv("CI") == "" {
		t.Skipf("%v (%s=skip)", err, skip)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Fresh returns the DSN of what create makes for a test, and drops it at the end of the test.
func Fresh(t testing.TB, create func(context.Context) (dsn string, drop func() error, err error)) (dsn string) {
	t.Helper()
	dsn, drop, err := create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Error(err)
		}
	})
	return dsn
}
