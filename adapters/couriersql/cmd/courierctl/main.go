// Courierctl looks after an outbox of couriersql, in PostgreSQL or SQLite: how
// far behind it is, its dead letters, its schema, its kept rows.
//
//	go install github.com/erfanmomeniii/courier/adapters/couriersql/cmd/courierctl@latest
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"
)

// The exit statuses beside 0.
const (
	exitFinding   = 1 // what was asked about is not well, or not there
	exitCannotRun = 2
)

// errFinding is the error, to errors.Is, of a command that ran, and found
// something that a script wants to know of.
var errFinding = errors.New("")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `Courierctl looks after an outbox.

  courierctl status                          what waits, since when, what fails
  courierctl dlq list                        dead letters, the oldest first
  courierctl dlq show ID                     one of them, with its payload
  courierctl dlq redrive ID… | -all          back into the outbox, to be delivered again
  courierctl dlq delete ID… | -all           for good
  courierctl migrate                         create or upgrade the tables
  courierctl prune -older-than 168h          delete rows that were kept

Each command takes:

  -db DSN        postgres://…, host=… dbname=…, or the path of a SQLite file;
                 $COURIER_DB without it
  -table NAME    the outbox table, courier_outbox
  -json          one JSON value instead of text
  -timeout TIME  for all of it, 30s
  -dry-run       for dlq redrive, dlq delete, migrate, prune: what would happen

and "courierctl COMMAND -h" tells of its own. Exit status: 0 all is well; 1 it ran
and found that a limit is exceeded (status -max-lag, -max-dead) or a letter is not
there; 2 it cannot run, and one line says why.
`

var commands = map[string]func(context.Context, *invocation) error{
	"status":      status,
	"dlq list":    list,
	"dlq show":    show,
	"dlq redrive": redrive,
	"dlq delete":  remove,
	"migrate":     migrate,
	"prune":       prune,
}

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := dispatch(ctx, args, stdout)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFinding):
		_, _ = fmt.Fprint(stderr, prefixed(err))
		return exitFinding
	}
	_, _ = fmt.Fprint(stderr, prefixed(err))
	return exitCannotRun
}

// prefixed is an error as a line.
func prefixed(err error) string {
	return "courierctl: " + strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ") + "\n"
}

func dispatch(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help" || args[0] == "help") {
		_, err := io.WriteString(stdout, usage)
		return err
	}
	for words := 2; words > 0; words-- {
		if len(args) < words {
			continue
		}
		name := strings.Join(args[:words], " ")
		if command, known := commands[name]; known {
			return (&invocation{name: name, args: args[words:], stdout: stdout}).do(ctx, command)
		}
	}
	if len(args) == 0 {
		return errors.New("no command is given: see courierctl -h")
	}
	return fmt.Errorf("there is no command %q: see courierctl -h", strings.Join(args[:min(2, len(args))], " "))
}

// finding is an error that tells of what was found.
func finding(format string, args ...any) error {
	return fmt.Errorf("%w"+format, append([]any{errFinding}, args...)...)
}

func helpOf(name string, flags *flag.FlagSet, w io.Writer) error {
	_, err := fmt.Fprintf(w, "courierctl %s\n\n", name)
	flags.SetOutput(w)
	flags.PrintDefaults()
	return err
}
