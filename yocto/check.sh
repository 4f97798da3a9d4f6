#!/usr/bin/env bash
# Lints and parses the layer (make lint-yocto). oelint-adv and bitbake's parser come from PyPI, into a folder of their own in the cache.
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../config/setup/common.sh"

OELINT=9.11.2 BITBAKE=2.19.0
tools=$CACHE/tools/yocto-$OELINT-$BITBAKE
if [ ! -e "$tools/done" ]; then
    if ! python3 -c 'import ensurepip' 2>/dev/null && command -v apt-get >/dev/null; then
        say "installing python3-venv - the linter has a folder of its own"
        apt_get update --quiet
        apt_get install --quiet --yes --no-install-recommends python3-venv
    fi
    python3 -m venv --clear "$tools" || die "python3 makes no venv" "Remedy: apt-get install python3-venv"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "oelint-adv==$OELINT" "bitbake-setup==$BITBAKE"
    touch "$tools/done"
fi

yocto/update-crates.py --check
"$tools/bin/python" -B yocto/parse.py
layer=yocto/meta-vademecum
# The form of the list of crates is bitbake's own; no page is asked for over the network.
"$tools/bin/oelint-adv" --quiet --exit-zero --release wrynose --suppress oelint.vars.homepageping --suppress oelint.vars.inconspaces \
    "$layer"/recipes-*/*/*.bb >"$tools/findings" 2>&1
if grep -E ':error:' "$tools/findings"; then exit 1; fi
echo "oelint-adv ok ($(grep -c ':warning:' "$tools/findings" || true) warnings, $(grep -c ':info:' "$tools/findings" || true) remarks)"
