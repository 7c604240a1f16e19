#!/usr/bin/env bash
# Tags a release: the root module and each module under adapters/ (not their tests),
# all on one commit. It pushes nothing.
#
#   scripts/release.sh v0.1.0
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-}
path=github.com/erfanmomeniii/courier

refuse() {
	echo "$0: $1" >&2
	exit 1
}
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || refuse "want a version such as v0.1.0, not '$version'"
[ -z "$(git status --porcelain)" ] || refuse "the working tree has changes: commit them first"
[ "$(git branch --show-current)" = main ] || refuse "releases are made on main"
grep -qF "## $version" CHANGELOG.md || refuse "CHANGELOG.md has no section '## $version': rename Unreleased"

released=(. $(git ls-files 'adapters/*/go.mod' | grep -E '^adapters/[^/]+/go.mod$' | xargs -n1 dirname | sort))
tag_of() {
	if [ "$1" = . ]; then echo "$version"; else echo "$1/$version"; fi
}
for module in "${released[@]}"; do
	! git rev-parse -q --verify "refs/tags/$(tag_of "$module")" >/dev/null || refuse "the tag $(tag_of "$module") exists; a release cannot be made twice"
done

# Every module requires the others at the new version, and the workspace has these here.
for mod in $(git ls-files '*go.mod'); do
	sed -i.old -E "s#($path(/adapters/[a-z]+)?) v[^ ]+\$#\1 $version#" "$mod"
	rm "$mod.old"
done
sed -i.old -E "s#^(replace $path(/adapters/[a-z]+)?) v[^ ]+ #\1 $version #" go.work
rm go.work.old
go build ./... # the workspace still holds together
git diff --quiet || git commit -qam "release: require $version of each other"

for module in "${released[@]}"; do
	git tag "$(tag_of "$module")"
	echo "tagged $(tag_of "$module")"
done
echo "to publish: git push --atomic origin main $(for m in "${released[@]}"; do tag_of "$m"; done | xargs)"
