package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// Text from the database is data: a terminal must not obey it, and a reader must
// not mistake it.

// visible returns a text in which every character can be seen. It quotes a text
// that has control characters, escapes, invalid bytes, characters that turn the
// direction of the text or have no width, or spaces that would be lost.
func visible(text string) string {
	plain := utf8.ValidString(text) && !strings.HasPrefix(text, `"`) &&
		strings.TrimSpace(text) == text && !strings.Contains(text, "  ")
	if plain && strings.IndexFunc(text, hidden) < 0 {
		return text
	}
	return strconv.Quote(text)
}

func hidden(r rune) bool { return !strconv.IsPrint(r) }

// short is a text for a table.
func short(text string) string {
	const longest = 100
	if runes := []rune(text); len(runes) > longest {
		text = string(runes[:longest-1]) + "…"
	}
	return visible(text)
}

// oneLine is a text of several lines for a table.
func oneLine(text string) string { return short(strings.Join(strings.Fields(text), " ")) }

// escaped returns an error's text as one line, with the characters escaped that
// cannot be seen.
func escaped(text string) string {
	var b strings.Builder
	text = joined(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\t' }))
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case hidden(r):
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteRune(r)
		}
		text = text[n:]
	}
	return b.String()
}

// joined puts the lines of an error on one. A line that comes again, as of each try to
// reach a server, is left out, also where the second one goes on.
func joined(lines []string) (text string) {
	last := ""
	for i, line := range lines {
		switch {
		case i > 0 && strings.HasPrefix(line, last):
			text = strings.TrimSuffix(text, last)
		case strings.HasSuffix(last, ":"):
			text += " "
		case i > 0:
			text += "; "
		}
		text += line
		last = line
	}
	return text
}

// escapedJSON escapes the characters of JSON that a terminal would obey.
// json.Marshal has escaped the ASCII ones.
func escapedJSON(text []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(text) {
		switch {
		case r < 0x7f || !hidden(r):
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

// table is text in columns.
type table struct{ rows [][]string }

func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = fmt.Sprint(cell)
	}
	t.rows = append(t.rows, row)
}

// print aligns the columns; the last cell of a row may be of any width.
func (t *table) print(w io.Writer) error {
	var widths []int
	for _, row := range t.rows {
		for c, cell := range row[:max(0, len(row)-1)] {
			if c == len(widths) {
				widths = append(widths, 0)
			}
			widths[c] = max(widths[c], columns(cell))
		}
	}
	var b bytes.Buffer
	for _, row := range t.rows {
		var line strings.Builder
		for c, cell := range row {
			line.WriteString(cell)
			if c < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[c]+2-columns(cell)))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

// columns is how many columns of a terminal a text takes.
func columns(text string) (n int) {
	for _, r := range text {
		switch kind := width.LookupRune(r).Kind(); {
		case unicode.In(r, unicode.Mn, unicode.Me): // on the character before
		case kind == width.EastAsianWide || kind == width.EastAsianFullwidth:
			n += 2
		default:
			n++
		}
	}
	return n
}
