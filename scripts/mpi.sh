#!/usr/bin/env bash
# Builds target/release/libfnet_mpi.so, which connects workers under mpirun to MPI. Downloads Open MPI and libclang into
# .venv. Set MPICC to use another MPI's compiler wrapper, and LIBCLANG_PATH to use another libclang's folder.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

install_wheels() {
    [ -n "${MPICC:-}" ] && [ -n "${LIBCLANG_PATH:-}" ] && return
    .venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r scripts/requirements-mpi.txt ||
        die "pip could not install scripts/requirements-mpi.txt; see its output above" \
            "To use your own MPI and libclang, set MPICC=/path/to/mpicc and LIBCLANG_PATH=/folder/of/libclang.so."
}

# libclang from PyPI has no headers, so use those of gcc.
find_compilers() {
    export MPICC=${MPICC:-$ROOT/.venv/bin/mpicc}
    export LIBCLANG_PATH=${LIBCLANG_PATH:-$(.venv/bin/python -c 'import os, clang; print(os.path.join(os.path.dirname(clang.__file__), "native"))')}
    export BINDGEN_EXTRA_CLANG_ARGS=${BINDGEN_EXTRA_CLANG_ARGS:--I$(gcc -print-file-name=include)}
    command -v "$MPICC" >/dev/null || die "MPICC=$MPICC is not a program" "Unset it, or set it to the mpicc of your MPI."
}

install_wheels
find_compilers
cargo build --release --manifest-path crates/mpi/Cargo.toml --target-dir target/mpi
install -m 755 target/mpi/release/libfnet_mpi.so target/release/libfnet_mpi.so
say "ready: mpirun -n N target/release/fnet-worker train CONFIG, with the mpirun next to $MPICC"
