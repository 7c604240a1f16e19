package main

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

// database is the database that -db names. courierctl prints no part of a DSN of
// PostgreSQL that may be a password: a parser's error quotes text at a place where
// the parser did not expect it, and such text is often the rest of a password.
type database struct {
	dialect couriersql.Dialect
	dsn     string        // of PostgreSQL
	path    string        // of a SQLite file
	mysql   *mysql.Config // of MySQL or MariaDB
}

// keyword is a setting of a DSN of the form host=… dbname=….
var keyword = regexp.MustCompile(`(?i)(?:^|\s)(?:host|hostaddr|port|dbname|database|user|password|passfile|service|servicefile|sslmode)\s*=`)

func databaseOf(text string) (database, error) {
	scheme, rest, hasScheme := strings.Cut(text, ":")
	switch {
	case text == "":
		return database{}, errors.New("-db: pass the DSN of PostgreSQL or MySQL, or the path of a SQLite file, or set COURIER_DB")
	case hasScheme && scheme == "sqlite":
		return database{dialect: couriersql.SQLite, path: rest}, nil
	case hasScheme && scheme == "mysql":
		return mysqlOf(rest)
	case hasScheme && (scheme == "postgres" || scheme == "postgresql"):
		return postgresOf(text, urlWithout)
	case keyword.MatchString(text):
		return postgresOf(text, keywordsWithout)
	case strings.Contains(text, "://"):
		return database{}, errors.New("-db: the DSN has a scheme that is not postgres://: pass one of PostgreSQL, one of MySQL after mysql:, or the path of a SQLite file")
	}
	return database{dialect: couriersql.SQLite, path: text}, nil
}

var errMySQL = errors.New("-db: the DSN of MySQL is not of the form mysql:user:password@tcp(host:3306)/database or mysql:user@unix(/path/of/socket)/database, perhaps with ?tls=true and the like: see github.com/go-sql-driver/mysql")

// mysqlDatabase matches a name that cannot be the rest of a password that ended earlier than
// was meant. mysqlSecret matches what a setting must not have, as it may be one.
var (
	mysqlDatabase = regexp.MustCompile(`^[^@:()/?]+$`)
	mysqlSecret   = regexp.MustCompile(`(?i)pass|secret|@`)
)

// mysqlOf checks a DSN. Its errors quote nothing of it.
func mysqlOf(dsn string) (database, error) {
	config, err := mysql.ParseDSN(dsn)
	if err != nil || !mysqlDatabase.MatchString(config.DBName) {
		return database{}, errMySQL
	}
	switch config.Net {
	case "tcp":
		if !plainHosts.MatchString(config.Addr) {
			return database{}, errMySQL
		}
	case "unix":
		if !strings.HasPrefix(config.Addr, "/") {
			return database{}, errMySQL
		}
	default:
		return database{}, errMySQL
	}
	for name, value := range config.Params {
		if mysqlSecret.MatchString(name) || mysqlSecret.MatchString(value) {
			return database{}, errMySQL
		}
	}
	config.Logger = &mysql.NopLogger{} // what it has to say is in the errors too
	return database{dialect: couriersql.MySQL, mysql: config}, nil
}

var errAmbiguous = errors.New("-db: the DSN is ambiguous or cannot be parsed: in a URL write @ : / ? # % and spaces of a user, password or database as %40 %3A %2F %3F %23 %25 %20, and in host=… dbname=… put values with spaces in single quotes")

// postgresOf checks a DSN. The errors it returns are about a copy of the DSN
// without its passwords, and so cannot quote them.
func postgresOf(dsn string, without func(dsn string) (string, bool)) (database, error) {
	redacted, ok := without(dsn)
	if !ok {
		return database{}, errAmbiguous
	}
	if _, err := pgx.ParseConfig(dsn); err == nil {
		return database{dialect: couriersql.Postgres, dsn: dsn}, nil
	}
	if _, err := pgx.ParseConfig(redacted); err != nil {
		return database{}, fmt.Errorf("-db: %w", err)
	}
	return database{}, errAmbiguous
}

const redaction = "xxxxx"

// public are the settings whose values may be shown. The value of any other
// setting may be a password, or the rest of a password that contains an &.
var public = regexp.MustCompile(`^(?:host|hostaddr|port|dbname|database|user|passfile|service|servicefile|sslmode|connect_timeout|target_session_attrs)$`)

// settingName matches the name of a setting of the server or of the connection.
var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// plainHosts matches hosts whose ports are numbers. Another port may be a password:
// that of a URL with a user and without a host.
var plainHosts = regexp.MustCompile(`^(?:(?:\[[^@\]]*\]|[^@:,\[\]]*)(?::\d*)?(?:,|$))*$`)

// urlWithout returns a URL without its passwords. It returns false where a password
// may stand at another place, because it contains an unescaped @, /, ? or #.
func urlWithout(dsn string) (string, bool) {
	scheme, rest, ok := strings.Cut(dsn, "://")
	if !ok || strings.Contains(rest, "#") {
		return "", false
	}
	before, query, hasQuery := strings.Cut(rest, "?")
	authority, path, hasPath := strings.Cut(before, "/")
	userinfo, hosts, hasUser := strings.Cut(authority, "@")
	if !hasUser {
		userinfo, hosts = "", authority
	}
	user, _, hasPassword := strings.Cut(userinfo, ":")
	if strings.Contains(path, "@") || !plainHosts.MatchString(hosts) {
		return "", false
	}
	var b strings.Builder
	b.WriteString(scheme + "://" + user)
	if hasPassword {
		b.WriteString(":" + redaction)
	}
	if hasUser {
		b.WriteString("@")
	}
	b.WriteString(hosts)
	if hasPath {
		b.WriteString("/" + path)
	}
	if hasQuery {
		settings, ok := queryWithout(query, !hasUser && !strings.Contains(hosts, ":"))
		if !ok {
			return "", false
		}
		b.WriteString("?" + settings)
	}
	return b.String(), true
}

// queryWithout does the same for the part after the ?. An @ is allowed there only
// if the part before the ? cannot contain the beginning of a password.
func queryWithout(query string, at bool) (string, bool) {
	settings := strings.Split(query, "&")
	for i, setting := range settings {
		encoded, value, ok := strings.Cut(setting, "=")
		name, err := url.QueryUnescape(encoded)
		switch {
		case !ok, err != nil, !settingName.MatchString(name), !at && strings.Contains(value, "@"):
			return "", false
		case !public.MatchString(name):
			settings[i] = name + "=" + redaction
		}
	}
	return strings.Join(settings, "&"), true
}

// setting is one of a DSN of the form name=value, as the parser reads it.
var setting = regexp.MustCompile(`^\s*([^\s=]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*|)(\s+|$)`)

// keywordsWithout returns a DSN of the form name=value without its passwords.
func keywordsWithout(dsn string) (string, bool) {
	var settings []string
	for rest := strings.TrimSpace(dsn); rest != ""; {
		m := setting.FindStringSubmatch(rest)
		if m == nil {
			return "", false
		}
		name, value := m[1], m[2]
		if !settingName.MatchString(name) {
			return "", false
		}
		if !public.MatchString(name) {
			value = redaction
		}
		settings = append(settings, name+"="+value)
		rest = rest[len(m[0]):]
	}
	return strings.Join(settings, " "), true
}

// secretive matches text that looks like a DSN, which may contain a password.
var secretive = regexp.MustCompile(`(?i)@|[a-z]://|pass\w*\s*=`)

// hide masks arguments that look like a DSN in a text that quotes them, such as a
// DSN that was passed without -db.
func hide(text string, args ...string) string {
	for _, arg := range args {
		_, value, _ := strings.Cut(arg, "=")
		for _, secret := range []string{arg, value} {
			if secretive.MatchString(secret) {
				quoted := strconv.Quote(secret)
				text = strings.ReplaceAll(text, secret, redaction)
				text = strings.ReplaceAll(text, quoted[1:len(quoted)-1], redaction)
			}
		}
	}
	return text
}
