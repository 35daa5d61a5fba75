#!/usr/bin/env bash
# Packs the manual pages and the shell completions of a binary, with the date of the last commit, so
# that the same commit gives the same bytes:
#
#   deploy/manual.sh BINARY FILE.tar.gz
set -euo pipefail
[ $# = 2 ] || { echo "usage: deploy/manual.sh BINARY FILE.tar.gz" >&2; exit 2; }
binary=$(realpath "$1")
file=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$binary" man "$folder/man1"
mkdir "$folder/completions"
"$binary" completion bash >"$folder/completions/authctl"
"$binary" completion zsh >"$folder/completions/_authctl"
"$binary" completion fish >"$folder/completions/authctl.fish"
mkdir -p "$(dirname "$file")"
tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u=rwX \
  -C "$folder" -cf - man1 completions | gzip -n >"$file"
