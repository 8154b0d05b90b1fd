#!/usr/bin/env bash
# Checks fnet on a machine with one GPU or more, in less than 8 minutes, and prints a Markdown table for docs/performance.md.
#
#   scripts/gpu_check.sh --pack DIR     on the machine that built fnet: put what the other one needs into DIR
#   scripts/gpu_check.sh [--bin DIR]    on the machine with the GPU: run the checks with the programs of DIR
#                                       (default: this checkout's target/release)
#   scripts/gpu_check.sh --self-test    on any machine: the same checks on simulated devices (scripts/sim.sh), and small
#
# Needed: this checkout's scripts/ and configs/, bash, and `python3` with torch 2.11.0 and torchvision 0.26.0, whose
# libraries are used; no Python runs in fnet itself. FNET_LIBTORCH names another folder of libtorch's libraries.
# Exit code: 0 if every check passed, 1 if one did not, 2 for a
# wrong command line or a machine without what is needed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
helpers=$root/scripts/gpu_check
# Not empty: small configs on simulated devices.
small=
budget=${FNET_GPU_CHECK_SECONDS:-470}
bin=
# How far losses and scores of two devices may lie apart; they are never equal to the bit.
tolerance=1e-3

fail() {
    printf 'gpu_check: %s\n' "$*" >&2
    exit 2
}

# The newest shared object of the bridge with this name.
bridge_object() {
    find "$root/target/release/build" -path '*/fnet-torch-ext-*/out/*' -name "$1" -printf '%T@ %p\n' 2>/dev/null |
        sort -rn | head -n 1 | cut -d ' ' -f 2-
}

pack() {
    local folder=$1 name object size
    mkdir -p "$folder"
    for name in fnet-launch fnet-worker; do
        [ -x "$root/target/release/$name" ] || fail "target/release/$name is missing: run \`cargo build --release\` first"
        strip -o "$folder/$name" "$root/target/release/$name"
    done
    for name in libfnet_nccl.so libfnet_python_stand_in.so; do
        object=$(bridge_object "$name")
        [ -n "$object" ] || fail "$name was not built: the CUDA headers are missing, run \`make setup\`"
        strip --strip-unneeded -o "$folder/$name" "$object"
    done
    git -C "$root" describe --always --dirty 2>/dev/null >"$folder/commit" || echo unknown >"$folder/commit"
    size=$(du -sk "$folder" | cut -f 1)
    [ "$size" -lt 65536 ] || fail "$folder holds $size KiB, more than the 64 MiB that can be carried"
    echo "$folder: $size KiB; run there: scripts/gpu_check.sh --bin $folder"
}

while [ $# -gt 0 ]; do
    case $1 in
    --pack)
        [ $# -eq 2 ] || fail "--pack takes one folder"
        pack "$2"
        exit
        ;;
    --bin)
        [ $# -ge 2 ] || fail "--bin takes a folder"
        bin=$(cd "$2" 2>/dev/null && pwd) || fail "no folder $2"
        shift 2
        ;;
    --self-test)
        small=yes
        shift
        ;;
    -h | --help)
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit
        ;;
    *) fail "unknown argument $1; see --help" ;;
    esac
done

if [ -n "$small" ]; then
    "$root/scripts/sim.sh" || fail "scripts/sim.sh cannot build the simulated devices"
    # shellcheck disable=SC1091 # made by sim.sh
    source "$root/target/sim/env.sh"
    bin=$root/target/sim/bin
    FNET_LIBTORCH=$root/target/sim/torch/lib
    # Convolutions of narrow types take long on the CPU.
    export FNET_SIM_WIDE_HALF=1 OMP_NUM_THREADS=1
    # One GPU, as on most machines that are lent.
    export CUDA_VISIBLE_DEVICES=0
fi
bin=${bin:-$root/target/release}
# The GPUs for two ranks: the first two there are, else the same one twice.
pair=$(printf '%s\n' "${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)}" |
    tr ', ' '\n\n' | awk 'NF && n++ < 2' | paste -sd,)
case $pair in
*,*) backend="NCCL, two GPUs" ;;
*) backend="NCCL, one GPU" ;;
esac
# How long a killed rank may take to end the job: the others break their collectives off within 10 s, and save.
patience=15
for name in fnet-launch fnet-worker; do
    [ -x "$bin/$name" ] || fail "$bin/$name is missing: build, or carry the folder that --pack made and name it with --bin"
done
libraries=${FNET_LIBTORCH:-$(python3 -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')} ||
    fail "python3 cannot import torch: install torch 2.11.0 and torchvision 0.26.0, or set FNET_LIBTORCH"
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
"$bin/fnet-worker" --version >/dev/null ||
    fail "$bin/fnet-worker does not start: libtorch 2.11.0 is needed in LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"

work=$(mktemp -d "${TMPDIR:-/tmp}/fnet-gpu-check.XXXXXX")
started=$SECONDS
rows=()
failures=0

# shellcheck disable=SC2329 # the trap calls it
finish() {
    # Only after an interruption is anything left: `timeout` hands the signal to the launcher, and that ends its workers.
    local file
    for file in "$work"/*.pid; do
        if [ -e "$file" ] && [ "$(cat "/proc/$(cat "$file")/comm" 2>/dev/null)" = timeout ]; then kill "$(cat "$file")"; fi
    done
    if [ "$failures" -eq 0 ] && [ -z "${FNET_GPU_CHECK_KEEP:-}" ]; then rm -rf "$work"; else echo "kept: $work" >&2; fi
}
trap finish EXIT

compare() {
    python3 "$helpers/compare.py" "$@"
}

# record NAME CODE MEASURED: one row; code 0 is a pass.
record() {
    local result=pass
    if [ "$2" -ne 0 ]; then
        result=FAIL
        failures=$((failures + 1))
    fi
    rows+=("| $1 | $result | ${3//$'\n'/; } |")
    printf '%4d s  %-4s  %s: %s\n' $((SECONDS - started)) "$result" "$1" "$3" >&2
}

# launch NAME LIMIT ARGUMENTS...: runs fnet-launch with its output in $work/NAME.{out,err}; its exit code, 124 if it
# took longer than LIMIT seconds or what is left of the budget.
launch() {
    local name=$1 limit=$2 left code=0
    shift 2
    left=$((budget - (SECONDS - started)))
    [ "$left" -gt 0 ] || return 124
    [ "$limit" -lt "$left" ] || limit=$left
    (cd "$work" && exec timeout --kill-after=10 "$limit" "$bin/fnet-launch" "$@" >"$work/$name.out" 2>"$work/$name.err") &
    echo $! >"$work/$name.pid"
    wait $! || code=$?
    rm -f "$work/$name.pid"
    return "$code"
}

# launch_on_two NAME LIMIT ARGUMENTS...: two ranks, on two GPUs as any job has them, with NCCL's transport between GPUs.
# Where there is one GPU only, CUDA_VISIBLE_DEVICES names it twice, each rank gets one of the two entries, and NCCL takes
# them for two hosts.
launch_on_two() {
    local name=$1 limit=$2
    shift 2
    if [ "$backend" = "NCCL, two GPUs" ]; then
        CUDA_VISIBLE_DEVICES=$pair launch "$name" "$limit" --gpus 2 "$@"
    else
        CUDA_VISIBLE_DEVICES=${pair:-0},${pair:-0} FNET_WORKER=$helpers/worker.sh FNET_CHECK_WORKER=$bin/fnet-worker \
            launch "$name" "$limit" --gpus 2 "$@"
    fi
}

launch_on_one() {
    local name=$1 limit=$2
    shift 2
    launch "$name" "$limit" --gpus 1 "$@"
}

# The last words of a command that failed.
last_words() {
    { grep -v '^ *|* *frame #' "$work/$1.err" 2>/dev/null || true; } | tail -n 3 | tr '|\n' '/ ' | cut -c 1-300
}

# Number of training steps that a work folder's log holds of an epoch.
logged_steps() {
    cat "$work/$1"/*.log.json 2>/dev/null | grep -c "\"mode\":\"train\",\"epoch\":$2," || true
}

write_config() {
    local size scales="[[256, 192]]" test_scale="[256, 192]" images=84 val=24 batch=2
    if [ -n "$small" ]; then
        scales="[[96, 64]]" test_scale="[96, 64]" images=42 val=8 batch=1
    fi
    launch data 60 synth --out "$work/data" --images "$images" --val-images "$val" --seed 5 || fail "synth: $(last_words data)"
    size=$(compare classes "$work/data/annotations/instances_train.json")
    # All proposals enter the losses, for a choice among them would differ by a hair's breadth in one score.
    cat >"$work/check.toml" <<CONFIG
base = ["$root/configs/tiny80.toml"]
[model]
num_classes = $size
[model.roi_head.sampler]
count = 4096
[data]
root = "$work/data"
samples_per_gpu = $batch
[data.train]
ann_file = "annotations/instances_train.json"
img_prefix = "train"
[data.val]
ann_file = "annotations/instances_val.json"
img_prefix = "val"
[data.pipeline]
scales = $scales
test_scale = $test_scale
[optimizer]
lr = 1e-5
[checkpoint]
interval = 1
[log]
interval = 1
CONFIG
}

train=(train check.toml --no-validate)

# Two ranks, 21 steps in an epoch: the first epoch is compared with two ranks on the CPU, in the second one is killed, the
# other one breaks its collectives off and saves the last completed step, and the rest is done after --resume.
check_two_ranks() {
    local code=0 measured launcher victim before after
    launch reference 150 --device cpu --nproc 2 --max-restarts 0 "${train[@]}" --work-dir cpu2 --set train.epochs=2 ||
        code=$?
    if [ "$code" -ne 0 ]; then
        record "two ranks on the CPU" 1 "exit $code: $(last_words reference)"
        return
    fi
    launch_on_two two 180 --max-restarts 0 "${train[@]}" --work-dir two --set train.epochs=2 &
    launcher=$!
    while kill -0 "$launcher" 2>/dev/null && [ "$(logged_steps two 2)" -lt 3 ]; do sleep 0.1; done
    code=0
    measured=$(compare losses "$work/two" "$work/cpu2" --least 20 --tolerance "$tolerance" --epoch 1) || code=1
    [ "$code" -eq 0 ] || measured="$measured; $(last_words two)"
    record "two ranks ($backend), 20 steps as with Gloo on the CPU" "$code" "$measured"

    victim=$(worker_of_rank 1)
    if [ -z "$victim" ]; then
        record "kill -9 of rank 1" 1 "no such worker: $(last_words two)"
        wait "$launcher" || true
        return
    fi
    before=$(date +%s%N)
    kill -9 "$victim"
    code=0
    wait "$launcher" || code=$?
    after=$(date +%s%N)
    measured="exit $code after $(((after - before) / 1000000)) ms: $(grep -m 1 'rank 1 failed' "$work/two.err" || last_words two)"
    [ "$code" -eq 4 ] && [ $((after - before)) -lt $((patience * 1000000000)) ] && grep -q 'rank 1 failed.*SIGKILL' "$work/two.err" &&
        code=0 || code=1
    record "kill -9 of rank 1: named within $patience s, exit 4" "$code" "$measured"

    code=0
    measured=$(grep -m 1 -E 'no completed step is lost|holds all completed steps' "$work/two.err") || code=1
    record "the other rank saves the last completed step" "$code" "${measured:-$(last_words two)}"

    code=0
    launch_on_two resumed 120 --max-restarts 0 "${train[@]}" --work-dir two --set train.epochs=2 --resume || code=$?
    if [ "$code" -eq 0 ]; then
        measured=$(compare losses "$work/two" "$work/cpu2" --least 20 --tolerance 5e-3 --epoch 2) || code=1
        [ "$(logged_steps two 2)" -eq "$(logged_steps cpu2 2)" ] || code=1
        measured="$measured, $(logged_steps two 2) lines for $(logged_steps cpu2 2) steps"
    else
        measured="exit $code: $(last_words resumed)"
    fi
    record "resume: no step of the second epoch twice, losses as on the CPU" "$code" "$measured"
}

# Process number of this job's worker of a rank.
worker_of_rank() {
    local process
    for process in /proc/[0-9]*; do
        if [ "$(readlink "$process/exe" 2>/dev/null)" = "$(readlink -f "$bin/fnet-worker")" ] &&
            tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "RANK=$1" &&
            [ "$(readlink "$process/cwd" 2>/dev/null)" = "$(readlink -f "$work")" ]; then
            basename "$process"
            return
        fi
    done
}

# check_amp TYPE: an epoch of two ranks in a narrow type.
check_amp() {
    local amp=$1 code=0 measured
    launch_on_two "$amp" 150 --max-restarts 0 "${train[@]}" --work-dir "$amp" --set train.epochs=1 "train.amp=$amp" ||
        code=$?
    if [ "$code" -eq 0 ]; then
        measured=$(compare finite "$work/$amp" "$work/cpu2" --least 20 --tolerance 0.05) || code=1
        measured="$measured, $(grep -c 'did not update the weights' "$work/$amp/logs/rank_0.log" || true) updates skipped"
    else
        measured="exit $code: $(last_words "$amp")"
    fi
    record "$amp: mean loss of an epoch within 5 % of float32's" "$code" "$measured"
}

check_out_of_memory() {
    local code=0 measured
    if [ -n "$small" ]; then
        FNET_SIM_FAULT=oom@4000 launch_on_one memory 90 --max-restarts 0 "${train[@]}" --work-dir memory || code=$?
    else
        launch_on_one memory 120 --max-restarts 0 train "$root/configs/mask_rcnn_fasternet_s_fpn_1x_coco.toml" \
            --no-validate --work-dir memory --set "data.root=\"$work/data\"" \
            data.train.ann_file=annotations/instances_train.json data.train.img_prefix=train \
            "model.num_classes=$(compare classes "$work/data/annotations/instances_train.json")" \
            data.workers_per_gpu=1 data.samples_per_gpu=128 train.epochs=1 || code=$?
    fi
    measured="exit $code: $(grep -m 1 -o 'The GPU is out of memory: .*' "$work/memory.err" || last_words memory)"
    [ "$code" -eq 4 ] && grep -q 'The GPU is out of memory: lower data.samples_per_gpu' "$work/memory.err" && code=0 || code=1
    record "out of memory: exit 4 and the remedy" "$code" "$measured"
}

# Trains until there is something to find, then compares the detections of both devices.
check_detections() {
    local code=0 measured epochs=12 least=0.3 place=(--device cpu --nproc 2)
    # A few steps find little, but the weak detections of one kind of kernel agree too.
    [ -z "$small" ] || epochs=5 least=0.05
    launch_on_one learn 180 --max-restarts 0 "${train[@]}" --work-dir learn --set optimizer.lr=2e-3 \
        "train.epochs=$epochs" schedule.warmup_iters=20 model.roi_head.sampler.count=128 log.interval=10 || code=$?
    if [ "$code" -eq 0 ]; then
        launch_on_one found 60 test learn/latest.ckpt --format-only --out found.json || code=$?
        launch expected 90 "${place[@]}" test learn/latest.ckpt --format-only --out expected.json || code=$?
    fi
    if [ "$code" -eq 0 ]; then
        measured=$(compare detections "$work/found.json" "$work/expected.json" --tolerance "$tolerance" \
            --least-score "$least") || code=1
    else
        measured="exit $code: $(last_words learn) $(last_words found) $(last_words expected)"
    fi
    record "test: detections as on the CPU" "$code" "$measured"
}

# check_speed NAME ARGUMENTS...: a benchmark's numbers; `--json` goes to stdout.
check_speed() {
    local name=$1 code=0 measured
    shift
    launch_on_one speed 120 "$@" --json || code=$?
    if [ "$code" -eq 0 ]; then
        measured=$(compare number "$work/speed.out") || code=1
    else
        measured="exit $code: $(last_words speed)"
    fi
    record "$name" "$code" "$measured"
}

check_speeds() {
    local config=$root/configs/mask_rcnn_fasternet_s_fpn_1x_coco.toml model="FasterNet-S" batch=2 height=800 width=1344
    local shape=(--shape 800 1280) steps=30 images=105 amp
    if [ -n "$small" ]; then
        config=check.toml model="small model" batch=1 height=192 width=192 shape=(--shape 192 192) steps=1 images=6
    fi
    for amp in off bf16 fp16; do
        check_speed "benchmark train, $model, amp $amp, $batch images of ${height}x$width" benchmark train "$config" \
            --batch "$batch" --shape "$height" "$width" --iters "$steps" --set "train.amp=$amp"
    done
    check_speed "benchmark infer, $model, float32, images of ${shape[1]}x${shape[2]}" benchmark infer "$config" \
        "${shape[@]}" --max-iter "$images"
}

card() {
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 | sed 's/, /, driver /' ||
        echo "unknown"
}

commit() {
    git -C "$root" describe --always --dirty 2>/dev/null || cat "$bin/commit" 2>/dev/null || echo unknown
}

compare self-test >&2 || fail "scripts/gpu_check/compare.py does not work on this machine"
write_config
# TensorFloat-32 rounds the inputs of convolutions to 10 bits: fine for training, not for comparing with the CPU.
export NVIDIA_TF32_OVERRIDE=0
check_two_ranks
check_amp bf16
check_amp fp16
check_detections
unset NVIDIA_TF32_OVERRIDE
check_out_of_memory
check_speeds

echo "Card: $(card). Date: $(date -u +%F). Commit: $(commit). Time: $((SECONDS - started)) s."
echo
echo "| check | result | measured |"
echo "| --- | --- | --- |"
printf '%s\n' "${rows[@]}"
[ "$failures" -eq 0 ]
