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
	# One operation of a relay moves 50,000 rows, of which the first cost a process more; and
	# the rows that one relay has deleted in PostgreSQL cost the next one.
	for bench in 'Relay 2x' 'Postgres_HandWritten$ 2x' 'Postgres_HandWrittenReturning 2x' 'Postgres_Courier 2x' 'Latency|Group 1x'; do
		(cd bench/rivals/kafka && "$binary" -test.run '^$' -test.bench "${bench% *}" -test.benchtime "${bench#* }") >>"$out" || {
			tail -n 20 "$out" >&2
			exit 1
		}
	done
done
go run ./bench/report bench-kafka.out
