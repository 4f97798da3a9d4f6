#!/usr/bin/env bash
# The aarch64 daemon under emulation, one core type after the other (make test-cross): unit tests of our own kernels, and
# the whole job with the real models and a real broker, beside the same job done by this machine's own build.
#
#   CORES="cortex-a53 …"   which (default: cortex-a53 cortex-a72 cortex-a76 max)
#
# What must hold: no illegal instruction, the variant that the core can run, a cited answer. Words may differ between compilers and
# variants where two tokens were nearly as likely: compare.py shows by how much.
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../config/setup/common.sh"

CROSS=$ROOT/cross-targets/cross.sh
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
QEMU=qemu-aarch64-static
CORES=${CORES:-cortex-a53 cortex-a72 cortex-a76 max}
QUESTION='How often must the bearings be greased?'

work=$(mktemp -d)
children=()
finish() {
    local child
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

install_emulator() {
    local wanted=()
    command -v $QEMU >/dev/null || wanted+=(qemu-user-static)
    [ -e /lib/ld-linux-aarch64.so.1 ] || wanted+=(libc6:arm64)
    [ ${#wanted[@]} -gt 0 ] || return 0
    say "installing ${wanted[*]} (runs programs for Arm on this machine)"
    as_root dpkg --add-architecture arm64
    apt_get update --quiet
    apt_get install --quiet --yes --no-install-recommends "${wanted[@]}"
}

expected_variant() {
    case $1 in
        cortex-a53 | cortex-a57 | cortex-a72) echo armv8.0_1 ;;
        cortex-a76 | neoverse-n1) echo armv8.2_2 ;;
        max) echo armv8.6_0 ;;
        *) die "which variant $1 needs is not written down in $0" ;;
    esac
}

start_broker() {
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    printf 'listener %s 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n' "$port" >"$work/mosquitto.conf"
    mosquitto -c "$work/mosquitto.conf" >"$work/mosquitto.log" 2>&1 &
    children+=($!)
}

# The whole job: prints the reply as JSON. $1: name of the node; the rest: the command that is the daemon's program.
job() {
    local node=$1 daemon data=$work/$1 options
    shift
    options=(--data-dir "$data" --node "$node" --set model.threads=1 --set model.batch_threads=1 --set embedder.threads=1
        --set answer.strategy=read --set answer.check=false --set answer.patience_ms=86400000 --set answer.deadline_ms=600000 --set model.lookup=off --set answer.temperature=0 --set log.level=trace)
    "$@" run --broker "mqtt://127.0.0.1:$port" --generator "$models/generator.gguf" --embedder "$models/embedder.gguf" "${options[@]}" \
        >"$work/$node.log" 2>&1 &
    daemon=$!
    children+=("$daemon")
    wait_online "$node" "$daemon"
    memory=$(awk '/RssAnon/ {print int($2 / 1024)}' "/proc/$daemon/status")
    "$native" "${options[@]:0:2}" ingest "$work/manual.md" >&2
    mosquitto_sub -p "$port" -t "vademecum/$node/info" -C 1 -W 60 >"$work/$node.info"
    mosquitto_rr -V 5 -W 600 -p "$port" -q 1 -t "vademecum/$node/ask" -e "reply/$node" -m "{\"question\": \"$QUESTION\", \"max_tokens\": 40}" >"$work/$node.reply"
    peak=$(awk '/VmHWM/ {print int($2 / 1024)}' "/proc/$daemon/status")
    kill "$daemon"
    wait "$daemon" || die "the daemon of $node did not end in order" "$(tail -n 20 "$work/$node.log")"
}

wait_online() {
    local _
    for _ in $(seq 240); do
        kill -0 "$2" 2>/dev/null || die "the daemon of $1 ended" "$(tail -n 20 "$work/$1.log")"
        [ "$(mosquitto_sub -p "$port" -t "vademecum/$1/state" -C 1 -W 1 2>/dev/null)" = online ] && return
    done
    die "the daemon of $1 is not ready after four minutes" "$(tail -n 20 "$work/$1.log")"
}

# Reads a reply: fails unless it is a cited answer from the manual; prints what it says.
cited_answer() {
    python3 - "$1" <<'PY'
import json, sys
reply = json.load(open(sys.argv[1]))
assert reply.get("found"), reply
assert any("every 500 hours" in citation["quote"] for citation in reply["citations"]), reply
assert reply["citations"][0]["document"] == "manual.md", reply
assert reply["answer"].strip(), reply
print(reply["answer"])
print(json.dumps(reply["timings"]), json.dumps(reply["usage"]))
PY
}

install_emulator
models=$CACHE/models
native=$TARGET_DIR/release/vademecum
"$CROSS" build generic-aarch64
tests=$("$CROSS" tests generic-aarch64)
root=$TARGET_DIR/cross/generic-aarch64/root/usr

cat >"$work/manual.md" <<'MD'
# Harbour pump P-200

## Error codes

Error E-7 means that the inlet filter is clogged. Switch off the pump, clean the filter with water and press the reset button.

Error E-9 means that the motor is too hot. Let the motor cool down for 30 minutes.

## Maintenance

Grease the bearings every 500 hours with lithium grease.
MD
start_broker
job x86-64 "$native"
printf 'x86-64: %s\n' "$(cited_answer "$work/x86-64.reply" | tr '\n' ' ')"

for core in $CORES; do
    begin=$SECONDS
    $QEMU -cpu "$core" -E LD_LIBRARY_PATH="$root/lib/vademecum" "$tests" --test-threads 1 store::dense ingest::chunk >"$work/kernels" 2>&1 ||
        die "the tests of kernels and chunks fail on $core" "$(tail -n 30 "$work/kernels")"
    kernels=$(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1/p' "$work/kernels")
    [ "${kernels:-0}" -gt 0 ] || die "no test ran on $core"
    job "$core" $QEMU -cpu "$core" "$root/bin/vademecum"
    answer=$(cited_answer "$work/$core.reply") || die "no cited answer on $core" "$(cat "$work/$core.reply")"
    compared=$(python3 cross-targets/compare.py "$work/x86-64" "$work/$core") || die "$core answers otherwise than x86-64"
    variant=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["processor"])' "$work/$core.info")
    [ "$variant" = "$(expected_variant "$core")" ] || die "$core runs the variant $variant, not $(expected_variant "$core")"
    printf '%s: variant %s, %s tests, cited answer, %s; own memory at ready %s MiB, peak with mapped models %s MiB (the emulator'\''s included); %s s\n' \
        "$core" "$variant" "$kernels" "$compared" "$memory" "$peak" $((SECONDS - begin))
    printf '%s\n' "$answer" | sed 's/^/    /'
done
