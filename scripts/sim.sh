#!/usr/bin/env bash
# Simulated CUDA devices, so that the product's own programs run `--gpus N` on a machine without a GPU.
#
#   scripts/sim.sh               builds target/sim; skips what is newer than its sources
#   scripts/sim.sh --test        builds, then runs the simulator's own tests and the black-box tests on it
#   scripts/sim.sh COMMAND ...   builds, then runs a command there: scripts/sim.sh fnet-launch --gpus 2 train configs/demo.toml
#
# A shell of one's own: `. target/sim/env.sh`. The settings are in tests/simulated_cuda/README.md.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

sources=$ROOT/tests/simulated_cuda
out=$ROOT/target/sim
torch=$(readlink -f .libtorch) || die "no .libtorch: run make setup"
[ -d "$torch/lib" ] || die "no libtorch at $torch: run make setup"
mkdir -p "$out"/{bin,build,driver,torch/lib,torchvision}

# stale TARGET SOURCES...: whether the target is missing or older than a source.
stale() {
    local target=$1 source
    shift
    [ -e "$target" ] || return 0
    for source in "$@"; do [ "$source" -nt "$target" ] && return 0; done
    return 1
}

compile() {
    g++ -std=c++17 -O1 -fPIC -fopenmp -fvisibility=hidden -Wall -Wno-unused-parameter -isystem "$torch/include" \
        -isystem "$torch/include/torch/csrc/api/include" -I"$out/build" -I"$sources" -I"$sources/shadow" \
        -Icrates/torch-ext/cpp -Icrates/torch-ext/cpp/gloo_declarations "$@" -L"$torch/lib" -ltorch_cpu -lc10 -ldl -lpthread
}

# shared TARGET SONAME SOURCE [FLAGS...]: a small library of C.
shared() {
    local target=$1 soname=$2 source=$3
    shift 3
    stale "$target" "$source" "$sources/machine.h" || return 0
    cc -O1 -shared -fPIC -o "$target.new" "$source" -Wl,-soname,"$soname" "$@"
    mv "$target.new" "$target"
}

# link SOURCE TARGET: the same file under another path; the worker looks for libtorch_cuda beside the real path of
# libtorch_cpu, which a symbolic link would lead away.
link() {
    [ "$1" -ef "$2" ] || ln -f "$1" "$2" 2>/dev/null || { stale "$2" "$1" && cp -f "$1" "$2"; } || true
}

build() {
    local list=$out/build/operators.inc library=$out/torch/lib/libtorch_cuda.so
    if stale "$list" "$sources/operators.py"; then
        .venv/bin/python "$sources/operators.py" "$list.new"
        mv "$list.new" "$list"
    fi
    if stale "$library" "$list" $(ls "$sources"/*.cpp | grep -v /test_) "$sources"/*.h "$sources"/shadow/torch/csrc/distributed/c10d/*.hpp \
        crates/torch-ext/cpp/{nccl,nccl_unit,error}.cpp crates/torch-ext/cpp/{bridge,process_group}.h; then
        say "building the simulated devices"
        compile -shared "$sources/device_unit.cpp" -o "$library.new" -Wl,-soname,libtorch_cuda.so
        mv "$library.new" "$library"
    fi
    echo "int fnet_sim_empty;" >"$out/build/empty.c.new"
    cmp -s "$out/build/empty.c.new" "$out/build/empty.c" || mv "$out/build/empty.c.new" "$out/build/empty.c"
    shared "$out/torch/lib/libtorch.so" libtorch.so "$out/build/empty.c"
    shared "$out/torchvision/_C.so" _C.so "$out/build/empty.c"
    # fnet_nccl_add is in libtorch_cuda, which this library leads to.
    shared "$out/bin/libfnet_nccl.so" libfnet_nccl.so "$out/build/empty.c" -Wl,--no-as-needed -L"$out/torch/lib" -ltorch_cuda \
        -Wl,--unresolved-symbols=ignore-in-shared-libs
    shared "$out/driver/libcuda.so.1" libcuda.so.1 "$sources/driver.c"
    shared "$out/driver/libnvidia-ml.so.1" libnvidia-ml.so.1 "$sources/nvml.c"
    shared "$out/driver/libnccl.so.2" libnccl.so.2 "$sources/nccl_version.c"
    cp -f "$sources/nvidia-smi" "$out/driver/nvidia-smi"
    for file in "$torch"/lib/lib{torch_cpu,c10}.so "$torch"/lib/libgomp.so.1; do link "$file" "$out/torch/lib/${file##*/}"; done
    ln -sfn "$(dirname "$torch")/nvidia" "$out/nvidia"
    cat >"$out/env.sh" <<'ENV'
# Sourced: the programs of target/sim/bin see simulated GPUs.
FNET_SIM=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
export FNET_SIM LD_LIBRARY_PATH=$FNET_SIM/torch/lib:$FNET_SIM/driver PATH=$FNET_SIM/bin:$FNET_SIM/driver:$PATH
ENV
    programs
}

# The product's programs, as they are, beside the stand-in for its NCCL part.
programs() {
    local program stand_in
    for program in fnet-launch fnet-worker; do
        [ ! -x "target/release/$program" ] || link "$ROOT/target/release/$program" "$out/bin/$program"
    done
    stand_in=$(bridge_object libfnet_python_stand_in.so)
    [ -z "$stand_in" ] || link "$stand_in" "$out/bin/libfnet_python_stand_in.so"
}

build_test() {
    local program=$out/build/test_device
    stale "$program" "$sources/test_device.cpp" "$out/torch/lib/libtorch_cuda.so" || return 0
    say "building the simulator's own tests"
    compile -O0 "$sources/test_device.cpp" -o "$program" -L"$out/torch/lib" -Wl,--no-as-needed -ltorch_cuda -Wl,-rpath,"$torch/lib"
}

build
case ${1:-} in
'') ;;
--test)
    build_test
    say "the simulator's own tests"
    (. "$out/env.sh" && OMP_NUM_THREADS=1 "$out/build/test_device")
    ;;
*)
    # shellcheck disable=SC1091 # written above
    . "$out/env.sh"
    exec "$@"
    ;;
esac
