#!/usr/bin/env bash
# Runs every benchmark once a round, for some rounds, so that cases which are
# compared are measured side by side: what else the machine does then meets both.
# Prints one table of the medians, and leaves what it measured in bench.out.
#
#   scripts/bench.sh [-count ROUNDS] [-bench REGEXP] [-benchtime TIME]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=8 pattern=. time=50ms
while [ $# -gt 0 ]; do
	case "$1" in
	-count) rounds=$2 ;;
	-bench) pattern=$2 ;;
	-benchtime) time=$2 ;;
	*)
		sed -n '2,6p' "$0" >&2
		exit 2
		;;
	esac
	shift 2
done
binaries=$(mktemp -d)
trap 'rm -rf "$binaries"' EXIT
packages="bench bench/rivals/pools bench/rivals/resilience bench/rivals/router bench/rivals/outbox"
for p in $packages; do
	go test -c -o "$binaries/$p/bench" "./$p"
done
echo "go: $(go env GOVERSION)" >bench.out
for ((i = 1; i <= rounds; i++)); do
	echo "round $i of $rounds" >&2
	for p in $packages; do
		# One operation of the relay moves 50,000 rows.
		if [ "$p" = bench/rivals/outbox ]; then t=1x; else t=$time; fi
		(cd "$p" && "$binaries/$p/bench" -test.run '^$' -test.bench "$pattern" -test.benchtime "$t") >>bench.out || {
			tail -n 20 bench.out >&2
			exit 1
		}
	done
done
go run ./bench/report bench.out
