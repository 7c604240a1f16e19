package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/stretchr/testify/require"
)

// hostile are texts that a terminal obeys, that hide or turn what is beside them,
// or that would break a table.
var hostile = []string{
	"\x1b]0;title\a", "\x1b[2J\x1b[1;31mgone", "\u009b31mred", "a\rb", "a\tb", "a\nb\n", "a\vb\fc", "a\x00b", "a\bb", "a\x7fb", "\xff\xfe", "\u200b", "\u202egnp.exe",
	"\u2066a\u2069", "a\u061cb", "\ufeffa", "a\u2028b\u2029c", "a\u00a0b", " a ", "a  b", `"a"`, "\U000e0041", "a\u00adb",
}

// harmless are those that are shown as they are.
var harmless = []string{"", "a", "a b", "größe", "注文", "注文 7", "e\u0301", "🚚 7", "customer/7", `{"a":1}`, `C:\x`, "a\"b"}

func requireSeen(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		require.True(t, r == '\n' || strconv.IsPrint(r), "%q has %q", text, r)
	}
}

func TestVisible(t *testing.T) {
	for _, text := range harmless {
		require.Equal(t, text, visible(text))
	}
	random := rand.New(rand.NewPCG(3, 4))
	texts := hostile
	for range 2000 {
		var b strings.Builder
		for range random.IntN(6) {
			b.WriteString([]string{"a", " ", `"`, `\`, hostile[random.IntN(len(hostile))], harmless[random.IntN(len(harmless))], string(rune(random.IntN(0x11000)))}[random.IntN(7)])
		}
		texts = append(texts, b.String())
	}
	for _, text := range texts {
		shown := visible(text)
		requireSeen(t, shown)
		require.NotContains(t, shown, "\n")
		if shown != text {
			back, err := strconv.Unquote(shown)
			require.NoError(t, err)
			require.Equal(t, text, back)
		}
		for _, line := range []string{escaped(text), short(text), oneLine(text)} {
			requireSeen(t, line)
			require.NotContains(t, line, "\n")
		}

		encoded, err := json.Marshal(text)
		require.NoError(t, err)
		requireSeen(t, string(escapedJSON(encoded)))
		var want, got string
		require.NoError(t, json.Unmarshal(encoded, &want))
		require.NoError(t, json.Unmarshal(escapedJSON(encoded), &got))
		require.Equal(t, want, got)
	}
	for _, text := range hostile {
		require.NotEqual(t, text, visible(text), "%q", text)
	}
	require.Equal(t, strings.Repeat("é", 99)+"…", short(strings.Repeat("é", 200)))
}

func TestTablesAreAligned(t *testing.T) {
	var out bytes.Buffer
	var tab table
	for _, text := range append(harmless, hostile...) {
		tab.row(visible(text), visible(text), "end:"+visible(text))
	}
	require.NoError(t, tab.print(&out))
	ends := map[int]bool{}
	for line := range strings.Lines(out.String()) {
		before, _, _ := strings.Cut(line, "end:")
		ends[columns(before)] = true
	}
	require.Len(t, ends, 1, out.String())

	out.Reset()
	tab = table{}
	tab.row("one", 2, "three")
	tab.row("注文", "", "")
	tab.row("a longer one that is alone")
	require.NoError(t, tab.print(&out))
	require.Equal(t, "one   2  three\n注文\na longer one that is alone\n", out.String())
}

// Whatever is in the database, a terminal has nothing to obey, and JSON is what it
// was.
func TestNothingOfTheDatabaseIsObeyed(t *testing.T) {
	inEach(t, func(t *testing.T, b *bed) {
		b.run(0, "migrate")
		server := b.outbox.Dialect() != couriersql.SQLite
		var want []string
		for i, text := range hostile {
			if server { // which takes neither
				text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "?")
			}
			row := couriersql.Row{Seq: int64(i), ID: text + strconv.Itoa(i), Topic: text, Key: text, Payload: []byte(text), Headers: text, Trace: text}
			letter := courier.DeadLetter[couriersql.Row]{
				Record: row, Error: errors.New(text), Reason: courier.Reason(text), Branch: text, Key: text, FailedAt: time.Now(),
			}
			require.NoError(t, b.outbox.DLQ().Send(t.Context(), letter))
			want = append(want, row.ID)
		}
		write(b, couriersql.Message{ID: "f" + hostile[0], Topic: "t"})
		source := b.outbox.Source()
		rows, err := source.Fetch(t.Context(), 10)
		require.NoError(t, err)
		require.NoError(t, source.Fail(t.Context(), []courier.FailedRecord[couriersql.Row]{{Record: rows[0], Error: errors.New(hostile[1])}}))

		b.know()
		listed := b.run(0, "dlq", "list")
		require.Len(t, strings.Split(listed, "\n"), len(hostile)+3, "a line for each letter, the head and the count")
		at := map[int]bool{}
		for line := range strings.Lines(listed) {
			if i := strings.Index(line, time.Now().UTC().Format("2006-01-")); i >= 0 {
				at[columns(line[:i])] = true
			}
		}
		require.Len(t, at, 1, listed)
		texts := []string{listed, b.run(0, "status"), b.run(0, "dlq", "list", "-json"), b.run(0, "status", "-json")}
		for i := range hostile {
			id := strconv.Itoa(i+1) + ".1"
			texts = append(texts, b.run(0, "dlq", "show", id), b.run(0, "dlq", "show", id, "-json"))
		}
		for _, text := range hostile {
			for _, args := range [][]string{{"status", text}, {text}, {"dlq", "list", "-after", "x" + text}} {
				line, _, _ := strings.Cut(b.run(exitCannotRun, args...), "\n") // before the usage
				texts = append(texts, line)
			}
			texts = append(texts, b.run(exitFinding, "dlq", "show", text))
		}
		for _, text := range texts {
			requireSeen(t, text)
		}
		var letters []letterReport
		b.json(&letters, "dlq", "list")
		for i, l := range letters {
			require.Equal(t, string([]rune(want[i])), l.MessageID) // which has U+FFFD for each byte that is none
		}
	})
}

// An error of several lines is one, which says each thing once.
func TestAnErrorOfSeveralLines(t *testing.T) {
	for want, text := range map[string]string{
		"one":         "one",
		"no host: a":  "no host:\n\ta",
		"x: a; b: up": "x:\n\ta\n\ta\n\tb\n\tb: up",
		"a; b; a":     "a\nb\na",
		"x: a: up":    "x:\n\ta\n\ta: up",
	} {
		require.Equal(t, want, escaped(text))
	}
}
