#!/usr/bin/env bash
# Every fuzz target of every module, or of one folder, each for the same time.
#
#   scripts/fuzz.sh 30s [folder]
#
# An input that fails is written below testdata/fuzz of the target's package: make
# a named test of it.
set -euo pipefail
cd "$(dirname "$0")/.."
# SQLite is one package of a million lines, in Go made from C: to have it watched
# by the fuzzer costs minutes of compiling, and finds nothing of ours.
flags=-gcflags=modernc.org/sqlite/lib=-d=libfuzzer=0
status=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# The fuzzer of Go before 1.27 may take the end of its time for a failure
# (https://go.dev/issue/75804). One that found something names the input.
in_time() {
	grep -A1 '^--- FAIL' "$log" | tail -1 | grep -qx '    context deadline exceeded' && ! grep -q 'Failing input' "$log"
}
while IFS=: read -r file target; do
	target=${target#func }
	folder=$(dirname "$file")
	echo "$folder $target $1"
	(cd "$folder" && go test . "$flags" -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 10x) | tee "$log" || in_time || status=1
done < <(git grep --untracked -oE '^func Fuzz[A-Za-z0-9_]+' -- "${2:-.}/*_test.go" | sort)
exit $status
