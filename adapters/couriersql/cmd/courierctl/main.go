// Courierctl looks after an outbox of couriersql, in PostgreSQL, MySQL, MariaDB or SQLite: how
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
	"slices"
	"strings"
	"syscall"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"
)

// The exit statuses beside 0.
const (
	exitFinding   = 1 // what was asked about is not well, or not there
	exitCannotRun = 2
	exitPartly    = 3 // some of it is done
)

// errFinding is, to errors.Is, the error of a command that ran and found something
// that a script wants to know. errPartly is the error of a command that did a part.
var errFinding, errPartly = errors.New(""), errors.New("")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command is one thing that the program does.
type command struct {
	name     string // of a word or two
	operands string // as the usage shows them, "" for none
	about    string
	flags    func(*invocation) // declares the command's own flags; nil for none
	run      func(context.Context, *invocation) error
}

var commands = []command{
	{"status", "", "tell what waits, since when, and what fails", statusFlags, status},
	{"dlq list", "", "list the dead letters, the oldest first", listFlags, list},
	{"dlq show", "ID", "show a dead letter with its payload", (*invocation).ofQueue, show},
	{"dlq requeue", "ID… | -all", "put dead letters back into the outbox, to be delivered again", changeFlags, requeue},
	{"dlq delete", "ID… | -all", "delete dead letters for good", changeFlags, remove},
	{"migrate", "", "create or upgrade the tables", migrateFlags, migrate},
	{"prune", "-older-than TIME", "delete rows that were kept", pruneFlags, prune},
	{"version", "", "tell the versions of this program and of its schema", nil, version},
}

const (
	usageHead = `Courierctl looks after an outbox.

Usage: courierctl COMMAND [flags]

`
	usageTail = `
"courierctl help COMMAND" and "courierctl COMMAND -h" describe a command and its
flags. Flags may stand before or after the command. Every command takes:

  -db DSN        postgres://…, host=… dbname=…, mysql:user@tcp(host)/database, or
                 the path of a SQLite file; $COURIER_DB without it
  -table NAME    the outbox table, courier_outbox; with a schema in PostgreSQL
                 where it is not in the search_path, or a database in MySQL
  -json          one JSON value instead of text
  -timeout TIME  for all of it, 30s

A TIME is such as 90s, 5m, 1d12h or 7d.

Exit status, and a line on stderr for all but 0:

  0  done, or all is well
  1  nothing was done: a limit is exceeded (status -max-lag, -max-dead), a letter
     is not there, or all that was chosen is refused
  2  it cannot run, or failed
  3  a part was done: letters that changed meanwhile or are refused were left, or
     it failed after some of the rows
`
)

// usage tells of the commands.
func usage(w io.Writer) {
	printf(w, "%s", usageHead)
	describe(w, commands)
	printf(w, "  %-26s print this text, or that of a command\n%s", "help [COMMAND]", usageTail)
}

func describe(w io.Writer, commands []command) {
	for _, c := range commands {
		printf(w, "  %-26s %s\n", strings.TrimSpace(c.name+" "+c.operands), c.about)
	}
}

// usage tells of one command.
func (c *command) usage(w io.Writer) {
	printf(w, "Usage: courierctl %s [flags]\n\n  %s\n\n", strings.TrimSpace(c.name+" "+c.operands), c.about)
	flags := c.flagSet(new(invocation))
	flags.SetOutput(w)
	flags.PrintDefaults()
}

// flagSet declares the flags of a command, whose values go to an invocation.
func (c *command) flagSet(i *invocation) *flag.FlagSet {
	i.flags = flag.NewFlagSet(c.name, flag.ContinueOnError)
	i.flags.SetOutput(io.Discard) // run prints the errors
	i.common()
	if c.flags != nil {
		c.flags(i)
	}
	return i.flags
}

// wrongly is the error of a wrong call of the program. It names the help that tells of
// the right one.
func wrongly(help, format string, args ...any) error {
	return fmt.Errorf("%w (see: %s)", fmt.Errorf(format, args...), strings.TrimSpace("courierctl help "+help))
}

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := dispatch(ctx, args, stdout)
	if err == nil {
		return 0
	}
	printf(stderr, "courierctl: %s\n", escaped(hide(err.Error(), append(args, os.Getenv("COURIER_DB"))...)))
	switch {
	case errors.Is(err, errPartly):
		return exitPartly
	case errors.Is(err, errFinding):
		return exitFinding
	}
	return exitCannotRun
}

// line is a parsed command line.
type line struct {
	words   []string // a command and its operands
	flags   []string // with their values
	help    bool
	unknown string // the first flag that no command has
}

// read parses a command line. Flags may stand anywhere; after a -- there are none.
func read(args []string) (l line) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			l.words = append(l.words, args...)
			return l
		}
		if len(arg) < 2 || arg[0] != '-' {
			l.words = append(l.words, arg)
			continue
		}
		name, _, valued := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		if name == "h" || name == "help" {
			l.help = true
			continue
		}
		l.flags = append(l.flags, arg)
		switch f := lookUp(name); {
		case f == nil:
			if l.unknown == "" {
				l.unknown = "-" + name
			}
		case !valued && !isSwitch(f) && len(args) > 0:
			l.flags = append(l.flags, args[0])
			args = args[1:]
		}
	}
	return l
}

// lookUp finds a flag of any command. A flag takes a value in all commands that
// have it, or in none.
func lookUp(name string) *flag.Flag {
	for _, c := range commands {
		if f := c.flagSet(new(invocation)).Lookup(name); f != nil {
			return f
		}
	}
	return nil
}

func isSwitch(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// find returns the command that words begin with, and its operands.
func find(words []string) (*command, []string) {
	for n := min(2, len(words)); n > 0; n-- {
		name := strings.Join(words[:n], " ")
		if i := slices.IndexFunc(commands, func(c command) bool { return c.name == name }); i >= 0 {
			return &commands[i], words[n:]
		}
	}
	return nil, words
}

func dispatch(ctx context.Context, args []string, stdout io.Writer) error {
	l := read(args)
	if len(l.words) > 0 && l.words[0] == "help" {
		l.help, l.words = true, l.words[1:]
	}
	c, operands := find(l.words)
	tell, help := usage, ""
	if c != nil {
		tell, help = c.usage, c.name
	}
	var group []command // of the first word, where there is no second one
	for _, other := range commands {
		if len(l.words) == 1 && strings.HasPrefix(other.name, l.words[0]+" ") {
			group = append(group, other)
		}
	}
	if group != nil {
		help = l.words[0]
		tell = func(w io.Writer) {
			printf(w, "Usage: courierctl %s COMMAND [flags]\n\n", l.words[0])
			describe(w, group)
		}
	}
	switch {
	case l.help && (c != nil || group != nil || len(l.words) == 0):
		tell(stdout)
		return nil
	case l.unknown != "":
		return wrongly(help, "there is no flag %s", l.unknown)
	case group != nil:
		return wrongly(help, "%q needs one more word", l.words[0])
	case c == nil && len(l.words) == 0:
		return wrongly(help, "no command is given")
	case c == nil:
		return wrongly(help, "there is no command %q", strings.Join(l.words[:min(2, len(l.words))], " "))
	}
	i := &invocation{operands: operands, stdout: stdout}
	if err := c.flagSet(i).Parse(l.flags); err != nil {
		return wrongly(help, "%w", err)
	}
	if c.operands == "" && len(operands) > 0 {
		return wrongly(help, "unexpected argument %q", operands[0])
	}
	if err := i.validate(); err != nil {
		return err
	}
	return c.run(ctx, i)
}

// finding is an error that tells of what was found.
func finding(format string, args ...any) error {
	return fmt.Errorf("%w"+format, append([]any{errFinding}, args...)...)
}

// partly is an error that tells why not all was done.
func partly(format string, args ...any) error {
	return fmt.Errorf("%w"+format, append([]any{errPartly}, args...)...)
}
