#!/usr/bin/env bash
# install.sh PREFIX: installs programs in PREFIX/bin, libraries in PREFIX/lib/fnet, configs in PREFIX/share/fnet,
# manual pages and completions of shells in PREFIX/share.
# libtorch (5 GB) is not copied. The programs use the one in this checkout's .venv, which must stay, or that of --libtorch.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

[ $# -eq 1 ] && [ -n "$1" ] || die "PREFIX is missing" "Example: make install PREFIX=~/fnet"
# make does not expand a tilde.
prefix=${1/#\~/$HOME}
mkdir -p "$prefix" || die "cannot create $prefix" "Choose a folder that you can write to, or run the command with sudo."
prefix=$(cd "$prefix" && pwd)
built=$ROOT/target/release

install -d "$prefix/bin" "$prefix/lib/fnet" "$prefix/share/fnet"
install -m 755 "$built/fnet-launch" "$built/fnet-worker" "$prefix/bin/"
# Libraries that are loaded on demand.
find "$built" -maxdepth 1 -name 'libfnet_*.so' -exec install -m 755 -t "$prefix/lib/fnet" {} +
for name in libfnet_nccl.so libfnet_python_stand_in.so; do
    object=$(bridge_object "$name")
    [ -z "$object" ] || install -m 755 "$object" "$prefix/lib/fnet/"
done
cp -R "$ROOT/configs" "$prefix/share/fnet/"
grep -E '^(torch|torchvision|pillow)==' "$ROOT/scripts/requirements.txt" >"$prefix/share/fnet/requirements.txt"

(cd / && env -u LD_LIBRARY_PATH "$prefix/bin/fnet-launch" man "$prefix/share/man/man1")
for shell in bash/bash-completion/completions/fnet-launch zsh/zsh/site-functions/_fnet-launch fish/fish/vendor_completions.d/fnet-launch.fish; do
    script=$prefix/share/${shell#*/}
    mkdir -p "${script%/*}"
    "$prefix/bin/fnet-launch" completions "${shell%%/*}" >"$script"
done

# Test the programs from another folder and without the caller's library path.
version=$(cd / && env -u LD_LIBRARY_PATH "$prefix/bin/fnet-launch" --version)
(cd / && env -u LD_LIBRARY_PATH "$prefix/bin/fnet-worker" --version >/dev/null)

say "installed $version"
cat >&2 <<EOF
   programs   $prefix/bin/fnet-launch, $prefix/bin/fnet-worker
   configs    $prefix/share/fnet/configs
   libtorch   $(readlink -f "$ROOT/.libtorch") (not copied; do not remove it)
EOF
case ":$PATH:" in
*":$prefix/bin:"*) ;;
*) printf '   add it to your PATH: export PATH="%s/bin:$PATH"\n' "$prefix" >&2 ;;
esac
