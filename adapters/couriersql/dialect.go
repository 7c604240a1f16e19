package couriersql

import (
	"database/sql"
	"io/fs"
	"strings"
	"time"
)

// Dialect is the SQL that a database speaks. The zero value is none.
type Dialect int

const (
	// SQLite is SQLite from 3.38 on, with any driver.
	SQLite Dialect = iota + 1
	// Postgres is PostgreSQL from 14 on, with the driver of
	// github.com/jackc/pgx/v5/stdlib, which sql.Open knows as "pgx". A pgxpool
	// becomes a *sql.DB by its OpenDBFromPool.
	Postgres
	// MySQL is MySQL from 8.0 on and MariaDB from 10.6 on, with the driver
	// github.com/go-sql-driver/mysql. [NewSink], [WithWakeUp], [WithMaxCrashes] and [Outbox.WritePgx] are not for it.
	MySQL
)

// identifier is a name in a statement.
func (d Dialect) identifier(name string) string {
	if d == MySQL {
		return "`" + strings.ReplaceAll(name, "`", "``") + "`"
	}
	return identifier(name)
}

// grammar is what a dialect has to say. Its statements are whole, because the
// placeholders, the way to pass a list and the upsert all differ; in them,
// {outbox}, {dlq}, {inbox} and {versions} stand for tables, and {table} for the name of the
// outbox without a schema. Where one says "now", SQLite is given the
// time as one more argument, the last; PostgreSQL asks its own clock, which is
// one for all relays.
type grammar struct {
	migrations    fs.FS   // of an outbox: the i-th file, by name, makes version i+1
	dlqMigrations fs.FS   // of a queue that is no outbox's
	shapes        []shape // what the last version looks like

	inboxMigrations fs.FS // of an inbox
	inboxShape      shape

	begin string // a transaction that only one process at a time can be in
	end   string // what ends it, done or not; "" is COMMIT and ROLLBACK

	createVersions string
	migrated       string                   // whether there is a table of versions
	version        string                   // of the outbox ?1, 0 without any
	addVersion     string                   // outbox, version, applied at
	columns        string                   // of the table ?1: name, type, not null, has default, is primary key
	columnsOf      func(table string) []any // the arguments for it; nil is the table
	indexed        string                   // whether there are the indexes that the fetch needs
	addIndex       string
	schemas        string // more than one that has an outbox of the name: which
	fit            string // where there are schemas: whether a table is not logged; whether numbers are given in another order than rows are written
	settle         string // has what is created come to be where the outbox is, or in the schema ?1

	rowsPerInsert int
	insert        func(rows int, delayed bool) string  // messages; delayed, those that wait for a time
	inserted      func(args []any, delayed bool) []any // the arguments for it, of columns for each message
	delay         string                               // has messages wait that were inserted; "" where insert does
	delays        func(args []any) []any               // the arguments for it

	plan   string // before a fetch, in its transaction
	orphan string // has the server end this transaction if it is silent for ?1 milliseconds
	// Of the rows without an attempt, those below a number are left out.
	ordered string // up to ?1 pending rows that are due now, of no key whose earlier row waits for a retry, and none of those in hand: in SQLite a run from ?2 to ?3 and the list in the last argument; in PostgreSQL the list ?6, which begins at ?2 and ends at ?3, and ?7 its long runs; there from ?4, and without what has more bytes than ?5
	lock    string // up to ?1 pending rows that are due now, past what others have locked, locking; from ?2, without what has more bytes than ?3
	due     string // the number of a row that is due now and that nobody has locked, of up to ?1 that are looked at; from ?2
	large   string // what was left out, of the known rows ?1 …: seq, payload, headers
	claim   string // as lock, but until they have ?5 bytes, and claimed by ?2 for ?3 microseconds from now; from ?4. Where the claim of another has run out that began in the last ?6 microseconds, the row is made a suspect, is in nobody's hand, and has the claim -1

	// Suspects are pending rows that were in hand at a crash.
	suspects      string // the fewest crashes below ?1 of one that is due now, 0 if there is none, and how many are
	countSuspects string // counts the crashes of those that are due by now but to ?1, of claims of ?2 microseconds that began in the last ?3
	claimSuspects string // as claim, up to ?1 by ?2 for ?3 with ?4 crashes, until they have ?5 bytes; they have ?6 crashes then
	crashed       string // the first that is due with ?1 crashes or more and a number above ?2; its crashes in the place of the claim

	// A number may be given twice, by a failover to a replica that misses the last
	// commits: only who has the row locked asks for the number alone.
	delete        string // the seqs of the list ?1, which this transaction has locked
	keep          string // the same, at time ?2
	deleteKnown   string // the known rows ?1 …
	keepKnown     string // the same, at time ?n
	deleteFree    string // those that nobody has locked
	keepFree      string
	left          string // how many of the known rows ?1 … are pending
	leftFree      string // how many of the attempted rows ?1 … are pending with the same claim and as many attempts, and locked by nobody else
	leftClaimed   string // how many of the claims ?1 … by ?n are pending
	reused        string // how many of their seqs other rows have
	deleteClaimed string // those of the claims ?1 … by ?n
	keepClaimed   string // the same, at time ?n+1

	renew string // claims, by ?n, for ?n+1 microseconds from now: the IDs of those that were
	hold  string // the seqs of the list ?1, for ?2 microseconds from now
	held  string // the known rows ?1 …, for ?n microseconds from now: the IDs of those that still were
	fail  string // failures, from now
	free  string // the same, without an attempt

	failClaimed string // failures of claims, by ?n, from now
	freeClaimed string // the same, without an attempt

	pending    string
	lag        string // how many are due now but those from ?1 to ?2, and since when the oldest waits
	prunable   string // processed before ?1
	prune      string // the same, ?2 at a time
	pruneAlone string // the same, unless another does it at this moment
	failing    string // the ?1 rows with the most attempts
	leader     string // the session of the relay that is elected; "" where there is no election

	policies    string // the commands that no policy of row-level security lets this role have, where it is on
	suppressors string // what may undo a statement without an error
	faithful    string // whether a connection leaves what is sent as it is; "" if each does

	send       string
	sent       string   // the letter of the branch ?1 with the ID ?2: the ID
	moved      string   // whether the row ?3 with the ID ?1 is pending no more, and a letter of the branch ?2 instead
	list       string   // up to ?2 with a seq above ?1
	update     string   // the letter with seq ?1 and ID ?2
	remove     string   // letters: their IDs
	kept       string   // how many of the letters there are
	replace    []string // removes the rows that letters have in the outbox, but those that somebody has locked
	ofBranch   string   // the first of the letters that is a branch's: its ID and branch
	ofKey      string   // an order key and branch of which the letters are not all: how many are, and how many there are
	rowless    string   // how many of the letters have no row in the outbox
	requeue    string   // letters, into the outbox at the time ?n+1, but those that have a row there: their IDs
	parked     string
	parkedKeys string // of the branch ?1, of the list ?2

	admitAll        string                             // notes the list ?2 of the consumer ?1 as done, or fails where one of them is: how many; "" where that is no faster than admit
	isNoted         func(err error, table string) bool // of admitAll: one of them is
	admit           string                             // notes the list ?2 of the consumer ?1 as done: those that were not
	admitted        string                             // those of them that are noted
	pruneInbox      string                             // up to ?3 of the consumer ?1 that were done before ?2
	pruneInboxAlone string                             // the same, unless another does it at this moment
	lastNote        string                             // when the last record of the consumer ?1 before ?2 was done; ?2 if there is none

	sinkColumns string                   // of the table ?1 (in SQLite, of the schema ?2): name, type, its number, has lists, is generated, must be filled
	sinkAdvice  func(error) string       // what to do about an error of a sink
	rowError    func(error) rowErrorKind // what an error says about the rows that a sink writes
	noArbiter   func(error) bool         // there is no unique index for ON CONFLICT

	strings   func([]string) any // a list as an argument
	letters   func(ids []string) []any
	known     func([]Row) []any // rows by seq and ID
	attempted func([]Row) []any // rows by seq, claim, number of attempts and ID
	claims    func([]Row) []any
	failures  func([]failure) []any
	time      func(micros int64) any
	isolated  *sql.TxOptions // for transactions of more than one statement
	snapshot  *sql.TxOptions // likewise, that all see the same
	timed     bool           // statements take the time
	prepares  bool           // statements are worth preparing here: the driver does not
	remote    bool           // there is a server, to which a connection may die without a sign
	unpinged  bool           // and the driver does not look whether an idle one has

	broken func(error) bool // an error of the connection, not of the statement

	duplicate   func(err error, table string) bool   // an id that is there already
	duplicateID func(err error, ids []string) string // which of them, where the error tells
	present     string                               // else: one of the ids of the list ?1
	addedTwice  func(error) bool                     // a migration that adds a column that is there
	refused     func(error) bool                     // a value of a row, which other rows do not share
	busy        func(error) bool                     // a connection that would open a moment later
	conflict    func(error) bool                     // of a transaction that another one was in the way of, and that is taken back
	outdated    func(error) bool                     // what Migrate creates is missing
	hides       func(error) bool                     // there may be a table of which this user is not told; nil where each user is told of all
	advice      func(error) string                   // what to do about an error, "" where unknown
}

// In both dialects.
const (
	addIndexes = `CREATE INDEX IF NOT EXISTS "{table}_pending" ON {outbox} (seq) WHERE processed_at IS NULL AND attempts < 1; ` +
		`CREATE INDEX IF NOT EXISTS "{table}_waiting" ON {outbox} (available_at, seq) WHERE processed_at IS NULL AND attempts > 0`
	// Of a row that was delayed, the number begins higher.
	failingText = `SELECT id, attempts % 1073741824, last_error FROM {outbox} WHERE processed_at IS NULL AND attempts > 0 AND attempts % 1073741824 > 0
		ORDER BY attempts % 1073741824 DESC, seq LIMIT $1`
	// Each part is an index by itself, however many rows are kept.
	countPending = `SELECT (SELECT count(*) FROM {outbox} WHERE processed_at IS NULL AND attempts < 1) +
		(SELECT count(*) FROM {outbox} WHERE processed_at IS NULL AND attempts > 0)`
)

// folder is one of an embedded file system.
func folder(files fs.FS, path string) fs.FS {
	sub, err := fs.Sub(files, path)
	if err != nil {
		panic(err) // the path is a constant
	}
	return sub
}

// failure is a row that was attempted in vain, or not at all.
type failure struct {
	seq, claim, attempts int64 // as it was handed out
	id                   string
	delay                time.Duration
	text                 string
}

func (f failure) key() rowKey { return rowKey{f.seq, f.id} }

// micros is a time as it is kept here, however a database keeps it.
type micros int64

// Scan implements sql.Scanner.
func (m *micros) Scan(value any) error {
	switch v := value.(type) {
	case int64:
		*m = micros(v)
	case time.Time:
		*m = micros(v.UnixMicro())
	}
	return nil
}
