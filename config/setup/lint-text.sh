#!/usr/bin/env bash
# The half of `make lint` that is not Rust: borders between rooms, spelling, links and sentences of the documentation, shellcheck.
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export PATH=$CACHE/tools/bin:$PATH

command -v typos >/dev/null || die "typos is missing, and there is no wheel of it for $(uname -m)" "Remedy: cargo install typos-cli"
typos
echo "typos ok"

"$SETUP"/invariants.py

# The shell blocks need the built program: `make docs-check` runs them too.
"$SETUP"/docs-check.py links
"$SETUP"/docs-check.py words >/dev/null
echo "sentences ok"

if command -v shellcheck >/dev/null; then
    mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
    shellcheck --external-sources "${scripts[@]}"
    echo "shellcheck ok (${#scripts[@]} scripts)"
else
    echo "shellcheck is not on this machine: shell scripts were not checked (apt-get install shellcheck)"
fi
