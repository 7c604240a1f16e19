package fuzz

import (
	"reflect"
	"testing"

	"github.com/erfanmomeniii/courier/courierttest"
)

// FuzzFaults: a text is refused, or is a valid list of faults whose own text is
// read as the same list.
func FuzzFaults(f *testing.F) {
	for _, text := range []string{
		"", ";\n ;", "error", "error if every 3", `delay 2s if call 1..10; lost if record "order 7" and attempt 1`,
		"panic if chance 0.01 seed 7 or call 100..", `permanent if not (record "a" or record "b")`, "error if during 1m0s..5m0s",
		"retry-after 1h0m0.5s", "later 5s if attempt 1", "delay -1s", `record "\x00"`, "ok if not not not (((call 1)))", "whole if call 1 and (call 2 or call 3) and call 4",
		"goexit\nhang\nskip", `error if record "é\"" or chance 1e-3 seed 18446744073709551615`, "error if call 3..2", "delay 1ns;delay 2562047h47m16.854775807s",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		faults, err := courierttest.Parse(text)
		if err != nil {
			if faults != nil {
				t.Fatalf("%q is refused, and is %v", text, faults)
			}
			return
		}
		if err := faults.Validate(); err != nil {
			t.Fatalf("%q is read as faults that make no sense: %v", text, err)
		}
		again, err := courierttest.Parse(faults.String())
		if err != nil || !reflect.DeepEqual(faults, again) {
			t.Fatalf("%q is %#v with the text %q, and that is %#v: %v", text, faults, faults, again, err)
		}
		if again.String() != faults.String() {
			t.Fatalf("%q has the text %q, and then %q", text, faults, again)
		}
	})
}
