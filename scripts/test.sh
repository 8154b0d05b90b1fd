#!/usr/bin/env bash
# Formatting, lints, then all tests: unit, integration and black-box. Needs what setup.sh makes.
# FNET_TEST_DATA names a folder with data/ and reference/; FNET_DEMO_DIR one that demo.sh has trained in. Tests that
# need them say SKIPPED where they are unset.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

say "formatting"
cargo fmt --all --check

say "lints"
cargo clippy --release --workspace --all-targets -- -D warnings

say "scripts"
for script in scripts/*.sh scripts/*/*.sh .ci/run; do bash -n "$script"; done

say "tests (FNET_TEST_DATA ${FNET_TEST_DATA:-unset}, FNET_DEMO_DIR ${FNET_DEMO_DIR:-unset})"
# Captured output of a passed test is dropped by the harness, so skipped tests are shown from the log; of a panic also the
# lines after the first, which say what was wrong.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --workspace --no-fail-fast -- --show-output 2>&1 | tee "$log" |
    awk '/panicked/ { more = 4 } more-- > 0 || /^test |^ +Running|^error|^warning|FAILED|^failures:|SKIPPED/' || {
    say "the whole output of the failed run:"
    cat "$log"
    exit 1
}
skipped=$(grep -c 'SKIPPED' "$log" || true)
passed=$(awk '/^test result/ { sum += $4 } END { print sum + 0 }' "$log")
say "$passed tests passed, $skipped of them skipped for want of data"
