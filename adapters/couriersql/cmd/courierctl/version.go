package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// version tells which program this is: of a module's version where it was
// installed by that, "(devel)" where it was built from a folder.
func version(_ context.Context, i *invocation) error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = new(debug.BuildInfo)
	}
	report := struct {
		Version string         `json:"version"`
		Go      string         `json:"go"`
		Schema  map[string]int `json:"schema"`
	}{cmp.Or(info.Main.Version, "(devel)"), info.GoVersion, map[string]int{
		"postgres": couriersql.SchemaVersion(couriersql.Postgres), "sqlite": couriersql.SchemaVersion(couriersql.SQLite),
		"mysql": couriersql.SchemaVersion(couriersql.MySQL),
	}}
	return i.print(report, func(t *table) {
		t.row(fmt.Sprintf("courierctl %s (%s), schema version %d in PostgreSQL, %d in SQLite and %d in MySQL",
			report.Version, report.Go, report.Schema["postgres"], report.Schema["sqlite"], report.Schema["mysql"]))
	})
}
