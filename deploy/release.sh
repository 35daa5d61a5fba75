#!/usr/bin/env bash
# Makes dist/: a binary and a CycloneDX bill of materials for each platform, the manual pages and
# completions, the Helm chart, and checksums.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -z "$(git status --porcelain)" ] || { echo "release.sh: commit first: the tree has uncommitted changes" >&2; exit 1; }
rm -rf dist
for platform in linux/amd64 linux/arm64 darwin/arm64; do
  file=dist/authctl-${platform/\//-}
  GOOS=${platform%/*} GOARCH=${platform#*/} deploy/build.sh "$file"
  go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin -json -output "$file.cdx.json" "$file"
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
deploy/build.sh "$scratch/authctl"
deploy/manual.sh "$scratch/authctl" dist/authctl-manual.tar.gz

# The chart of a tag names the image of that tag.
version=$(git describe --tags --exact-match --match 'v*' 2>/dev/null || echo v0.0.0)
go -C deploy/helm run ./package "${version#v}" "$PWD/dist/authctl-chart.tgz"
(cd dist && sha256sum authctl-* >SHA256SUMS)
