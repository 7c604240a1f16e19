package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/mattn/go-isatty"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// console is the standard error, which log, notices and progress share. On a
// terminal, what is written while the bar runs appears above it.
type console struct {
	terminal bool

	mu     sync.Mutex
	stderr io.Writer
	bars   *mpb.Progress // nil while no bar runs
}

func newConsole(stderr io.Writer) *console {
	file, ok := stderr.(*os.File)
	return &console{stderr: stderr, terminal: ok && isatty.IsTerminal(file.Fd())}
}

// Write takes whole lines.
func (c *console) Write(lines []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bars != nil {
		return c.bars.Write(lines)
	}
	return c.stderr.Write(lines)
}

// line writes a notice.
func (c *console) line(format string, args ...any) {
	_, _ = fmt.Fprintf(c, "outbox: "+format+"\n", args...)
}

// progress shows how far a run is until the function that it returns is called:
// as a bar on a terminal, else as a line now and then.
func (c *console) progress(counts *counts, connected func() bool) (stop func()) {
	show, every, finish := c.lines(counts, connected), time.Second, func() {}
	if c.terminal {
		show, finish = c.bar(counts, connected)
		every = 100 * time.Millisecond
	}
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				show()
			case <-done:
				show()
				return
			}
		}
	})
	return func() {
		close(done)
		group.Wait()
		finish()
	}
}

func (c *console) lines(counts *counts, connected func() bool) (show func()) {
	before := ""
	return func() {
		text := fmt.Sprintf("%s of %s relayed%s",
			humanize.Comma(counts.settled.Load()), humanize.Comma(counts.expected.Load()), brokerState(connected))
		if text != before {
			c.line("%s", text)
			before = text
		}
	}
}

func (c *console) bar(counts *counts, connected func() bool) (show, finish func()) {
	bars := mpb.New(mpb.WithOutput(c.stderr), mpb.WithRefreshRate(100*time.Millisecond))
	bar := bars.AddBar(counts.expected.Load(), mpb.BarWidth(60),
		mpb.PrependDecorators(decor.Name("relaying ")),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
			return fmt.Sprintf(" %s / %s%s", humanize.Comma(s.Current), humanize.Comma(s.Total), brokerState(connected))
		})),
	)
	c.mu.Lock()
	c.bars = bars
	c.mu.Unlock()
	show = func() {
		bar.SetTotal(counts.expected.Load(), false)
		bar.SetCurrent(counts.settled.Load())
	}
	finish = func() {
		// Leaves the bar where it is, full or not. What is written from here on
		// waits for its last line.
		c.mu.Lock()
		defer c.mu.Unlock()
		bar.Abort(false)
		bars.Wait()
		c.bars = nil
	}
	return show, finish
}

func brokerState(connected func() bool) string {
	if connected() {
		return ""
	}
	return "  (broker down)"
}
