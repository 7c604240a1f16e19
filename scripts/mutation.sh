#!/usr/bin/env bash
# Mutation testing of the core: a mutant is a small change of the code, and it
# survives (LIVED) when all tests of its package still pass. One that does not
# end (TIMED OUT) is found, unless the machine is busy: then give it longer. The
# conditions of a switch count as not covered, since Go's coverage has no block for
# them.
#
#   scripts/mutation.sh bin/gremlins apply.go internal/engine/keys.go internal/ledger/ledger.go
#
# MUTATION_ARGS goes to the tool, such as --dry-run, --workers 1, or
# --timeout-coefficient 10.
#
# The tool copies the whole folder for each of its workers, and takes the time of
# all tests for the time of one package. So it is given a copy of what the tests
# of the core need, in a new folder, for which no result is cached either.
set -euo pipefail
cd "$(dirname "$0")/.."
gremlins=$(realpath "$1")
shift
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
git ls-files --cached --others --exclude-standard -- go.mod go.sum '*.go' |
	grep -E '^([^/]+|internal/.*|courierttest/[^/]*)$' | grep -v '^courierttest/.*_test.go$' |
	while read -r file; do
		mkdir -p "$temp/copy/$(dirname "$file")"
		cp "$file" "$temp/copy/$file"
	done
cd "$temp/copy"
for folder in $(dirname "$@" | sort -u); do
	others=()
	for file in $(find "$folder" -name '*.go' ! -name '*_test.go' | sed 's,^\./,,'); do
		case " $* " in
		*" $file "*) ;;
		*) file=${file#"$folder"/} && others+=(-E "^${file//./\\.}\$") ;; # the tool knows them by the folder
		esac
	done
	# shellcheck disable=SC2086 # the arguments are several
	GOWORK=off GOFLAGS=-vet=off TMPDIR=$temp "$gremlins" unleash "$folder" "${others[@]}" --invert-logical ${MUTATION_ARGS:-}
done
