#!/usr/bin/env bash
# Breaks the product on purpose, once for each kind of fault that only a GPU would show, and prints which test on simulated
# devices notices, as the table of docs/testing.md. About two minutes per mutation on a quiet core.
#
#   scripts/sim_mutations.sh [NAME ...]     all of them, or those named
#
# Sources are changed in place and put back, also after Ctrl-C. Exit code 1 if a mutation does not apply any more or goes
# unnoticed.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

wanted=" $* "
rows=()
failures=0
changed=
saved=$(mktemp)
log=$(mktemp)
export OMP_NUM_THREADS=1

restore() {
    # A newer time than that of the mutation's objects, so that cargo builds it again.
    [ -z "$changed" ] || { cat "$saved" >"$changed"; changed=; }
}
trap 'restore; rm -f "$saved" "$log"' EXIT

scripts/sim.sh
tests=$(cargo test --release --workspace --test blackbox --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
[ -x "$tests" ] || die "the black-box tests do not build"

# mutation NAME KIND FILE SUBSTITUTION FILTER: a Perl substitution that must change the file; the tests that must notice.
mutation() {
    local name=$1 kind=$2 file=$3 substitution=$4 filter=$5 result noticed
    [ "$wanted" = "  " ] || case "$wanted" in *" $name "*) ;; *) return 0 ;; esac
    say "$name: $kind"
    cat "$file" >"$saved"
    changed=$file
    perl -0pi -e "$substitution" "$file"
    if cmp -s "$file" "$saved"; then
        result="does not apply to $file" noticed=
        failures=$((failures + 1))
    elif ! cargo build --release --workspace >"$log" 2>&1; then
        result="does not build: $(grep -m 1 '^error' "$log")" noticed=
        failures=$((failures + 1))
    else
        "$tests" "$filter" --test-threads 4 >"$log" 2>&1 || true
        noticed=$(sed -n 's/^test simulated::\(.*\) \.\.\. FAILED$/`\1`/p' "$log" | paste -sd ' ')
        result=$(grep -v 'enqueued here' "$log" | grep -m 1 -oE 'simulated CUDA: .*' | cut -c 17-150 || true)
        [ -n "$result" ] || result=$(grep -m 1 -oE '(missing \["[^]]*|Expected all tensors[^!]*|operators of a step|waits of a step|view size is not compatible|did not end|must have same dtype)' "$log" || true)
        if [ -z "$noticed" ]; then
            result="unnoticed"
            failures=$((failures + 1))
        fi
    fi
    restore
    rows+=("| $kind | $noticed | ${result//|//} |")
    echo "${rows[-1]}"
}

mutation host_tensor "a tensor left on the CPU" crates/model/src/rpn.rs \
    's{let limits = ops::upload\(&(Tensor::f_from_slice\(&limits\)\?\.f_reshape\(\[images, 1, 4\]\)\?), device\)\?;}{let limits = $1;}' \
    simulated::main_job::two_gpus
mutation strided_view "a view of a strided result" crates/model/src/rpn.rs \
    's{&order\.f_reshape\(\[-1\]\)\?}{&order.f_view([-1])?}' \
    simulated::main_job::narrow_types
mutation early_read "a download that is read before its wait" crates/model/src/losses.rs \
    's{f_to_kind\(Kind::Double\)\?\)\?;}{f_to_device_(tch::Device::Cpu, Kind::Double, true, false)?)?;}' \
    simulated::main_job::two_gpus
mutation reused_buffer "a pinned buffer that is used again before its upload is done" crates/model/src/ops.rs \
    's{Ok\(x\.f_to_device_\(device, x\.kind\(\), true, false\)\?\)}{let pinned = if device.is_cuda() { x.f_pin_memory(device)? } else { x.shallow_clone() };\n    let there = pinned.f_to_device_(device, x.kind(), true, false)?;\n    if device.is_cuda() { drop(pinned.shallow_clone().f_zero_()?); }\n    Ok(there)}' \
    simulated::main_job
mutation host_kernel "host code that touches device memory" crates/torch-ext/cpp/nms.cpp \
    's{return b\.is_cpu\(\) \? nms_cpu}{return b.numel() >= 0 ? nms_cpu}' \
    simulated::main_job
mutation wrong_strides "gradients with other strides than their weights" crates/torch-ext/cpp/optim.cpp \
    's{return grad\.strides\(\) == parameter\.strides\(\) \? grad : grad\.as_strided\(parameter\.sizes\(\), parameter\.strides\(\)\);}{return grad;}' \
    simulated::main_job
mutation unwaited_sum "a sum over the ranks that its stream does not wait for" crates/torch-ext/cpp/process_group.cpp \
    's{group\.allreduce\(tensors\)->wait\(\);}{(void)group.allreduce(tensors);}' \
    simulated::main_job::a_job_with_every_setting
mutation missing_abort "collectives that nobody aborts when a peer is lost" crates/distributed/src/world.rs \
    's{Box::new\(move \|\| drop\(breaker\.abort\(\)\)\)}{Box::new(move || drop(Arc::clone(&breaker)))}' \
    simulated::main_job::four_gpus
mutation skipped_collective "a rank that skips a collective" crates/distributed/src/world.rs \
    's{(let started: Vec<Work<._>> = tensors\n\s*\.iter\(\))}{$1\n                .skip(usize::from(self.rank == 1 && tensors.len() > 3))}' \
    simulated::main_job::two_gpus
mutation memory_as_bug "memory that runs out, taken for a bug" crates/torch-ext/cpp/error.cpp \
    's{make_error\(FnetErrorKind::kOutOfMemory, error\.what_without_backtrace\(\)\)}{make_error(fallback, "unknown")}' \
    simulated::faults::memory
mutation one_more_wait "one more wait in each step" crates/model/src/ops.rs \
    's{x\.kind\(\), true, false}{x.kind(), false, false}' \
    simulated::budgets

restore
cargo build --release --workspace >"$log" 2>&1 || die "the product does not build after the mutations were taken back"
echo
echo "| mutation | noticed by | first words |"
echo "| --- | --- | --- |"
printf '%s\n' "${rows[@]}"
[ "$failures" -eq 0 ]
