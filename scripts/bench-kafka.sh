#!/usr/bin/env bash
# Runs relays and consumer group of Kafka beside loops by hand, every case once a round, for
# some rounds, and prints one table of the medians; what it measured is in bench-kafka.out.
#
#   scripts/bench-kafka.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} out=$PWD/bench-kafka.out
binary=$(mktemp)
trap 'rm -f "$binary"' EXIT
go test -c -o "$binary" ./bench/rivals/kafka
echo "go: $(go env GOVERSION)" >"$out"
for ((i = 1; i <= rounds; i++)); do
	echo "round $i of $rounds" >&2
	(cd bench/rivals/kafka && "$binary" -test.run '^$' -test.bench . -test.benchtime 1x) >>"$out" || {
		tail -n 20 "$out" >&2
		exit 1
	}
done
go run ./bench/report bench-kafka.out
