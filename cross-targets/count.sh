#!/usr/bin/env bash
# How many instructions a token takes on each variant: the generator's own passes under emulation, one thread, counted by a plugin
# of qemu-user (count.c). Debian 12; twenty minutes at most.
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../config/setup/common.sh"

CORES=${CORES:-cortex-a72 cortex-a76 max}
QEMU=qemu-aarch64  # the static one loads no plugins

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install_emulator() {
    local wanted=()
    command -v $QEMU >/dev/null || wanted+=(qemu-user)
    [ -e /lib/ld-linux-aarch64.so.1 ] || wanted+=(libc6:arm64)
    [ ${#wanted[@]} -gt 0 ] || return 0
    say "installing ${wanted[*]} (runs programs for Arm on this machine)"
    as_root dpkg --add-architecture arm64
    apt_get update --quiet
    apt_get install --quiet --yes --no-install-recommends "${wanted[@]}"
}

# Instructions of the whole process that computes these passes.
count() {
    VADEMECUM_PASSES=$2 VADEMECUM_CACHE=$CACHE $QEMU -cpu "$1" -plugin "$work/libcount.so" -E LD_LIBRARY_PATH="$work/lib/vademecum" \
        "$work/bin/tests" --exact llama::bench::tests::passes --ignored --nocapture >"$work/log" 2>&1 || die "no count on $1" "$(tail -n 20 "$work/log")"
    sed -n 's/^instructions: //p' "$work/log"
}

install_emulator
cc -O2 -shared -fPIC -o "$work/libcount.so" cross-targets/count.c
cross-targets/cross.sh build generic-aarch64
# The variants are looked for as seen from the program.
mkdir "$work/bin"
ln -s "${CARGO_TARGET_DIR:-$ROOT/target}/cross/generic-aarch64/root/usr/lib" "$work/lib"
cp "$(cross-targets/cross.sh tests generic-aarch64)" "$work/bin/tests"

# What comes before is the same, and so falls out of the difference.
for core in $CORES; do
    one=$(count "$core" "32 32 1")
    more=$(count "$core" "32 32 32 1")
    prefill=$(((more - one) / 32))
    more=$(count "$core" "32 32 1 1 1 1 1 1 1 1 1")
    decode=$(((more - one) / 8))
    awk -v core="$core" -v variant="$(sed -n 's/^processor: //p' "$work/log")" -v prefill=$prefill -v decode=$decode \
        'BEGIN {printf "%s (%s): %.1f million instructions for a token of a prompt, %.1f for one of an answer\n", core, variant, prefill / 1e6, decode / 1e6}'
done
