#!/usr/bin/env bash
# Makes everything ready in the checkout: .venv with the pinned wheels, .libtorch, the release build.
# What is there already is left alone. FNET_PYTHON names the Python to use.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Room for the wheels (5 GB, and as much again while they are unpacked) and the build (4 GB).
WHEELS_GB=10
BUILD_GB=4

# True if the command is a Python of at least 3.11 whose venv module works.
python_fits() {
    command -v "$1" >/dev/null && "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${FNET_PYTHON:+"$FNET_PYTHON"} python3.11 python3 python3.12 python3.13; do
        if python_fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "no Python of at least 3.11 with venv was found (tried ${FNET_PYTHON:+$FNET_PYTHON, }python3.11, python3, python3.12, python3.13)" \
        "On Debian or Ubuntu: sudo apt install python3 python3-venv" \
        "Or name one: make setup FNET_PYTHON=/path/to/python3.11"
}

check_tools() {
    command -v cargo >/dev/null || die "cargo was not found" \
        "Install Rust 1.88 or newer with rustup, and see that ~/.cargo/bin is in PATH."
    local version
    version=$(rustc --version | awk '{print $2}')
    [ "$(printf '%s\n1.88.0\n' "${version%%-*}" | sort -V | head -n 1)" = 1.88.0 ] ||
        die "rustc is $version, but at least 1.88 is needed" "Run: rustup update stable"
    command -v g++ >/dev/null || die "g++ was not found; it compiles the C++ bridge" \
        "On Debian or Ubuntu: sudo apt install g++"
}

# The vector instructions of the JPEG decoder are assembled by nasm. They give the same pixels in half the time.
check_assembler() {
    [ "$(uname -m)" != x86_64 ] || command -v nasm >/dev/null ||
        say "nasm was not found, so JPEG will be decoded at half the speed" \
            "(on Debian or Ubuntu: sudo apt install nasm, then make setup again)"
}

# A decoder that was built before nasm was there is built anew.
rebuild_decoder() {
    local built
    built=$(find target/release/build -path '*/mozjpeg-sys-*/out' -type d 2>/dev/null || true)
    [ -n "$built" ] && command -v nasm >/dev/null && [ "$(uname -m)" = x86_64 ] || return 0
    [ -n "$(find target/release/build -path '*/mozjpeg-sys-*/out/*jidctint-avx2*')" ] ||
        cargo clean --release -p mozjpeg-sys
}

# check_room GB WHAT
check_room() {
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge "$1" ] || die "$2 needs $1 GB, but the disk of $ROOT has $free GB left" \
        "Free some room, or clone onto a larger disk."
}

# True if the environment holds every pinned package in its version.
wheels_are_there() {
    [ -x .venv/bin/python ] && .venv/bin/python - scripts/requirements.txt scripts/requirements-headers.txt <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

for path in sys.argv[1:]:
    for line in open(path):
        name, _, wanted = line.strip().partition("==")
        if wanted:
            try:
                # A local part such as +cpu names a build, not another release.
                found = version(name).split("+")[0]
            except PackageNotFoundError:
                found = None
            if found != wanted:
                sys.exit(1)
PYTHON
}

install_wheels() {
    if wheels_are_there; then
        say "wheels: there already (.venv)"
        return
    fi
    local python
    python=$(find_python)
    check_room "$WHEELS_GB" "The environment with libtorch"
    if [ ! -x .venv/bin/python ]; then
        say "creating .venv with $("$python" --version)"
        "$python" -m venv .venv || die "$python -m venv .venv failed" "On Debian or Ubuntu: sudo apt install python3-venv"
    fi
    say "installing libtorch and the tests' tools into .venv (about 5 GB, a minute or more)"
    # Python compiles what is used, when it is used.
    local pip=(.venv/bin/python -m pip install --no-input --disable-pip-version-check --no-compile)
    "${pip[@]}" -r scripts/requirements.txt ||
        die "pip could not install scripts/requirements.txt; its last lines above say why" \
            "Without a network: put the wheels into a folder and set PIP_FIND_LINKS=folder PIP_NO_INDEX=1."
    "${pip[@]}" --no-deps -r scripts/requirements-headers.txt ||
        die "pip could not install scripts/requirements-headers.txt; its last lines above say why"
    wheels_are_there || die ".venv does not hold the pinned versions after the installation" "Remove .venv and run again."
}

# The packages that need no libtorch, while it is fetched; the others fail and are built later.
build_beside() {
    [ ! -e .libtorch ] || return 0
    cargo build --release --workspace --keep-going >/dev/null 2>&1 &
    beside=$!
    trap 'kill "$beside" 2>/dev/null || true' EXIT
}

link_libtorch() {
    local packages
    packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    local wanted=$packages/torch
    # Relative where it lies in the checkout, so the checkout can be moved.
    [ -d ".venv/${packages##*/.venv/}/torch" ] && wanted=.venv/${packages##*/.venv/}/torch
    [ -e "$wanted/lib/libtorch_cpu.so" ] || die "$wanted holds no libtorch" "Remove .venv and run again."
    [ "$(readlink .libtorch || true)" = "$wanted" ] && return
    [ -e .libtorch ] && [ ! -L .libtorch ] && die ".libtorch is no link" "Remove it; make setup links it to $wanted."
    ln -sfn "$wanted" .libtorch
    say ".libtorch -> $wanted"
}

build() {
    rebuild_decoder
    say "building the programs (the first time takes some minutes)"
    cargo build --release --workspace
}

check_tools
check_assembler
[ -d target/release ] || check_room "$BUILD_GB" "The build"
beside=
build_beside
install_wheels
link_libtorch
# Whether it came to its end does not matter.
[ -z "$beside" ] || wait "$beside" || true
trap - EXIT
build
say "ready: target/release/fnet-launch, target/release/fnet-worker"
