#!/usr/bin/env bash
# Times two builds in turns, which is how every claim of docs/performance.md about a change is made.
#
#   scripts/compare.sh OLD NEW [BENCH ...]     OLD and NEW are folders with fnet-launch and fnet-worker; OLD may be the word
#                                              `reference`: MMDetection's layers alone, in PyTorch (benches/reference_layers.py)
#
# Benches: train320, train800, infer, data, launch (the first three for `reference`); all of them by default.
# FNET_COMPARE_ROUNDS=5 pairs each. An environment variable such as ONEDNN_MAX_CPU_ISA=AVX2 holds for both. With the right to do
# so, both run at real-time priority: give other programs a rest, for they get little of the processor meanwhile. `data` needs
# FNET_TEST_DATA.
#
# Prints the medians, the ratio of each pair's times (above 1: NEW is faster) as median and 90 % interval by bootstrap.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

[ $# -ge 2 ] || die "two builds are needed" "Example: git worktree add /tmp/old v0.1.0, make setup there, then scripts/compare.sh /tmp/old/target/release target/release train320"
for folder in "$1" "$2"; do [ "$folder" = reference ] || [ -x "$folder/fnet-launch" ] || die "$folder has no fnet-launch" "Run make setup in that checkout."; done
exec "$ROOT/.venv/bin/python" "$ROOT/benches/compare.py" "$@"
