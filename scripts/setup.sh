#!/usr/bin/env bash
# Prepares the checkout: .venv with the pinned wheels, .libtorch, the release build. Skips existing parts. FNET_PYTHON
# is the Python to use.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Disk space for the wheels (5 GB, twice that while unpacking) and the build (4 GB).
WHEELS_GB=10
BUILD_GB=4

# True if the command is Python 3.11 or newer with a working venv module.
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
    die "Python 3.11 or newer with venv was not found (tried ${FNET_PYTHON:+$FNET_PYTHON, }python3.11, python3, python3.12, python3.13)" \
        "On Debian or Ubuntu: sudo apt install python3 python3-venv" \
        "Or choose one: make setup FNET_PYTHON=/path/to/python3.11"
}

check_tools() {
    command -v cargo >/dev/null || die "cargo was not found" \
        "Install Rust 1.88 or newer with rustup, and add ~/.cargo/bin to PATH."
    local version
    version=$(rustc --version | awk '{print $2}')
    [ "$(printf '%s\n1.88.0\n' "${version%%-*}" | sort -V | head -n 1)" = 1.88.0 ] ||
        die "rustc is $version, but 1.88 or newer is required" "Run: rustup update stable"
    command -v g++ >/dev/null || die "g++ was not found; the C++ bridge needs it" \
        "On Debian or Ubuntu: sudo apt install g++"
}

# check_room GB WHAT
check_room() {
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge "$1" ] || die "$2 needs $1 GB, but the disk of $ROOT has only $free GB free" \
        "Free some disk space, or clone onto a larger disk."
}

# True if the environment has all pinned packages and versions.
wheels_are_there() {
    [ -x .venv/bin/python ] && .venv/bin/python - scripts/requirements.txt scripts/requirements-headers.txt <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

for path in sys.argv[1:]:
    for line in open(path):
        name, _, wanted = line.strip().partition("==")
        if wanted:
            try:
                # A local part such as +cpu is a build variant, not another release.
                found = version(name).split("+")[0]
            except PackageNotFoundError:
                found = None
            if found != wanted:
                sys.exit(1)
PYTHON
}

install_wheels() {
    if wheels_are_there; then
        say "wheels: already installed (.venv)"
        return
    fi
    local python
    python=$(find_python)
    check_room "$WHEELS_GB" "The environment with libtorch"
    if [ ! -x .venv/bin/python ]; then
        say "creating .venv with $("$python" --version)"
        "$python" -m venv .venv || die "$python -m venv .venv failed" "On Debian or Ubuntu: sudo apt install python3-venv"
    fi
    say "installing libtorch and test tools into .venv (about 5 GB, a minute or more)"
    # Python compiles modules on first use.
    local pip=(.venv/bin/python -m pip install --no-input --disable-pip-version-check --no-compile)
    "${pip[@]}" -r scripts/requirements.txt ||
        die "pip could not install scripts/requirements.txt; see its output above" \
            "Without a network: put the wheels into a folder and set PIP_FIND_LINKS=folder PIP_NO_INDEX=1."
    "${pip[@]}" --no-deps -r scripts/requirements-headers.txt ||
        die "pip could not install scripts/requirements-headers.txt; see its output above"
    wheels_are_there || die ".venv does not have the pinned versions after the installation" "Remove .venv and run this again."
}

# Builds the packages that do not need libtorch during its download. The others fail and are built later.
build_in_background() {
    [ ! -e .libtorch ] || return 0
    setsid cargo build --release --workspace --keep-going >/dev/null 2>&1 &
    background=$!
    trap end_background EXIT
}

# Ends cargo with its compilers. What they have finished is kept.
end_background() {
    [ -z "$background" ] || kill -- "-$background" 2>/dev/null || true
}

link_libtorch() {
    local packages
    packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    local wanted=$packages/torch
    # Use a relative link within the checkout, so that the checkout can be moved.
    [ -d ".venv/${packages##*/.venv/}/torch" ] && wanted=.venv/${packages##*/.venv/}/torch
    [ -e "$wanted/lib/libtorch_cpu.so" ] || die "$wanted has no libtorch" "Remove .venv and run this again."
    [ "$(readlink .libtorch || true)" = "$wanted" ] && return
    [ -e .libtorch ] && [ ! -L .libtorch ] && die ".libtorch is not a link" "Remove it; make setup links it to $wanted."
    ln -sfn "$wanted" .libtorch
    say ".libtorch -> $wanted"
}

build() {
    say "building the programs (the first time takes some minutes)"
    cargo build --release --workspace
}

check_tools
[ -d target/release ] || check_room "$BUILD_GB" "The build"
background=
build_in_background
install_wheels
link_libtorch
# What needs libtorch takes the longest, one package after the other.
end_background
[ -z "$background" ] || wait "$background" 2>/dev/null || true
trap - EXIT
build
say "ready: target/release/fnet-launch, target/release/fnet-worker"
