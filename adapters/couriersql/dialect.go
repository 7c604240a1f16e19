package couriersql

import "io/fs"

// Dialect is the SQL that a database speaks. The zero value is none.
type Dialect int

const (
	// SQLite is SQLite from 3.38 on, with any driver.
	SQLite Dialect = iota + 1
)

// grammar is what a dialect has to say. Its statements are whole, because the
// placeholders, the way to pass a list and the upsert all differ; in them,
// {table} stands for the outbox table.
type grammar struct {
	migrations fs.FS   // the i-th file, by name, makes version i+1
	shapes     []shape // what the last version looks like
	begin      string  // a transaction that only one process at a time can be in

	createVersions string
	version        string // of the outbox ?1, 0 without any
	addVersion     string // outbox, version, applied at
	columns        string // of the table ?1: name, type, not null, has default, is primary key

	insert  func(rows int) string // of columns values each
	present string                // one of the ids of the list ?1

	fetch   string // up to ?1 pending rows
	delete  string // the seqs of the list ?1
	keep    string // the same, at time ?2
	pending string

	send       string
	list       string // up to ?2 with a seq above ?1
	update     string // the letter with seq ?1 and version ?2
	remove     string // those whose seq.version is in the list ?1
	parked     string
	parkedKeys string // of the list ?1

	int64s  func(n int, at func(i int) int64) any // a list as an argument
	strings func([]string) any

	duplicate  func(error) bool   // an id that is there already
	addedTwice func(error) bool   // a migration that adds a column that is there
	busy       func(error) bool   // a connection that would open a moment later
	advice     func(error) string // what to do about an error, "" where unknown
}
