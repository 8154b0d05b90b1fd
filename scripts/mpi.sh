#!/usr/bin/env bash
# The worker with the feature mpi, for mpirun: fetches Open MPI and libclang into .venv, checks and tests the feature
# under the real mpirun, and leaves the program in target/mpi. target/release is as before when this ends.
# MPICC names the compiler wrapper of another MPI, LIBCLANG_PATH the folder of another libclang.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

install_wheels() {
    [ -n "${MPICC:-}" ] && [ -n "${LIBCLANG_PATH:-}" ] && return
    .venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r scripts/requirements-mpi.txt ||
        die "pip could not install scripts/requirements-mpi.txt; its last lines above say why" \
            "With an MPI and a libclang of your own: set MPICC=/path/to/mpicc and LIBCLANG_PATH=/folder/of/libclang.so."
}

# The libclang of PyPI has no headers of its own; those of gcc serve.
find_compilers() {
    export MPICC=${MPICC:-$ROOT/.venv/bin/mpicc}
    export LIBCLANG_PATH=${LIBCLANG_PATH:-$(.venv/bin/python -c 'import os, clang; print(os.path.join(os.path.dirname(clang.__file__), "native"))')}
    export BINDGEN_EXTRA_CLANG_ARGS=${BINDGEN_EXTRA_CLANG_ARGS:--I$(gcc -print-file-name=include)}
    local mpicc
    mpicc=$(command -v "$MPICC") || die "MPICC=$MPICC is no program" "Unset it, or name the mpicc of your MPI."
    export FNET_MPIRUN=${FNET_MPIRUN:-$(dirname "$mpicc")/mpirun}
}

# The programs without MPI, which the tests of the feature have replaced.
restore() {
    cargo build --quiet --release --workspace
}

install_wheels
find_compilers
trap restore EXIT
# All of the workspace, as everywhere: with the same features on, packages are built once.
feature=(--release --workspace --features mpi)

say "lints with MPI"
cargo clippy --quiet "${feature[@]}" --lib --bin fnet-worker --test distributed --test blackbox -- -D warnings
say "tests under $FNET_MPIRUN"
cargo test "${feature[@]}" --test distributed --test blackbox -- mpi
mkdir -p target/mpi
cp target/release/fnet-worker target/mpi/fnet-worker
say "ready: target/mpi/fnet-worker, for $FNET_MPIRUN -n N target/mpi/fnet-worker train CONFIG"
