#!/usr/bin/env bash
# Checks formatting, lints and documentation, then runs all unit, integration and black-box tests. Run setup.sh first. FNET_TEST_DATA
# is a folder with data/ and reference/, FNET_DEMO_DIR a work folder of demo.sh. Tests that need them, or the library of
# `make mpi`, print SKIPPED if they are missing.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Test jobs run in parallel, so each process uses one core.
export OMP_NUM_THREADS=1

say "formatting"
cargo fmt --all --check

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# While cargo checks one crate after the other, a core is free.
say "simulated CUDA devices, in the background"
scripts/sim.sh --test >"$logs/sim" 2>&1 &
simulator=$!
trap 'kill $simulator 2>/dev/null || true; rm -rf "$logs"' EXIT

# In .ci/run the compiler of the workspace checks both while it builds.
if [ "${RUSTC_WORKSPACE_WRAPPER:-}" = "$ROOT/.ci/rustc" ]; then
    say "lints and documentation: with the build"
    cargo test --release --workspace --bench '*' --no-run
else
    say "lints"
    cargo clippy --release --workspace --all-targets -- -D warnings
    say "documentation"
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
        cargo doc --release --workspace --no-deps --document-private-items
fi

say "scripts"
for script in scripts/*.sh scripts/*/*.sh .ci/r*; do bash -n "$script"; done
.venv/bin/hadolint scripts/Containerfile

say "building the tests"
cargo test --release --workspace --lib --bins --tests --no-run 2>&1 | tee "$logs/build"
built=$(grep -c '^ *Executable' "$logs/build")

wait $simulator || die "the simulated CUDA devices failed:" "$(cat "$logs/sim")"
tail -n 1 "$logs/sim"
rm "$logs/sim"

# Makes the test harness of stable Rust show the time of each test. Setting this for the compiler would rebuild
# everything.
runner=CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
export "$runner=env RUSTC_BOOTSTRAP=1"

# run NAME ARGUMENTS...: runs a part of the tests and logs all output. Prints test results, SKIPPED lines, and the first
# lines of panics, because the harness hides the captured output of passed tests.
run() {
    local name=$1
    shift
    cargo test --release --workspace --no-fail-fast "$@" --show-output -Zunstable-options --report-time 2>&1 | tee "$logs/$name" |
        awk '/panicked/ { more = 4 } more-- > 0 || /^test |^ +Running|^error|^warning|FAILED|^failures:|SKIPPED/'
}

# Two parts in parallel: the black-box tests, which mostly wait for processes and deadlines, and all others.
say "tests (FNET_TEST_DATA ${FNET_TEST_DATA:-unset}, FNET_DEMO_DIR ${FNET_DEMO_DIR:-unset})"
failed=0
run others --lib --bins --test supervision --test parity --test memory --test hostile_weights --test sets --test byte_transport --test gloo \
    --test lazy_cuda -- &
others=$!
run blackbox --test blackbox -- --test-threads 8 || failed=1
wait $others || failed=1

if [ "$failed" -ne 0 ]; then
    say "output of the failed run:"
    cat "$logs"/*
    exit 1
fi
ran=$(cat "$logs"/{others,blackbox} | grep -c '^ *Running')
[ "$ran" -eq "$built" ] || die "$ran test programs ran, but $built were built" "Add the new one to scripts/test.sh."
say "slowest tests, in seconds"
sed -nE 's/^test (.*) \.\.\. ok <([0-9.]+)s>$/\2 \1/p' "$logs"/{others,blackbox} | sort -rn | sed -n 1,30p
skipped=$(cat "$logs"/* | grep -c 'SKIPPED' || true)
passed=$(cat "$logs"/* | awk '/^test result/ { sum += $4 } END { print sum + 0 }')
say "$passed tests passed, $skipped of them skipped because of missing data"
