#!/usr/bin/env bash
# Builds the daemon for a board on this desk, and proves what came out.
#
#   cross.sh build BOARD       -> <target dir>/cross/<board>/{root/usr/…, report.json} (make cross BOARD=…)
#   cross.sh tools [ARCH]      what that needs beside make setup: zig, cargo-zigbuild, the target's Rust library
#   cross.sh tests BOARD       builds the unit tests and prints their path
#   cross.sh boards            lists the boards
#   cross.sh check LIMIT FILE… fails when a file needs a newer glibc, any libstdc++ or a library that is not the system's
#
# zig is C compiler and linker for every board: it links against any glibc, and libc++ goes into the libraries, so that
# one build runs on whatever is as new as the board's system. All boards of one processor family share that build.
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../config/setup/common.sh"

HERE=$ROOT/cross-targets
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
TOOLS=$CACHE/cross/tools
# The oldest glibc of all boards: every build is made for it, each board's own limit is checked.
GLIBC=2.27
# Variants that are built for a family; boards take theirs from them.
declare -A VARIANTS=([aarch64]="armv8.0_1 armv8.2_2 armv8.6_0" [x86_64]="x64 sse42 haswell alderlake")
# What the program holds beside the least (cargo features of the daemon), where neither the board's file nor FEATURES says otherwise.
ALL_FEATURES=broker,pdf

# --- Boards -----------------------------------------------------------------------------------------------------------

boards() { for file in "$HERE"/boards/*.toml; do basename "$file" .toml; done; }

# A value of the board's file: plain keys, one a line.
of_board() { sed -n "s/^$2 = \"\{0,1\}\([^\"]*\)\"\{0,1\}\$/\1/p" "$HERE/boards/$1.toml"; }

# Sets FEATURES for a board.
find_features() {
    [ -z "${FEATURES+set}" ] || return 0
    FEATURES=$ALL_FEATURES
    ! grep -q '^features = ' "$HERE/boards/$1.toml" || FEATURES=$(of_board "$1" features)
}

# --- Tools ------------------------------------------------------------------------------------------------------------

tools() {
    local arch=$1
    [ "$(uname -m)" = x86_64 ] || die "make cross runs on an x86-64 desk" "On the board itself: make (see README.md)."
    [ "$(cat "$TOOLS/.done" 2>/dev/null)" = "$(sha256sum <"$HERE/tools.txt")" ] || with_lock fetch_tools
    CARGO_ZIGBUILD_ZIG_PATH=$TOOLS/ziglang/zig
    export CARGO_ZIGBUILD_ZIG_PATH
    pick_rustc "$arch"
}

fetch_tools() {
    find_pip
    say "fetching zig and cargo-zigbuild with ${PIP[*]} (100 MB)"
    rm -rf "$TOOLS"
    "${PIP[@]}" install --quiet --no-deps --require-hashes --only-binary=:all: --target "$TOOLS" -r "$HERE/tools.txt" >&2 9>&- ||
        die "pip could not fetch what cross-targets/tools.txt names (its own words are above)" "Remedy: connect to the network and run it again."
    sha256sum <"$HERE/tools.txt" >"$TOOLS/.done"
}

has_std() {
    local dir
    dir=$("$1" --print target-libdir --target "$2" 2>/dev/null) && compgen -G "$dir/libstd-*.rlib" >/dev/null
}

# A rustc with the target's library: the one in use, with what rustup can add to it; else Debian's.
pick_rustc() {
    local target=$1-unknown-linux-gnu
    RUSTC=$(rustc --print sysroot)/bin/rustc
    if ! has_std "$RUSTC" "$target"; then
        rustup target add "$target" >/dev/null 2>&1 || true
    fi
    if ! has_std "$RUSTC" "$target"; then
        RUSTC=/usr/bin/rustc
        has_std "$RUSTC" "$target" || debian_rust "$target"
        has_std "$RUSTC" "$target" || die "there is no Rust library for $target" "Remedy: rustup target add $target"
    fi
    export RUSTC
}

debian_rust() {
    command -v apt-get >/dev/null && [ "$1" = aarch64-unknown-linux-gnu ] || return 0
    say "rustup cannot fetch the library of $1; installing Debian's: rustc-web, libstd-rust-web-dev:arm64"
    as_root dpkg --add-architecture arm64
    apt_get update --quiet
    apt_get install --quiet --yes --no-install-recommends rustc-web cargo-web libstd-rust-web-dev:arm64
}

# --- Build ------------------------------------------------------------------------------------------------------------

# Everything that cargo and llama.cpp's build are told, for `cargo-zigbuild` of one family.
environment() {
    local arch=$1
    TRIPLE=$arch-unknown-linux-gnu
    # A build made with other tools, variants or flags must not be taken for this one: cmake does not configure twice.
    BUILD=${CROSS_BUILD_DIR:-$TARGET_DIR/cross}/build-$arch
    export CARGO_TARGET_DIR=$BUILD XDG_CACHE_HOME=$CACHE/cross/zig-$GLIBC
    export VADEMECUM_VARIANTS="${VARIANTS[$arch]}" CMAKE_PROJECT_INCLUDE=$HERE/ggml/variants.cmake
    # Libraries find each other where they lie, carry no names beyond those they give away, and drop what nobody calls.
    # shellcheck disable=SC2016  # the loader reads $ORIGIN
    export CMAKE_INSTALL_RPATH='$ORIGIN' CMAKE_SHARED_LINKER_FLAGS='-s -Wl,--gc-sections' CMAKE_MODULE_LINKER_FLAGS='-s -Wl,--gc-sections'
    export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
    # Unicode's tables without the dictionaries.
    export ICU4X_DATA_DIR=$TARGET_DIR/cross/icu4x
    cargo metadata --format-version 1 --locked --manifest-path "$ROOT/Cargo.toml" | python3 "$HERE/icu_data.py" "$ICU4X_DATA_DIR"
}

zigbuild() {
    # cmake configures only once, so what it made with other tools or variants is put away. The rest cargo knows itself.
    local key
    key=$(printf '%s\n' "$GLIBC" "$VADEMECUM_VARIANTS" "$CMAKE_SHARED_LINKER_FLAGS" "$(cat "$HERE/tools.txt" "$HERE"/ggml/*)" | sha256sum)
    if [ "$(cat "$BUILD/.key" 2>/dev/null)" != "$key" ]; then
        mkdir -p "$BUILD"
        find "$BUILD" -maxdepth 4 -type d -name 'llama-cpp-sys-2-*' -prune -exec rm -rf {} +
        printf '%s\n' "$key" >"$BUILD/.key"
    fi
    # Copies of links that lead nowhere, on which the crate's build script stumbles the next time; nothing uses them.
    rm -f "$BUILD/$TRIPLE/packaged"/{,deps/,examples/}lib{llama,ggml}*.so*
    "$TOOLS/bin/cargo-zigbuild" "$@" --target "$TRIPLE.$GLIBC" --profile packaged --package vademecum \
        --no-default-features --features "dynamic-backends,$FEATURES"
}

build() {
    local board=$1 arch out root variant native name
    [ -f "$HERE/boards/$board.toml" ] || die "there is no board '$board'" "Boards: $(boards | tr '\n' ' ')"
    arch=$(of_board "$board" arch)
    find_features "$board"
    tools "$arch"
    environment "$arch"
    zigbuild build --bin vademecum >&2

    out=$TARGET_DIR/cross/$board
    root=$out/root/usr
    rm -rf "$out"
    mkdir -p "$root/bin" "$root/lib/vademecum"
    install -m 755 "$BUILD/$TRIPLE/packaged/vademecum" "$root/bin/"
    native=$(find "$BUILD/$TRIPLE/packaged/build" -path '*/llama-cpp-sys-2-*/out/backends' -printf '%T@ %h\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
    # By the names that the loader asks for, and never as links.
    for name in libllama libggml libggml-base; do
        install -m 644 "$native/lib/$name.so.0" "$root/lib/vademecum/$name.so.0"
    done
    for variant in $(of_board "$board" variants); do
        install -m 644 "$native/backends/libggml-cpu-$variant.so" "$root/lib/vademecum/"
    done
    check "$(of_board "$board" glibc)" "$root/bin/vademecum" "$root"/lib/vademecum/*
    report "$board" >"$out/report.json"
    summary "$board"
}

tests() {
    local arch
    arch=$(of_board "$1" arch)
    find_features "$1"
    tools "$arch"
    environment "$arch"
    # The program is named too: its features choose llama.cpp's, for the tests of the library as well.
    zigbuild test --no-run --lib --package vademecum-library --message-format json | sed -n 's/.*"executable":"\([^"]*vademecum_library-[^"]*\)".*/\1/p' | tail -n 1
}

# --- Proof of what came out -------------------------------------------------------------------------------------------

# The newest version of a family of symbols that a file asks for, as a number; nothing when it asks for none.
newest() { readelf --version-info --wide "$2" | grep -o "Name: $1_[0-9.]*" | sed "s/.*_//" | sort -Vu | tail -n 1; }
needed() { readelf --dynamic --wide "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

check() {
    local limit=$1 file have name failed=0
    shift
    for file; do
        have=$(newest GLIBC "$file")
        if [ "$(printf '%s\n%s\n' "${have:-0}" "$limit" | sort -V | tail -n 1)" != "$limit" ]; then
            say "$file needs glibc $have, the board has $limit"
            failed=1
        fi
        [ -z "$(newest GLIBCXX "$file")" ] || { say "$file needs libstdc++ with GLIBCXX_$(newest GLIBCXX "$file")"; failed=1; }
        for name in $(needed "$file"); do
            case $name in
                libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | librt.so.1 | libgcc_s.so.1 | ld-linux-*) ;;
                libllama.so.0 | libggml.so.0 | libggml-base.so.0) ;;
                *) say "$file needs $name, which is neither the system's nor ours"; failed=1 ;;
            esac
        done
    done
    [ "$failed" = 0 ] || die "what was built does not run on the board"
}

report() {
    local board=$1 root=$TARGET_DIR/cross/$1/root/usr file comma=''
    printf '{\n  "board": "%s",\n  "features": "%s",\n  "glibc_limit": "%s",\n' "$board" "$FEATURES" "$(of_board "$board" glibc)"
    printf '  "glibc": "%s",\n' "$(for file in "$root/bin/vademecum" "$root"/lib/vademecum/*; do newest GLIBC "$file"; done | sort -V | tail -n 1)"
    printf '  "glibcxx": null,\n  "variants": "%s",\n' "$(of_board "$board" variants)"
    printf '  "program_bytes": %s,\n  "package_bytes": %s,\n  "files": [' "$(stat -c %s "$root/bin/vademecum")" "$(find "$root" -type f -printf '%s\n' | awk '{sum += $1} END {print sum}')"
    for file in bin/vademecum $(cd "$root" && echo lib/vademecum/*); do
        printf '%s\n    {"path": "%s", "bytes": %s, "glibc": "%s", "needed": "%s"}' "$comma" "$file" "$(stat -c %s "$root/$file")" \
            "$(newest GLIBC "$root/$file")" "$(needed "$root/$file" | paste -sd' ')"
        comma=,
    done
    printf '\n  ]\n}\n'
}

summary() {
    awk -F'"' -v board="$1" '/"glibc":/ && !glibc {glibc = $4} /"variants"/ {variants = $4} /_bytes"/ {gsub(/[^0-9]/, "", $3); bytes[$2] = $3}
        END {printf "%s: program %.1f MB, with libraries %.1f MB, glibc %s, variants %s\n", board, bytes["program_bytes"] / 1e6, bytes["package_bytes"] / 1e6, glibc, variants}' \
        "$TARGET_DIR/cross/$1/report.json"
}

case ${1:-} in
    build) build "${2:?which board? ($(boards | tr '\n' ' '))}" ;;
    tests) tests "${2:-generic-aarch64}" ;;
    tools) tools "${2:-aarch64}" ;;
    boards) boards ;;
    check) check "${@:2}" ;;
    *) die "what is to be done?" "cross.sh build BOARD | tools [ARCH] | boards | check LIMIT FILE…" ;;
esac
