package courier_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The root package is in everyone's build: outside its tests it imports the
// standard library and itself.
func TestAPI_ImportsNothingButTheStandardLibrary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, path := range strings.Fields(string(out)) {
		require.True(t, strings.HasPrefix(path, "github.com/erfanmomeniii/courier"), "the root package imports %s", path)
	}
}
