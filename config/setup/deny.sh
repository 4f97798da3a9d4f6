#!/usr/bin/env bash
# cargo deny on this repository (deny.toml). Licences, bans and sources need no network. Advisories need RustSec's database:
#
#   VADEMECUM_ADVISORY_DB=DIR    a clone of github.com/RustSec/advisory-db at DIR; nothing is fetched
#   VADEMECUM_ADVISORY_DB=fetch  cargo deny fetches it
#   unset                        advisories are not checked, and a line says so
set -euo pipefail
# shellcheck source=config/setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export PATH=$CACHE/tools/bin:$PATH

# Also what other systems would build belongs to the tree that is looked at; a build has not fetched that.
cargo fetch --locked --quiet || echo "deny: not every crate can be fetched here; going on with those that are there"

case ${VADEMECUM_ADVISORY_DB:-} in
    "")
        cargo deny --offline --workspace check bans licenses sources
        echo "deny: advisories not checked: set VADEMECUM_ADVISORY_DB to a clone of RustSec's advisory-db, or to 'fetch'"
        ;;
    fetch) cargo deny --workspace check ;;
    *)
        [ -d "$VADEMECUM_ADVISORY_DB/crates" ] || die "VADEMECUM_ADVISORY_DB=$VADEMECUM_ADVISORY_DB is no clone of RustSec's advisory-db (it has no crates/)"
        # cargo deny wants the clone under the name it would have given it, and refuses one older than 90 days.
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        ln -s "$(realpath "$VADEMECUM_ADVISORY_DB")" "$work/advisory-db-3157b0e258782691"
        sed "s|^\[advisories\]|&\ndb-path = \"$work\"\nmaximum-db-staleness = \"P10Y\"|" deny.toml >"$work/deny.toml"
        echo "deny: advisories as of $(git -C "$VADEMECUM_ADVISORY_DB" log -1 --format=%cs)"
        cargo deny --offline --workspace --config "$work/deny.toml" check
        ;;
esac
