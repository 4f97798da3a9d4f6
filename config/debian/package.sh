#!/usr/bin/env bash
# Packs <target>/debian/vademecum_<version>_<arch>.deb:  package.sh amd64|arm64 [VERSION]
#
# The program comes from the root that `make cross` leaves for the architecture's generic board; what else is in the package is
# made here or lies in config/. VERSION is for the test of an upgrade.
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../setup/common.sh"
export PATH=$CACHE/tools/bin:$PATH

arch=${1:-$(dpkg --print-architecture)}
case $arch in
    amd64) board=generic-x86-64 triple=x86_64-unknown-linux-gnu ;;
    arm64) board=generic-aarch64 triple=aarch64-unknown-linux-gnu ;;
    *) die "no package for $arch" "Remedy: package.sh amd64|arm64" ;;
esac
target=${CARGO_TARGET_DIR:-target}
root=$target/cross/$board/root
[ -x "$root/usr/bin/vademecum" ] || die "$root/usr/bin/vademecum is missing" "Remedy: make cross BOARD=$board"

# cargo deb finds what lies under target/release in the folder of the platform.
stage=$target/$triple/release/deb
rm -rf "$stage"
mkdir -p "$stage"
cp -a "$root/usr" "$stage/usr"
cargo run --quiet --release --package vademecum --example packaging -- "$stage" "$triple"
gzip -9n "$stage"/man/*.1
gzip -9nc CHANGELOG.md >"$stage/changelog.gz"
# The commands of every user then find the service's library.
sed 's|^#data_dir = ""|data_dir = "/var/lib/vademecum"|' config/vademecum.toml >"$stage/vademecum.toml"
grep -q '^data_dir = "/var/lib/vademecum"' "$stage/vademecum.toml" || die "config/vademecum.toml has no line #data_dir = \"\""

options=(--package vademecum --no-build --no-strip --target "$triple" --output "$target/debian/")
[ -z "${2:-}" ] || options+=(--deb-version "$2")
mkdir -p "$target/debian"
cargo deb --quiet "${options[@]}"
