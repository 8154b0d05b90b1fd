# Shared by the scripts: messages, and the folder of the repository. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Headline of a step.
say() {
    printf '== %s\n' "$*" >&2
}

# Ends with what is wrong and, on further lines, how to mend it.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 6
}
