package main

import (
	"bytes"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/stretchr/testify/require"
)

// No way to give a password, or to give it wrongly, gets any of it printed.
func TestNoPasswordIsPrinted(t *testing.T) {
	nowhere := t.TempDir() // where no server listens
	host := "?host=" + url.QueryEscape(nowhere)
	forms := map[string]func(password string) []string{
		"encoded":        func(p string) []string { return []string{"-db", "postgres://u:" + url.QueryEscape(p) + "@/d" + host} },
		"raw":            func(p string) []string { return []string{"-db", "postgres://u:" + p + "@127.0.0.1:1/d"} },
		"raw postgresql": func(p string) []string { return []string{"-db", "postgresql://u:" + p + "@127.0.0.1:1,127.0.0.1:1/d"} },
		"without a host": func(p string) []string { return []string{"-db", "postgres://u:" + p + "/d"} },
		"bad port":       func(p string) []string { return []string{"-db", "postgres://u:" + p + "@127.0.0.1:x/d"} },
		"bad sslmode":    func(p string) []string { return []string{"-db", "postgres://u:" + p + "@127.0.0.1:1/d?sslmode=some"} },
		"query":          func(p string) []string { return []string{"-db", "postgres:///d" + host + "&password=" + p} },
		"query encoded": func(p string) []string {
			return []string{"-db", "postgres:///d" + host + "&password=" + url.QueryEscape(p)}
		},
		"query encoded name": func(p string) []string { return []string{"-db", "postgres:///d" + host + "&pass%77ord=" + p} },
		"query sslpassword": func(p string) []string {
			return []string{"-db", "postgres:///d" + host + "&sslmode=some&sslpassword=" + p}
		},
		"no slashes":                func(p string) []string { return []string{"-db", "postgres:u:" + p + "@127.0.0.1:1/d"} },
		"no scheme":                 func(p string) []string { return []string{"-db", "u:" + p + "@127.0.0.1:1/d"} },
		"another scheme":            func(p string) []string { return []string{"-db", "mysql://u:" + p + "@127.0.0.1:1/d"} },
		"mysql":                     func(p string) []string { return []string{"-db", "mysql:u:" + p + "@tcp(127.0.0.1:1)/d"} },
		"mysql without a database":  func(p string) []string { return []string{"-db", "mysql:u:" + p + "@tcp(127.0.0.1:1)"} },
		"mysql without parentheses": func(p string) []string { return []string{"-db", "mysql:u:" + p + "@127.0.0.1:1/d"} },
		"mysql without a host":      func(p string) []string { return []string{"-db", "mysql:u:" + p + "/d"} },
		"mysql setting":             func(p string) []string { return []string{"-db", "mysql:u@tcp(127.0.0.1:1)/d?password=" + p} },
		"keywords":                  func(p string) []string { return []string{"-db", "host=" + nowhere + " password=" + p + " dbname=d"} },
		"keywords spaced":           func(p string) []string { return []string{"-db", "host = " + nowhere + " password = " + p} },
		"keywords quoted":           func(p string) []string { return []string{"-db", "host=" + nowhere + " password='" + p + "' port=1"} },
		"keywords escaped": func(p string) []string {
			return []string{"-db", "host=" + nowhere + " password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(p) + "' port=x"}
		},
		"password alone": func(p string) []string { return []string{"-db", "password=" + p} },
		"upper case":     func(p string) []string { return []string{"-db", "PASSWORD=" + p} },
		"as an argument": func(p string) []string { return []string{"postgres://u:" + p + "@127.0.0.1:1/d"} },
		"as a table": func(p string) []string {
			return []string{"-db", nowhere, "-table", "postgres://u:" + p + "@127.0.0.1:1/d"}
		},
		"as another flag":      func(p string) []string { return []string{"-max-dead", "password=" + p} },
		"as an unknown flag":   func(p string) []string { return []string{"-dsn=postgres://u:" + p + "@127.0.0.1:1/d"} },
		"as a keyed argument":  func(p string) []string { return []string{"host=127.0.0.1 password=" + p} },
		"as an option's value": func(p string) []string { return []string{"-max-dead=postgres://u:" + p + "@127.0.0.1:1/d"} },
	}
	const left, right = "s3cr3tLEFT", "s3cr3tRIGHT"
	check := func(name, password string) {
		t.Helper()
		if name == "without a host" && strings.Contains(password, "@") {
			return // which makes the rest of it the host
		}
		for _, command := range [][]string{{"status"}, {"migrate", "-dry-run"}, {"-h"}} {
			args := append(command, forms[name](password)...)
			var out, errs bytes.Buffer
			status := run(t.Context(), args, &out, &errs)
			if command[0] != "-h" {
				require.Equal(t, exitCannotRun, status, args)
			}
			text := out.String() + errs.String()
			require.NotContains(t, text, left, args)
			require.NotContains(t, text, right, args)
			require.NotContains(t, text, "lookup ", "a name was asked for: %q", args)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for name := range forms {
		check(name, left)
		for c := byte(' '); c <= '~'; c++ {
			check(name, left+string(c)+right)
		}
		for range 30 {
			middle := ""
			for range 1 + random.IntN(3) {
				middle += string("@:/?#%&='\\\" []\x1bé"[random.IntN(16)])
			}
			check(name, left+middle+right)
		}
	}
	t.Setenv("COURIER_DB", forms["keywords"](left)[1])
	for _, args := range [][]string{{"status"}, {"status", "-h"}, {"help"}, {"status", "x"}} {
		var out, errs bytes.Buffer
		run(t.Context(), args, &out, &errs)
		require.NotContains(t, out.String()+errs.String(), left, args)
	}
}

// A DSN that says clearly what it is gets through as it is.
func TestDatabaseOf(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:p%40ss%2F@h:5432,h2:5433/d?sslmode=disable&application_name=a", "postgresql://[::1]:5432/d", "postgres:///d?host=/tmp", "postgres://h",
		"postgres://u@h/d?password=p%40", "postgres://h/d?user=me@corp&password=p@x", "host=/tmp dbname=d", "  user = u password = 'a \\' b'  sslmode=disable", "service=s servicefile=/dev/null host=h",
		`host=h password=a\ b`,
	} {
		d, err := databaseOf(dsn)
		if strings.HasPrefix(dsn, "service=") {
			require.ErrorContains(t, err, "service")
			continue
		}
		require.NoError(t, err, dsn)
		require.Equal(t, database{dialect: couriersql.Postgres, dsn: dsn}, d)
	}
	for text, path := range map[string]string{"data/a.db": "data/a.db", "sqlite:host=a.db": "host=a.db", "/var/my user/a@b.db": "/var/my user/a@b.db", `C:\a.db`: `C:\a.db`} {
		d, err := databaseOf(text)
		require.NoError(t, err)
		require.Equal(t, database{dialect: couriersql.SQLite, path: path}, d)
	}
}

// What is wrong with a DSN is told where that is safe.
func TestABadDSN(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u:secret@h/d?sslmode=some": "sslmode is invalid",
		"host=h port=x password=secret":        "invalid port",
		"postgres://u:sec/ret@h/d":             "ambiguous",
		"postgres://u:secret%zz@h/d":           "ambiguous",
		"host=h password=sec ret":              "ambiguous",
		"mysql://h/d":                          "the DSN of MySQL is not of the form",
		"oracle://h/d":                         "scheme that is not postgres://",
	} {
		_, err := databaseOf(dsn)
		require.ErrorContains(t, err, want, dsn)
		require.NotContains(t, err.Error(), "secret")
	}
}
