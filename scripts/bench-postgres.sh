#!/usr/bin/env bash
# Runs the outbox relays beside loops by hand and other libraries, every case once
# a round, for some rounds, and prints one table of the medians; what it measured
# is in bench-postgres.out. What a neighbour does not disturb, or what takes
# minutes to set up, is measured once.
#
#   scripts/bench-postgres.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} out=$PWD/bench-postgres.out
binaries=$(mktemp -d)
trap 'rm -rf "$binaries"' EXIT
for p in postgres outbox; do
	go test -c -o "$binaries/$p" "./bench/rivals/$p"
done
run() { # package, pattern, benchtime
	(cd "bench/rivals/$1" && "$binaries/$1" -test.run '^$' -test.bench "$2" -test.benchtime "$3") >>"$out" || {
		tail -n 20 "$out" >&2
		exit 1
	}
}
echo "go: $(go env GOVERSION)" >"$out"
for ((i = 1; i <= rounds; i++)); do
	echo "round $i of $rounds" >&2
	run postgres 'Shared|Leader|Rivals|Latency' 1x
	run outbox . 1x
done
echo "fetches beside kept rows, and idle relays" >&2
run postgres Fetch 200x
run postgres Idle 1x
go run ./bench/report bench-postgres.out
