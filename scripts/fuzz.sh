#!/usr/bin/env bash
# Every fuzz target of every module, each for the same time.
#
#   scripts/fuzz.sh 30s
#
# An input that fails is written below testdata/fuzz of the target's package: make
# a named test of it.
set -euo pipefail
cd "$(dirname "$0")/.."
# SQLite is one package of a million lines, in Go made from C: to have it watched
# by the fuzzer costs minutes of compiling, and finds nothing of ours.
flags=-gcflags=modernc.org/sqlite/lib=-d=libfuzzer=0
status=0
while IFS=: read -r file target; do
	target=${target#func }
	folder=$(dirname "$file")
	echo "$folder $target $1"
	(cd "$folder" && go test . "$flags" -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 10x) || status=1
done < <(git grep --untracked -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sort)
exit $status
