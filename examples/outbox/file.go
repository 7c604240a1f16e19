package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxLine is the longest line of a JSON lines file. Such a line is far over
// what a server takes, but it is a row, and a dead letter if need be.
const maxLine = 64 << 20

// validate reads all rows, so that a file is written whole or not at all.
func validate(rows iter.Seq2[order, error]) (n int, err error) {
	var bad *badLine
	for _, err := range rows {
		switch {
		case errors.As(err, &bad):
			return 0, fmt.Errorf("%w; nothing of the file was written", err)
		case err != nil:
			return 0, err
		}
		n++
	}
	return n, nil
}

// readFile reads the rows of a file, one at a time, up to the first error. A row
// is named by its content and its line: a file that is read again, or grew at
// its end, has the same names for the same rows.
func readFile(path string) iter.Seq2[order, error] {
	return func(yield func(order, error) bool) {
		rows, err := rowsOf(path)
		if err != nil {
			yield(order{}, fmt.Errorf("-in %s: %w", path, err))
			return
		}
		file, err := os.Open(path)
		if err != nil {
			yield(order{}, fmt.Errorf("-in: %w", err))
			return
		}
		defer func() { _ = file.Close() }() // it was only read
		empty, stopped := true, false
		err = rows(withoutBOM(file), func(line int, body []byte) error {
			empty = false
			hash := sha256.Sum256(body)
			if !yield(order{name: fmt.Sprintf("%x-%d", hash[:8], line), topic: topicRows, body: body}, nil) {
				stopped = true
				return errStopped
			}
			return nil
		})
		var bad *badLine
		switch {
		case stopped:
		case errors.As(err, &bad):
			bad.path = path
			yield(order{}, bad)
		case err != nil:
			yield(order{}, fmt.Errorf("-in %s: %w", path, err))
		case empty:
			yield(order{}, fmt.Errorf("-in %s: it holds no rows", path))
		}
	}
}

// errStopped ends the reading when no more rows are wanted.
var errStopped = errors.New("no more rows are wanted")

// badLine is a line that is no row, and what to do about it.
type badLine struct {
	path    string
	line    int
	problem string
}

func (e *badLine) Error() string { return fmt.Sprintf("%s:%d: %s", e.path, e.line, e.problem) }

// rowsOf tells by the name of a file how to read it.
func rowsOf(path string) (func(io.Reader, func(line int, body []byte) error) error, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".csv":
		return csvRows, nil
	case ".jsonl", ".ndjson":
		return jsonRows, nil
	}
	return nil, errors.New("its name must end in .csv, .jsonl or .ndjson, to tell what it holds")
}

// withoutBOM drops the mark that spreadsheets put before UTF-8.
func withoutBOM(r io.Reader) io.Reader {
	b := bufio.NewReader(r)
	if head, _ := b.Peek(3); string(head) == "\ufeff" {
		_, _ = b.Discard(3)
	}
	return b
}

// csvRows makes a JSON object of each row, with the columns of the first.
func csvRows(r io.Reader, each func(int, []byte) error) error {
	reader := csv.NewReader(r)
	reader.ReuseRecord = true
	names, err := readCSV(reader)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	columns := make([][]byte, len(names)) // as they begin a field: "name":
	for i, name := range names {
		if name == "" || slices.Contains(names[:i], name) {
			return &badLine{line: 1, problem: fmt.Sprintf("column %d of the header is named %q: give every column a name of its own", i+1, name)}
		}
		columns[i] = append(quote(name), ':')
	}
	for {
		fields, err := readCSV(reader)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		body := []byte{'{'}
		for i, field := range fields {
			if i > 0 {
				body = append(body, ',')
			}
			body = append(append(body, columns[i]...), quote(field)...)
		}
		line, _ := reader.FieldPos(0)
		if err := each(line, append(body, '}')); err != nil {
			return err
		}
	}
}

func readCSV(reader *csv.Reader) ([]string, error) {
	fields, err := reader.Read()
	var parse *csv.ParseError
	switch {
	case errors.Is(err, csv.ErrFieldCount):
		line, _ := reader.FieldPos(0)
		return nil, &badLine{line: line, problem: fmt.Sprintf("the number of its fields is %d, that of the header %d: correct or remove the line", len(fields), reader.FieldsPerRecord)}
	case errors.As(err, &parse):
		return nil, &badLine{line: parse.Line, problem: fmt.Sprintf("%v at column %d: correct or remove the line", parse.Err, parse.Column)}
	case err != nil:
		return nil, err
	}
	for _, field := range fields {
		if !utf8.ValidString(field) {
			line, _ := reader.FieldPos(0)
			return nil, &badLine{line: line, problem: "it is not UTF-8: convert the file, such as with iconv -t UTF-8"}
		}
	}
	return fields, nil
}

// quote makes a JSON string of a text that is UTF-8, and leaves <, > and & as
// they are.
func quote(text string) []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string, to memory: never fails
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// jsonRows takes each line that is not blank as it is.
func jsonRows(r io.Reader, each func(int, []byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	number := 0
	for lines.Scan() {
		number++
		body := bytes.TrimSpace(lines.Bytes())
		switch {
		case len(body) == 0:
			continue
		case !utf8.Valid(body):
			return &badLine{line: number, problem: "it is not UTF-8: convert the file, such as with iconv -t UTF-8"}
		case !json.Valid(body):
			return &badLine{line: number, problem: "it is not valid JSON: every line is one JSON value; correct or remove the line"}
		}
		if err := each(number, bytes.Clone(body)); err != nil {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return &badLine{line: number + 1, problem: fmt.Sprintf("it is longer than %d MiB: split or remove the line", maxLine>>20)}
	}
	return lines.Err()
}
