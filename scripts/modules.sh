#!/usr/bin/env bash
# The modules of this repository, outside the workspace.
#
#   scripts/modules.sh tidy         go mod tidy in every module
#   scripts/modules.sh tidy-check   fail if tidy would change a file
#   scripts/modules.sh build        vet every module that others use, with GOWORK=off
#
# A nested module requires the root at its next release, which no proxy serves
# yet. Nothing that is tagged may carry a replace, so the replaces live in a
# temporary modfile here.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOWORK=off GOFLAGS="${GOFLAGS:-} -mod=mod"
root=$(pwd)
path=github.com/erfanmomeniii/courier
modules=$(git ls-files --cached --others --exclude-standard '*go.mod' | xargs -n1 dirname | sort)
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

name() { # the module path of a folder
	if [ "$1" = . ]; then echo $path; else echo "$path/$1"; fi
}

modfile() { # the module's go.mod with replaces, in $temp/go.mod
	cp "$1/go.mod" "$temp/go.mod"
	if [ -f "$1/go.sum" ]; then cp "$1/go.sum" "$temp/go.sum"; else : >"$temp/go.sum"; fi
	local other
	for other in $modules; do
		[ "$other" = "$1" ] || go mod edit -replace "$(name "$other")=$root/$other" "$temp/go.mod"
	done
}

plain() { # $temp/go.mod without the replaces
	local other
	for other in $modules; do
		go mod edit -dropreplace "$(name "$other")" "$temp/go.mod"
	done
}

status=0
for m in $modules; do
	modfile "$m"
	case "$1" in
	tidy | tidy-check)
		(cd "$m" && go mod tidy -modfile="$temp/go.mod")
		plain
		touch "$m/go.sum"
		if [ "$1" = tidy ]; then
			cp "$temp/go.mod" "$m/go.mod"
			cp "$temp/go.sum" "$m/go.sum"
		elif ! diff -u "$m/go.mod" "$temp/go.mod" || ! diff -u "$m/go.sum" "$temp/go.sum"; then
			echo "$m: go.mod or go.sum is not tidy: run 'make tidy'" >&2
			status=1
		fi
		[ -s "$m/go.sum" ] || rm -f "$m/go.sum"
		;;
	build)
		case "$m" in
		tools) continue ;; # it has no packages of its own
		bench/* | */crash) continue ;; # they are run here alone
		esac
		echo "GOWORK=off $m"
		(cd "$m" && go vet -modfile="$temp/go.mod" ./...)
		;;
	*)
		sed -n '2,7p' "$0" >&2
		exit 2
		;;
	esac
done
exit $status
