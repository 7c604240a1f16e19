#!/usr/bin/env bash
# One seed is one run: a sweep has the same hash in a plain process and in one
# under the race detector, on one processor and on two, by go test and by a test
# binary; and a seed of every shape of coordinator is the same event by event each
# time that it is run again, on one processor and on two in turn.
#
#   scripts/sim-exact.sh [episodes] [seed] [times]
set -euo pipefail
cd "$(dirname "$0")/.."
episodes=${1:-300}
seed=${2:-$((16#$(git rev-parse --short=7 HEAD 2>/dev/null || echo 1)))} # fresh with every commit
times=${3:-100}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go test -c -o "$dir/plain" ./sim
go test -race -c -o "$dir/race" ./sim
cd sim
args=(-test.run='^TestChaos$' -test.v -sim.seed="$seed" -sim.episodes="$episodes")
run() { # again where the race detector failed in itself, see scripts/race.sh
	"$@" >"$dir/out" 2>&1 || { grep -q '^ThreadSanitizer: CHECK failed' "$dir/out" && "$@" >"$dir/out" 2>&1; } || {
		cat "$dir/out"
		return 1
	}
}
hash() { # what it is called, and how it is run
	run "${@:2}"
	printf '%s %s\n' "$(grep -o 'hash [0-9a-f]*' "$dir/out" | head -1)" "$1"
}
{
	hash "plain, 1 processor" env GOMAXPROCS=1 "$dir/plain" "${args[@]}"
	hash "plain, 2 processors" env GOMAXPROCS=2 "$dir/plain" "${args[@]}"
	hash "plain, collecting garbage all the time" env GOGC=5 "$dir/plain" "${args[@]}"
	hash "race, 1 processor" env GOMAXPROCS=1 "$dir/race" "${args[@]}"
	hash "race, 2 processors" env GOMAXPROCS=2 "$dir/race" "${args[@]}"
	hash "go test" go test -count=1 -run '^TestChaos$' -v . -args -sim.seed="$seed" -sim.episodes="$episodes"
} | tee "$dir/hashes"
if [ "$(cut -d' ' -f2 "$dir/hashes" | sort -u | wc -l)" != 1 ]; then
	echo "seeds $seed to $((seed + episodes - 1)) are not exact" >&2
	exit 1
fi
for binary in plain race; do
	run "$dir/$binary" -test.run='^TestExact$' -sim.seed="$seed" -sim.episodes=1 -sim.times="$times"
	echo "every shape, $times times: $binary"
done
