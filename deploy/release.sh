#!/usr/bin/env bash
# Makes dist/: the binary for each platform, what each is made of (CycloneDX), and checksums.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -z "$(git status --porcelain)" ] || { echo "release.sh: the tree has changes that no commit has" >&2; exit 1; }
rm -rf dist
for platform in linux/amd64 linux/arm64 darwin/arm64; do
  file=dist/authctl-${platform/\//-}
  GOOS=${platform%/*} GOARCH=${platform#*/} deploy/build.sh "$file"
  go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin -json -output "$file.cdx.json" "$file"
done
(cd dist && sha256sum authctl-* >SHA256SUMS)
