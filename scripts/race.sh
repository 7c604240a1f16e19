#!/usr/bin/env bash
# go test -race with the arguments given, the packages among them.
#
#   scripts/race.sh -shuffle=on ./...
#
# The detector of Go 1.26 may end in a check of its own that fails, in programs with bubbles
# of testing/synctest, seen on several processors (https://go.dev/issue/78156). That says
# nothing of the code: packages in which nothing else failed are run once more, on one.
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
go test -race "$@" 2>&1 | tee "$log" && exit

# go test prints all that a package printed, then its line.
again=$(awk '
	/^ThreadSanitizer: CHECK failed/ { detector = 1 }
	/^ *--- FAIL|^WARNING: DATA RACE|^panic:|^fatal error:/ { code = 1 }
	/^(ok|FAIL|\?)[ \t]+[^ \t]+/ {
		if ($1 == "FAIL") { if (detector && !code) print $2; else other = 1 }
		detector = code = 0
	}
	END { if (other) print "another failure" }' "$log")
case $again in
'' | *'another failure'*) exit 1 ;;
esac
echo "the race detector failed in itself: once more, on one processor" $again
flags=()
for argument; do
	case $argument in ./* | .) ;; *) flags+=("$argument") ;; esac
done
GOMAXPROCS=1 go test -race "${flags[@]}" $again
