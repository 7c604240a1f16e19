package sim

import (
	"fmt"
	"reflect"
	"testing"
)

// Each setting takes at least two values over a sweep, and each shape and form comes.
func TestEveryDrawComes(t *testing.T) {
	values := map[string]map[any]bool{}
	o := swept.withDefaults()
	for seed := range uint64(o.Episodes) {
		w := &World{seed: o.Seed + seed, pace: 1}
		w.swarm()
		s := draw(w, nil)
		v := reflect.ValueOf(s)
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() { // not drawn, but by the others
				continue
			}
			name := v.Type().Field(i).Name
			if values[name] == nil {
				values[name] = map[any]bool{}
			}
			values[name][fmt.Sprint(v.Field(i))] = true
		}
	}
	for name, seen := range values {
		if len(seen) < 2 {
			t.Errorf("%s is always %v", name, seen)
		}
	}
	for _, list := range []struct {
		what string
		seen map[any]bool
		all  []string
	}{{"Source", values["Source"], shapeNames}, {"Form", values["Form"], formNames}} {
		for _, name := range list.all {
			if !list.seen[name] {
				t.Errorf("%s is never %s", list.what, name)
			}
		}
	}
}

// Each fault comes in a sweep, at each kind of call that it is drawn for.
func TestEveryFaultComes(t *testing.T) {
	seen := map[string]int{}
	o := swept.withDefaults()
	o.Episodes *= 3
	for seed := range uint64(o.Episodes) {
		for _, f := range episode(t, o.Seed+seed, &o, modelled(nil), nil, false).Faults {
			if f.What.ofProcess() {
				seen[f.What.String()]++
			} else {
				seen[f.Call.String()+" "+f.What.String()]++
			}
		}
	}
	want := []string{Crash.String(), Stop.String(), Pause.String(), Step.String()}
	for k := range kinds {
		for f, p := range most[k] {
			if p > 0 {
				want = append(want, k.String()+" "+FaultKind(f).String())
			}
		}
		if k.domain() >= 0 {
			want = append(want, k.String()+" "+Down.String())
		}
	}
	for _, what := range want {
		if seen[what] == 0 {
			t.Errorf("in %d episodes there was none: %s", o.Episodes, what)
		}
	}
	t.Log(seen)
}
