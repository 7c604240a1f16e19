package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"time"
)

// workerVariable makes this program a relay or a consumer, with its value as configuration.
const workerVariable = "COURIER_KAFKA_WORKER"

// worker is what a process is told.
type worker struct {
	Name                       string // "" is the relay
	Places                     places
	Brokers                    []string
	Orders, DeadLetters, Group string
	Session                    time.Duration
	Batch                      int
}

// runWorker is such a process. It ends with the one that started it.
func runWorker(ctx context.Context, text string) int {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // which the parent holds open while it lives
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var w worker
	err := json.Unmarshal([]byte(text), &w)
	if err == nil {
		err = w.run(ctx)
	}
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "kafka: %s: %v\n", w.label(), err)
		return exitCannotRun
	}
	return 0
}

func (w *worker) label() string {
	if w.Name == "" {
		return "relay"
	}
	return "member " + w.Name
}

func (w *worker) run(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})).With("process", w.label())
	if w.Name == "" {
		s, err := w.Places.openShop()
		if err != nil {
			return err
		}
		defer s.close()
		return relay(ctx, s.outbox, w.Brokers, w.DeadLetters, w.Batch, log)
	}
	t, err := w.Places.openReceived(w.Name)
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }()
	return consume(ctx, t, w.Brokers, w.Orders, w.DeadLetters, w.Group, w.Session, log)
}

// process is a worker that runs.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
}

func (w worker) start(stderr io.Writer) (*process, error) {
	text, err := json.Marshal(w)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), workerVariable+"="+string(text))
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &process{w.Name, cmd, stdin}, cmd.Start()
}

// kill ends a process as kill -9 does: nothing is closed, flushed or deferred.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// stop has a process finish what it has begun.
func (p *process) stop() error {
	_ = p.stdin.Close()
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("the process of %s: %w", (&worker{Name: p.name}).label(), err)
	}
	return nil
}
