package plant_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier/internal/plant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBug_TakesThePlaceOfOneText(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "a.go"), []byte("one two two"), 0o600))
	for name, test := range map[string]struct {
		bug        plant.Bug
		code, want string
	}{
		"once":    {plant.Bug{File: "a.go", From: "one", To: "1"}, "1 two two", ""},
		"twice":   {plant.Bug{File: "a.go", From: "two", To: "2"}, "", "a.go has the text 2 times"},
		"gone":    {plant.Bug{File: "a.go", From: "three", To: "3"}, "", "a.go has the text 0 times"},
		"no bug":  {plant.Bug{File: "a.go", From: "one", To: "one"}, "", "it is no bug"},
		"no file": {plant.Bug{File: "b.go", From: "one", To: "1"}, "", "b.go"},
	} {
		t.Run(name, func(t *testing.T) {
			code, err := test.bug.In(root)
			if test.want != "" {
				require.ErrorContains(t, err, test.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.code, string(code))
		})
	}
}
