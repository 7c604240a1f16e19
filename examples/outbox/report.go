package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// errVerdict is the error, to errors.Is, of a run that lost or doubled an order.
var errVerdict = errors.New("the books do not balance")

// print writes the table.
func (f *findings) print(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, n int64, meaning string) {
		_, _ = fmt.Fprintf(table, "%s\t%11s\t%s\n", name, humanize.Comma(n), meaning)
	}
	row("written", f.written, "orders, each in one transaction with its outbox row")
	row("delivered", f.delivered, "of them are in the stream "+streamName+", read back")
	row("dead-lettered", f.dead, "rows that cannot be delivered, kept with the reason")
	row("counted twice", f.duplicates, "orders twice in the stream, or there and dead-lettered")
	row("still pending", f.pending, "rows in the outbox")
	row("missing", f.missing, "orders that are in none of these places")
	row("sent again", int64(f.repeated), "messages that the stream had already, and did not store again")
	row("relay speed", f.rate, fmt.Sprintf("rows per second while a batch is in work, from its fetch to its mark: %v in all", f.busy.Round(time.Millisecond)))
	row("run speed", f.overall, fmt.Sprintf("rows per second of the whole run, the waits for the writer and the broker included: %v", f.took.Round(time.Millisecond)))
	_ = table.Flush()
	if f.dead > 0 {
		_, _ = fmt.Fprintln(w, "\nDead letters:")
	}
	for _, letter := range f.letters {
		_, _ = fmt.Fprintf(w, "  %s: %v\n", letter.Record.ID, letter.Error)
	}
	if more := f.dead - int64(len(f.letters)); more > 0 {
		_, _ = fmt.Fprintf(w, "  and %s more\n", humanize.Comma(more))
	}
	_, _ = fmt.Fprintln(w)
}

// err is nil when every order is in one place.
func (f *findings) err() error {
	switch {
	case f.missing > 0:
		return fmt.Errorf("%w: %s of the orders are missing, such as %s: was the stream deleted, or another -out used before?", errVerdict, humanize.Comma(f.missing), f.lost)
	case f.duplicates > 0:
		return fmt.Errorf("%w: %s of the orders are counted twice: was the database left alone for longer than the stream's duplicate window of %v after a crash?", errVerdict, humanize.Comma(f.duplicates), duplicateWindow)
	}
	return nil
}

// conclusion is the last line of a run without fault.
func (f *findings) conclusion(kept string) string {
	switch {
	case f.pending == 0:
		return "Every order is delivered once or dead-lettered."
	case kept == "":
		return "Nothing is lost so far; what is pending goes with the temporary database. Keep it with -db."
	}
	return "Nothing is lost: start again with the same database to deliver what is pending."
}
