// Package plant builds test binaries with a bug in them, for the commands that measure what
// tests find. The files on disk stay as they are.
package plant

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Bug is a text of one file, which occurs in it exactly once, and what comes in its place.
type Bug struct{ File, From, To string }

// Root returns the folder of the root module, to which the files of bugs are relative.
func Root() (string, error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/erfanmomeniii/courier").Output()
	return strings.TrimSpace(string(root)), err
}

// In returns the bug's file under root, with the bug in it.
func (b Bug) In(root string) (code []byte, err error) {
	text, err := os.ReadFile(filepath.Join(root, b.File))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(text), b.From); n != 1 {
		return nil, fmt.Errorf("%s has the text %d times, want once: the code has changed, mend the table", b.File, n)
	}
	if b.From == b.To {
		return nil, fmt.Errorf("the text for %s is the one that is there: it is no bug", b.File)
	}
	return []byte(strings.Replace(string(text), b.From, b.To, 1)), nil
}

// Compile builds the test binary of a package, named from root, with the bug in it. It
// creates the folder dir for that, and returns the path of the binary in it. The flags are
// those of go test.
func (b Bug) Compile(root, dir, pkg string, flags ...string) (binary string, err error) {
	code, err := b.In(root)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	planted, overlay, binary := filepath.Join(dir, "planted.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "planted.test")
	places, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, b.File): planted}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(planted, code, 0o600), os.WriteFile(overlay, places, 0o600)); err != nil {
		return "", err
	}
	build := exec.Command("go", append(append([]string{"test", "-c", "-vet=off", "-overlay", overlay, "-o", binary}, flags...), pkg)...)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return binary, nil
}
