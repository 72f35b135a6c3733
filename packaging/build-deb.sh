#!/bin/sh
# Build the Debian package:
#
#     packaging/build-deb.sh [DIRECTORY [DPKG-BUILDPACKAGE-OPTION...]]
#
# Into dist/, binary and source, unsigned, unless told otherwise.  dpkg-buildpackage wants debian/ at the top of the
# tree: it gets that in a clean copy, and the checkout stays as it is.  The same files give the same package, wherever
# and as whomever it is built: the date is the changelog's, and no mode depends on the umask.
set -eu
umask 022
top=$(cd "$(dirname "$0")/.." && pwd)
directory=${1:-$top/dist}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- -us -uc

version=$(dpkg-parsechangelog -l "$top/packaging/debian/changelog" -S Version)
upstream=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$top/pyproject.toml")
case $version in
    "$upstream" | "$upstream"[-~+]*) ;;
    *) echo "build-deb.sh: pyproject.toml says $upstream, packaging/debian/changelog $version" >&2 && exit 1 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
copy=$work/nannyd-$upstream
mkdir "$copy"
if git -C "$top" rev-parse --is-inside-work-tree > /dev/null 2>&1; then
    # What is or would be committed, as it is in the work tree.
    (cd "$top" && git ls-files -z --cached --others --exclude-standard |
        tar --null --ignore-failed-read --no-recursion -T - -cf -) | tar --no-same-permissions -xf - -C "$copy"
else
    (cd "$top" && tar --exclude=./dist --exclude=./build --exclude=./.venv --exclude=__pycache__ -cf - .) |
        tar --no-same-permissions -xf - -C "$copy"
fi
mv "$copy/packaging/debian" "$copy/debian"
# A mode is what git would keep of it.
find "$copy" -type d -exec chmod 755 {} + -o -type f -perm /111 -exec chmod 755 {} + -o -type f -exec chmod 644 {} +

(cd "$copy" && dpkg-buildpackage "$@")
mkdir -p "$directory"
find "$work" -maxdepth 1 -type f -exec cp -t "$directory" {} +
