package sim

import (
	"fmt"
	"reflect"
	"testing"
)

// Each setting takes at least two values over a sweep, and each source and form comes.
func TestEveryDrawComes(t *testing.T) {
	values := map[string]map[string]bool{}
	o := swept.withDefaults()
	for seed := range uint64(o.Episodes) {
		w := &World{seed: o.Seed + seed, pace: 1}
		w.swarm()
		v := reflect.ValueOf(draw(w, nil))
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() { // follows from the others
				continue
			}
			if values[field.Name] == nil {
				values[field.Name] = map[string]bool{}
			}
			values[field.Name][fmt.Sprint(v.Field(i))] = true
		}
	}
	for name, seen := range values {
		if len(seen) < 2 {
			t.Errorf("%s is always the same: %v", name, seen)
		}
	}
	for _, list := range []struct {
		what string
		all  []string
	}{{"Source", shapeNames}, {"Form", formNames}, {"Stack", []string{"0", "1", "2", "3"}}, {"FanOut", []string{"0", "1", "2", "3", "4"}}, {"Optional", []string{"0", "1", "2"}}} {
		for _, name := range list.all {
			if !values[list.what][name] {
				t.Errorf("%s is never %s", list.what, name)
			}
		}
	}
}

// everyFault is each fault at each kind of call that it is drawn for, which a sweep
// has to reach.
func everyFault() (list []string) {
	for k := range kinds {
		if k == Call { // the model makes none
			continue
		}
		for f, p := range most[k] {
			if p > 0 {
				list = append(list, faultTexts[k][f])
			}
		}
		if k.domain() >= 0 {
			list = append(list, faultTexts[k][Down])
		}
	}
	return list
}
