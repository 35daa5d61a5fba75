#!/usr/bin/env bash
# Makes dist/: a binary and a CycloneDX bill of materials for each platform, and checksums.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -z "$(git status --porcelain)" ] || { echo "release.sh: commit first: the tree has uncommitted changes" >&2; exit 1; }
rm -rf dist
for platform in linux/amd64 linux/arm64 darwin/arm64; do
  file=dist/authctl-${platform/\//-}
  GOOS=${platform%/*} GOARCH=${platform#*/} deploy/build.sh "$file"
  go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin -json -output "$file.cdx.json" "$file"
done
(cd dist && sha256sum authctl-* >SHA256SUMS)
