#!/usr/bin/env bash
# Formatting, lints, documentation, then all tests: unit, integration and black-box. Needs what setup.sh makes.
# FNET_TEST_DATA names a folder with data/ and reference/; FNET_DEMO_DIR one that demo.sh has trained in. Tests that
# need them, or what `make mpi` builds, say SKIPPED where it is missing.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Jobs of the tests run side by side; each process keeps to one core.
export OMP_NUM_THREADS=1

say "formatting"
cargo fmt --all --check

say "lints"
cargo clippy --release --workspace --all-targets -- -D warnings

say "documentation"
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
    cargo doc --release --workspace --no-deps --document-private-items

say "scripts"
for script in scripts/*.sh scripts/*/*.sh .ci/run; do bash -n "$script"; done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

say "building the tests"
cargo test --release --workspace --lib --bins --tests --no-run 2>&1 | tee "$logs/build"
built=$(grep -c '^ *Executable' "$logs/build")

say "simulated CUDA devices"
scripts/sim.sh --test

# The harness of stable Rust measures each test, but shows the times only with this. Not for the compiler: it would build
# everything again.
runner=CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
export "$runner=env RUSTC_BOOTSTRAP=1"

# run NAME ARGUMENTS...: a part of the tests, with all of its output in a log. Captured output of a passed test is dropped
# by the harness, so skipped tests are shown from the log; of a panic also the lines after the first, which say what was
# wrong.
run() {
    local name=$1
    shift
    cargo test --release --workspace --no-fail-fast "$@" --show-output -Zunstable-options --report-time 2>&1 | tee "$logs/$name" |
        awk '/panicked/ { more = 4 } more-- > 0 || /^test |^ +Running|^error|^warning|FAILED|^failures:|SKIPPED/'
}

# Two parts beside each other: the black-box tests, which wait for processes and deadlines, and all others.
say "tests (FNET_TEST_DATA ${FNET_TEST_DATA:-unset}, FNET_DEMO_DIR ${FNET_DEMO_DIR:-unset})"
failed=0
run others --lib --bins --test supervision --test parity --test memory --test hostile_weights --test sets --test carrier --test gloo \
    --test lazy_cuda -- &
others=$!
run blackbox --test blackbox -- --test-threads 8 || failed=1
wait $others || failed=1

if [ "$failed" -ne 0 ]; then
    say "the whole output of the failed run:"
    cat "$logs"/*
    exit 1
fi
ran=$(cat "$logs"/{others,blackbox} | grep -c '^ *Running')
[ "$ran" -eq "$built" ] || die "$ran test programs ran, but $built were built" "Name the new one in scripts/test.sh."
say "the slowest tests, in seconds"
sed -nE 's/^test (.*) \.\.\. ok <([0-9.]+)s>$/\2 \1/p' "$logs"/{others,blackbox} | sort -rn | sed -n 1,30p
skipped=$(cat "$logs"/* | grep -c 'SKIPPED' || true)
passed=$(cat "$logs"/* | awk '/^test result/ { sum += $4 } END { print sum + 0 }')
say "$passed tests passed, $skipped of them skipped for want of data"
