#!/usr/bin/env bash
# Runs the parity suite and writes its measurements to docs/tables/parity.md, or to the given file. FNET_TEST_DATA or
# FNET_PARITY_FIXTURES is the folder with MMDetection's numbers; see docs/parity.md.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

page=${1:-docs/tables/parity.md}
if [ -z "${FNET_TEST_DATA:-}${FNET_PARITY_FIXTURES:-}" ]; then
    die "neither FNET_TEST_DATA nor FNET_PARITY_FIXTURES is set" "Run: export FNET_TEST_DATA=FOLDER, the folder that contains reference/."
fi

FNET_PARITY_REPORT=$(mktemp -d)
export FNET_PARITY_REPORT
trap 'rm -rf "$FNET_PARITY_REPORT"' EXIT

cargo build --release --workspace
cargo test --release --workspace --no-fail-fast --test parity --test blackbox parity -- --include-ignored

rows=$FNET_PARITY_REPORT/rows.tsv
[ -s "$rows" ] || die "there are no measurements" "See the SKIPPED lines above."

# Fields: order of the stage, stage, what, fixtures, relation, bound, measured, test. Lines that differ only in the
# measured value become one row with the worst value.
table() {
    awk -F '\t' -v OFS='\t' '
        { key = $1 FS $2 FS $3 FS $4 FS $5 FS $6 FS $8; value = $7 + 0 }
        !(key in worst) || ($5 == "<=" ? value > worst[key] : value < worst[key]) { worst[key] = value }
        END { for (key in worst) { split(key, f, FS); print f[1], f[4], f[3], f[2], f[5], f[6], worst[key], f[7] } }
    ' "$rows" | LC_ALL=C sort -t $'\t' -k1,1n -k2,2 -k3,3 | awk -F '\t' '
        BEGIN {
            print "| stage | compared | fixtures | bound | measured | test |"
            print "| --- | --- | --- | --- | --- | --- |"
        }
        {
            relation = $5 == "<=" ? "at most" : "at least"
            printf "| %s | %s | %s | %s %.3g | %.2g | `%s` |\n", $4, $3, $2, relation, $6, $7, $8
        }'
}

{
    cat <<'END'
# Measured parity

Written by `make parity`. [parity.md](../parity.md) explains the stages and their bounds. "Measured" is the maximum
difference of each comparison, for bounds "at least" the minimum. "Relative" is relative to the maximum absolute value of
MMDetection's tensor or, for lengths and losses, to MMDetection's value.

END
    table
} >"$FNET_PARITY_REPORT/page"
cat "$FNET_PARITY_REPORT/page" >"$page"
say "$(table | tail -n +3 | wc -l) rows in $page"
