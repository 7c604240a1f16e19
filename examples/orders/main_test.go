package main

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestMain runs the program itself when it is asked to.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_ORDERS") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// The program delivers its order, and SIGTERM ends it.
func TestOrders_DeliversAndStops(t *testing.T) {
	relay := exec.Command(os.Args[0])
	relay.Dir, relay.Env, relay.Stderr = t.TempDir(), append(os.Environ(), "RUN_ORDERS=1"), os.Stderr
	stdout, err := relay.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, relay.Start())
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	require.Regexp(t, `^published to orders: {"id":"[A-Z2-7]{26}","total":42}$`, lines.Text())
	require.NoError(t, relay.Process.Signal(syscall.SIGTERM))
	require.False(t, lines.Scan(), lines.Text())
	require.NoError(t, relay.Wait())
}

// The program in the README of couriersql is this one.
func TestOrders_TheReadmeShowsThisProgram(t *testing.T) {
	program, err := os.ReadFile("main.go")
	require.NoError(t, err)
	readme, err := os.ReadFile("../../adapters/couriersql/README.md")
	require.NoError(t, err)
	require.True(t, strings.Contains(string(readme), "```go\n"+string(program)+"```\n"),
		"README.md of couriersql does not show examples/orders/main.go as it is")
}
