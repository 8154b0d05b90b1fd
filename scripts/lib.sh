# Shared by the scripts: messages, and the root of the repository. To be sourced.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Prints the headline of a step.
say() {
    printf '== %s\n' "$*" >&2
}

# Exits with an error message and, on further lines, how to fix it.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 6
}
