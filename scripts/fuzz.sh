#!/usr/bin/env bash
# Feeds a reader with damaged files: scripts/fuzz.sh TARGET [SECONDS]; see docs/fuzzing.md.
# Ends with the first input that the reader does not survive; that is kept in fuzz/artifacts/TARGET.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

targets=$(for file in fuzz/fuzz_targets/*.rs; do basename "$file" .rs; done | xargs)
target=${1:-}
seconds=${2:-600}
[ -n "$target" ] && [ -f "fuzz/fuzz_targets/$target.rs" ] || die "no target '$target'" "the targets are: $targets"
cargo +nightly fuzz --version >/dev/null 2>&1 ||
    die "cargo-fuzz or the nightly compiler is missing" "rustup toolchain install nightly && cargo install cargo-fuzz"

libtorch=$(readlink -f "${LIBTORCH:-.libtorch}")
[ -d "$libtorch/lib" ] || die "no libtorch" "run make setup"
export LIBTORCH=$libtorch LD_LIBRARY_PATH=$libtorch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# One thread each: several targets may run side by side.
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1
.venv/bin/python fuzz/seeds.py fuzz/corpus
# libtorch is not built for the sanitizers; panics, endless loops and too much memory are found without them.
cargo +nightly fuzz run --sanitizer none "$target" -- \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1
