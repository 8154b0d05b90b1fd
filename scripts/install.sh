#!/usr/bin/env bash
# install.sh PREFIX: the programs in PREFIX/bin, what they load in PREFIX/lib/fnet, the configs in PREFIX/share/fnet.
# libtorch (5 GB) is not copied: the programs find it in this checkout's .venv, which must stay.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

[ $# -eq 1 ] && [ -n "$1" ] || die "the folder to install into is missing" "Say for example: make install PREFIX=~/fnet"
# make does not expand a tilde.
prefix=${1/#\~/$HOME}
mkdir -p "$prefix" || die "cannot create $prefix" "Choose a folder of your own, or run the command with sudo."
prefix=$(cd "$prefix" && pwd)
built=$ROOT/target/release

install -d "$prefix/bin" "$prefix/lib/fnet" "$prefix/share/fnet"
install -m 755 "$built/fnet-launch" "$built/fnet-worker" "$prefix/bin/"
# Parts of the bridge that are loaded only when they are needed.
find "$built" -maxdepth 1 -name 'libfnet_*.so' -exec install -m 755 -t "$prefix/lib/fnet" {} +
cp -R "$ROOT/configs" "$prefix/share/fnet/"

# From another folder and without the caller's library path, as a user would.
version=$(cd / && env -u LD_LIBRARY_PATH "$prefix/bin/fnet-launch" --version)
(cd / && env -u LD_LIBRARY_PATH "$prefix/bin/fnet-worker" --version >/dev/null)

say "installed $version"
cat >&2 <<EOF
   programs   $prefix/bin/fnet-launch, $prefix/bin/fnet-worker
   configs    $prefix/share/fnet/configs
   libtorch   $(readlink -f "$ROOT/.libtorch") (not copied: keep it)
EOF
case ":$PATH:" in
*":$prefix/bin:"*) ;;
*) printf '   add it to your PATH: export PATH="%s/bin:$PATH"\n' "$prefix" >&2 ;;
esac
