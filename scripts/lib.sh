# Shared by the scripts: messages, and the root of the repository. To be sourced.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Prints the headline of a step.
say() {
    printf '== %s\n' "$*" >&2
}

# The newest shared object NAME that the build of the bridge has made; nothing if there is none.
bridge_object() {
    find "$ROOT/target/release/build" -path "*/fnet-torch-ext-*/out/$1" -printf '%T@ %p\n' 2>/dev/null | sort -rn | head -n 1 | cut -d ' ' -f 2-
}

# Exits with an error message and, on further lines, how to fix it.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 6
}
