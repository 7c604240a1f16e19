package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// TestMain runs the program itself when it is asked to.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_SERVICE") != "" {
		os.Args = os.Args[:1]
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// D8: a real process, a real SIGTERM. What was fetched is applied and marked, or
// stays pending.
func TestD8_SIGTERMFinishesWhatIsInWork(t *testing.T) {
	service := exec.Command(os.Args[0])
	service.Env = append(os.Environ(), "RUN_SERVICE=1")
	service.Stderr = os.Stderr
	stdout, err := service.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	url, found := strings.CutPrefix(lines.Text(), "ready? ")
	if !found {
		t.Fatalf("it said %q", lines.Text())
	}
	if got := probe(t, url); got != "200 ready" {
		t.Errorf("the probe got %q", got)
	}
	if err := service.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	var fetched, applied, marked, inHand, left int
	if _, err := fmt.Sscanf(lines.Text(), "stopped: %d fetched, %d applied, %d marked, %d in hand, %d left pending", &fetched, &applied, &marked, &inHand, &left); err != nil {
		t.Fatalf("it said %q: %v", lines.Text(), err)
	}
	if applied != marked || inHand != 0 {
		t.Errorf("it said %q", lines.Text())
	}
	if err := service.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func probe(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 1000 { // it may ask before Start has begun
		answer, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode == http.StatusOK {
			return fmt.Sprintf("%d %s", answer.StatusCode, strings.TrimSpace(string(body)))
		}
	}
	return "never ready"
}
