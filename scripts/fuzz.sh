#!/usr/bin/env bash
# Fuzzes a file parser: scripts/fuzz.sh TARGET [SECONDS]; see docs/fuzzing.md. Stops at the first failing input and
# keeps it in fuzz/artifacts/TARGET.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

targets=$(for file in fuzz/fuzz_targets/*.rs; do basename "$file" .rs; done | xargs)
target=${1:-}
seconds=${2:-600}
[ -n "$target" ] && [ -f "fuzz/fuzz_targets/$target.rs" ] || die "there is no target '$target'" "The targets are: $targets"
cargo +nightly fuzz --version >/dev/null 2>&1 ||
    die "cargo-fuzz or the nightly compiler is missing" "Run: rustup toolchain install nightly && cargo install cargo-fuzz"

libtorch=$(readlink -f "${LIBTORCH:-.libtorch}")
[ -d "$libtorch/lib" ] || die "libtorch was not found" "Run: make setup"
export LIBTORCH=$libtorch LD_LIBRARY_PATH=$libtorch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# One thread each, because several targets may run at the same time.
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1
.venv/bin/python fuzz/seeds.py fuzz/corpus
# libtorch is not built with sanitizers. Panics, endless loops and excessive memory use are detected without them.
cargo +nightly fuzz run --sanitizer none "$target" -- \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1
