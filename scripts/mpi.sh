#!/usr/bin/env bash
# The library by which a worker under mpirun speaks to MPI: target/release/libfnet_mpi.so, beside the worker. Fetches Open
# MPI and libclang into .venv. MPICC names the compiler wrapper of another MPI, LIBCLANG_PATH the folder of another
# libclang.
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
    command -v "$MPICC" >/dev/null || die "MPICC=$MPICC is no program" "Unset it, or name the mpicc of your MPI."
}

install_wheels
find_compilers
cargo build --release --manifest-path crates/mpi/Cargo.toml --target-dir target/mpi
install -m 755 target/mpi/release/libfnet_mpi.so target/release/libfnet_mpi.so
say "ready: mpirun -n N target/release/fnet-worker train CONFIG, with the mpirun beside $MPICC"
