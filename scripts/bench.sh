#!/usr/bin/env bash
# Runs every benchmark once a round, for some rounds, so that cases which are
# compared were measured side by side, and prints the medians.
#
#   scripts/bench.sh [-count ROUNDS] [-bench REGEXP]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=6 pattern=.
while [ $# -gt 0 ]; do
	case "$1" in
	-count) rounds=$2 ;;
	-bench) pattern=$2 ;;
	*)
		sed -n '2,6p' "$0" >&2
		exit 2
		;;
	esac
	shift 2
done
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for ((i = 1; i <= rounds; i++)); do
	echo "round $i of $rounds" >&2
	go test ./bench -run '^$' -bench "$pattern" -benchtime 300ms >>"$out"
	go test ./bench/rivals/outbox -run '^$' -bench "$pattern" -benchtime 1x >>"$out"
	go test ./bench/rivals/postgres -run '^$' -bench "$pattern" -benchtime 1x >>"$out"
done
bin/benchstat "$out"
