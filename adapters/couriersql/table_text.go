package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
)

// tableText is what a user says of a table.
type tableText struct {
	dialect             Dialect
	schema, name, state string
	keys, columns       []string
	pending             string
	mark                string
	order               string
	orderKey            string
	age                 string
	strict              bool
	mostCrashes         int // of rows that are handed out, less one

	// Of an outbox of this package:
	behind string           // the condition by which a row t waits for one of its order key whose failure is f
	now    func() time.Time // is put for {now} into mark, in microseconds
	most   int64            // bytes of a fetch: what comes to a row of them is put for {share} into columns
}

// fitKey reports a key by which a row cannot be told from the others.
func (t *tableText) fitKey(kinds map[string]string, nullable []string, unique bool) error {
	for _, name := range t.keys {
		switch _, found := kinds[name]; {
		case !found:
			return &courier.ConfigError{Field: "TableConfig.Key", Problem: fmt.Sprintf("has %q, which is no column of %s: pass the names as the catalogue has them", name, t.name)}
		case slices.Contains(nullable, name):
			return &courier.ConfigError{Field: "TableConfig.Key", Problem: fmt.Sprintf("has the column %s of %s, which may be NULL: a row without a key could not be marked", name, t.name)}
		}
	}
	if !unique {
		return &courier.ConfigError{Field: "TableConfig.Key", Problem: fmt.Sprintf("(%s) is not unique in %s, as far as its indexes tell: pass the columns of the primary key or of a unique index on all rows", strings.Join(t.keys, ", "), t.name)}
	}
	return nil
}

// kindsOf reads the types of columns, and which of them may be NULL.
func kindsOf(ctx context.Context, conn *sql.Conn, query string, args ...any) (kinds map[string]string, nullable []string, err error) {
	rows, err := conn.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	kinds = make(map[string]string)
	for rows.Next() {
		var name, kind string
		var notNull bool
		if err := rows.Scan(&name, &kind, &notNull); err != nil {
			return nil, nil, err
		}
		kinds[name] = kind
		if !notNull {
			nullable = append(nullable, name)
		}
	}
	return kinds, nullable, rows.Err()
}

// perKey puts the number of each column of the key, from 1, for # into a pattern, and its name
// for @.
func (t *tableText) perKey(pattern, separator string) string {
	list := make([]string, len(t.keys))
	for i, name := range t.keys {
		list[i] = strings.NewReplacer("#", fmt.Sprint(i+1), "@", t.dialect.identifier(name)).Replace(pattern)
	}
	return strings.Join(list, separator)
}

// keyRefs are the columns of the key of a row t.
func (t *tableText) keyRefs() string { return t.perKey("t.@", ", ") }

// noted is that the failure f is that of the row t.
func (t *tableText) noted() string { return t.perKey("f.key# = t.@", " AND ") }

// joined is that a row t has the key of another relation.
func (t *tableText) joined(other string) string {
	return t.perKey("t.@ = "+other+".courier_key#", " AND ")
}

func (t *tableText) orderBy() string {
	if t.order == "" {
		return t.keyRefs()
	}
	return t.order
}

// apart is whether no two relays may have rows of one order key in hand.
func (t *tableText) apart() bool { return t.orderKey != "" && !t.strict }

// errFull is the error of a row that does not go into the fetch any more.
var errFull = errors.New("couriersql: the fetch has as many bytes as it may")

// readAll has rows read that a fetch finds, and checked. Their first columns are the attempts,
// the order key, more that are scanned, and the key. It returns their keys, and which order
// keys no other relay may have in hand meanwhile.
func (t *tableText) readAll(rows *sql.Rows, read func(row *handedOut, scan func(dest ...any) error) error, more []any, check func(key []string) error) (keys [][]string, orderKeys []string, err error) {
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	orderKeys = []string{}              // no null in the list
	row := handedOut{key: make([]string, len(t.keys))}
	var orderKey string
	own := append([]any{&row.attempts, &orderKey}, more...)
	for i := range row.key {
		own = append(own, &row.key[i])
	}
	n := len(own)
	scan := func(dest ...any) error {
		own = append(own[:n], dest...)
		return rows.Scan(own...)
	}
	for rows.Next() {
		if err := read(&row, scan); errors.Is(err, errFull) {
			break
		} else if err != nil {
			return nil, nil, err
		}
		if err := check(row.key); err != nil {
			return nil, nil, err
		}
		keys = append(keys, slices.Clone(row.key))
		if t.apart() && orderKey != "" {
			orderKeys = append(orderKeys, orderKey)
		}
	}
	slices.Sort(orderKeys)
	return keys, slices.Compact(orderKeys), rows.Err()
}

// identifier is a name in a statement.
func identifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// each puts the numbers of n things into a pattern, from 1.
func each(n int, pattern string) string {
	list := make([]string, n)
	for i := range list {
		list[i] = strings.ReplaceAll(pattern, "#", fmt.Sprint(i+1))
	}
	return strings.Join(list, ", ")
}
