#!/usr/bin/env bash
# The package on a clean Debian: installed, started by hand as the service's user, asked, upgraded with its data kept, removed, purged.
#
#   deb.sh [amd64|arm64] [SUITE]      as root; arm64 on another processor runs under qemu (qemu-user-static)
#
# The root is made by debootstrap from Debian's mirror and kept in the cache; every run works on a copy.
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../config/setup/common.sh"

arch=${1:-$(dpkg --print-architecture)} suite=${2:-bookworm}
target=${CARGO_TARGET_DIR:-target}
[ "$(id -u)" -eq 0 ] || die "chroot needs root" "Remedy: sudo make test-deb"
for program in debootstrap lintian dpkg-deb; do
    command -v "$program" >/dev/null || die "$program is missing" "Remedy: apt-get install debootstrap lintian qemu-user-static"
done
say() { printf 'deb (%s, %s): %s\n' "$arch" "$suite" "$*" >&2; }

# Another processor's programs run through qemu, which the kernel must be told of; systemd does that where it runs.
binfmt=/proc/sys/fs/binfmt_misc
if [ "$arch" != "$(dpkg --print-architecture)" ] && [ ! -e $binfmt/qemu-aarch64 ]; then
    [ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >$binfmt/register ||
        die "the kernel takes no handler for arm64 programs" "Remedy: apt-get install qemu-user-static, and binfmt_misc in the kernel"
fi

# --- A clean root ---------------------------------------------------------------------------------------------------------

base=$CACHE/roots/$suite-$arch
if [ ! -e "$base.tar" ]; then
    say "making a root with debootstrap"
    rm -rf "$base"
    mkdir -p "$base"
    debootstrap --arch "$arch" --variant=minbase "$suite" "$base" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$base.log" 2>&1 ||
        die "debootstrap failed; see $base.log" "Remedy: connect to the network; for arm64 install qemu-user-static"
    tar -C "$base" -cf "$base.tar.new" .
    mv "$base.tar.new" "$base.tar"
    rm -rf "$base"
fi
root=$(mktemp -d "${TMPDIR:-/tmp}/vademecum-deb.XXXXXX")
daemon=
finish() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    mountpoint -q "$root/proc" && umount "$root/proc"
    rm -rf "$root"
}
trap finish EXIT
tar -C "$root" -xf "$base.tar"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# What maintainer scripts would start is not started: no init runs here.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
check() {
    local words=$1
    shift
    "$@" >/dev/null 2>&1 || { say "failed: $words"; exit 1; }
    say "ok: $words"
}

# --- The packages ---------------------------------------------------------------------------------------------------------

# cargo deb leaves one package there.
config/debian/package.sh "$arch" 0.0.9-1
cp "$target/debian/vademecum_0.0.9-1_$arch.deb" "$root/tmp/old.deb"
config/debian/package.sh "$arch"
new=$(find "$target/debian" -name "vademecum_*_$arch.deb" ! -name '*_0.0.9-1_*')
lintian --fail-on error,warning --suppress-tags bad-distribution-in-changes-file "$new" >&2 || die "lintian complains of $new"
say "lintian ok: $(basename "$new"), $(stat -c %s "$new") bytes"
cp "$new" "$root/tmp/new.deb"

inside apt-get -qq update
inside apt-get -qq install -y --no-install-recommends /tmp/old.deb >"$root/tmp/apt.log" 2>&1 || { cat "$root/tmp/apt.log" >&2; exit 1; }
check "version 0.0.9 is installed" inside sh -c 'dpkg -s vademecum | grep -q "^Version: 0.0.9-1"'
# shellcheck disable=SC2016  # the inner shell expands it
check "the service's user and folder are there" inside sh -c '[ "$(stat -c %U:%a /var/lib/vademecum)" = vademecum:750 ]'
check "it is not enabled" inside sh -c '! systemctl is-enabled --quiet vademecum'
check "manual page and completion are there" inside sh -c 'ls /usr/share/bash-completion/completions/vademecum && dpkg -L vademecum | grep -q man1/vademecum.1.gz'
check "nothing is missing that it links to" inside sh -c '! ldd /usr/bin/vademecum 2>/dev/null | grep "not found"'

# --- The service, by hand -------------------------------------------------------------------------------------------------

models=$root/var/lib/vademecum/models
install -m 644 "$CACHE/models/generator.gguf" "$CACHE/models/embedder.gguf" "$models/"
[ ! -e "$CACHE/models/tokenizer.json" ] || install -m 644 "$CACHE/models/tokenizer.json" "$models/"
cp -r config/demo "$root/tmp/demo"
port=$((20000 + RANDOM % 20000))
sed -i "s|^#listen = .*|listen = \"127.0.0.1:$port\"|; s|^#node = .*|node = \"deb\"|" "$root/etc/vademecum/vademecum.toml"

start() {
    # A command of its own, not a function: chroot, env and setpriv become the daemon, which $! then is.
    chroot "$root" env -i PATH=/usr/bin:/bin HOME=/var/lib/vademecum setpriv --reuid vademecum --regid vademecum --clear-groups \
        vademecum run >"$root/tmp/daemon.log" 2>&1 &
    daemon=$!
    for _ in $(seq 600); do
        grep -q 'ready after' "$root/tmp/daemon.log" && return
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.5
    done
    cat "$root/tmp/daemon.log" >&2
    die "the daemon does not get ready"
}
stop() {
    kill "$daemon"
    wait "$daemon" || die "the daemon does not end in order"
    daemon=
}
answers() {
    inside vademecum ask 'What is the torque of the housing screws?' --node deb --broker "mqtt://127.0.0.1:$port" --json >"$root/tmp/answer"
    grep -q '1.2 Nm' "$root/tmp/answer"
}

check "root does not write into the service's library" inside sh -c 'vademecum ingest /tmp/demo 2>&1 | grep -q "belongs to user"'
start
check "the sample manual goes in through the daemon" inside vademecum ingest /tmp/demo --include '*.md'
check "it answers over MQTT" answers
cp "$root/tmp/answer" "$root/tmp/answer.before"
stop

# --- Upgrade, removal, purge ----------------------------------------------------------------------------------------------

inside apt-get -qq install -y --no-install-recommends /tmp/new.deb >"$root/tmp/apt.log" 2>&1 || { cat "$root/tmp/apt.log" >&2; exit 1; }
check "it is upgraded, the changed configuration kept" inside sh -c "! dpkg -s vademecum | grep -q '^Version: 0.0.9' && grep -q 'listen = \"127.0.0.1:$port\"' /etc/vademecum/vademecum.toml"
start
check "it answers from the library of before" answers
stop
inside apt-get -qq remove -y vademecum >"$root/tmp/apt.log" 2>&1
check "removed, library and configuration stay" inside sh -c '! [ -e /usr/bin/vademecum ] && [ -d /var/lib/vademecum/sources ] && [ -e /etc/vademecum/vademecum.toml ]'
inside apt-get -qq purge -y vademecum >"$root/tmp/apt.log" 2>&1
check "purged, nothing stays" inside sh -c '! [ -e /var/lib/vademecum ] && ! [ -e /etc/vademecum ] && ! ls /usr/lib/vademecum 2>/dev/null'
say "all passed"
