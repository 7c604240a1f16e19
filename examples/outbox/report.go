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
	row("duplicates", f.duplicates, "orders twice in the stream, or there and dead-lettered")
	row("still pending", f.pending, "rows in the outbox")
	row("missing", f.missing, "orders that are in none of these places")
	row("repeated", int64(f.repeated), "deliveries in this run that the stream knew already")
	row("rows per second", f.rate, fmt.Sprintf("of the relay, from the fetch to the mark of each batch: %v in all", f.busy.Round(time.Millisecond)))
	row("overall", f.overall, fmt.Sprintf("rows per second from first to last, waits for writer and broker included: %v", f.took.Round(time.Millisecond)))
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
