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
        [ -n "$result" ] || result=$(grep -m 1 -oE '(missing \["[^]]*|Expected all tensors[^!]*|operators of a step|waits of a step|view size is not compatible|did not end|must have same dtype|[a-z_]+ does not have a deterministic implementation)' "$log" || true)
        [ -n "$result" ] || result=$(grep -m 1 -oE 'error: .{10,130}' "$log" || true)
        if [ -z "$noticed" ]; then
            result="unnoticed"
            failures=$((failures + 1))
        fi
    fi
    restore
    rows+=("| $kind | $noticed | ${result//|//} |")
    echo "${rows[-1]}"
}

mutation host_tensor "a tensor left on the CPU" crates/model/src/pack.rs \
    's{upload\(&self\.bytes, device, Lane}{upload(&self.bytes, Device::Cpu, Lane}' \
    simulated::main_job::two_gpus
mutation strided_view "a view of a strided result" crates/model/src/mask_head.rs \
    's{logits\.f_reshape\(\[rois, 2 \* height, 2 \* width\]\)}{logits.f_view([rois, 2 * height, 2 * width])}' \
    simulated::main_job::ctrl_c
mutation one_more_wait "one more wait in each step" crates/model/src/pack.rs \
    's#Ok\(Sent \{ bytes#torch_ext::cuda::wait(device)?;\n        Ok(Sent { bytes#' \
    simulated::budgets
mutation missing_abort "collectives that nobody aborts when a peer is lost" crates/distributed/src/communicator.rs \
    's{Box::new\(move \|\| breaker\.begin\(None\)\)}{Box::new(move || drop(Arc::clone(&breaker)))}' \
    simulated::lost_ranks::a_survivor
mutation skipped_collective "a rank that skips a collective" crates/distributed/src/communicator.rs \
    's{(let started: Vec<Work<._>> = tensors\n\s*\.iter\(\))}{$1\n                .skip(usize::from(self.rank == 1 && tensors.len() > 3))}' \
    simulated::main_job::two_gpus
mutation early_read "a download that is read before its wait" crates/torch-ext/src/cuda/stream.rs \
    's{copied\.wait\(\)\?;}{let _ = copied;}' \
    simulated::main_job::two_gpus
mutation host_kernel "host code that touches device memory" crates/torch-ext/src/cuda/stream.rs \
    's{\(self\.staging\.data_ptr\(\)\.cast::<u8>\(\), host}{(tensor.data_ptr().cast::<u8>(), host}' \
    simulated::main_job::four_gpus
mutation wrong_strides "gradients in another order than their weights" crates/torch-ext/cpp/block.cpp \
    's{weight\.is_contiguous\(\) \? grad\.t\(\)\.mm\(x\) : x\.t\(\)\.mm\(grad\)\.t\(\)}{grad.t().mm(x)}' \
    simulated::budgets
mutation reused_buffer "a pinned buffer that is used again before its upload is done" crates/torch-ext/cpp/transfer.cpp \
    's{buffer\.copied\.record\(stream\);}{buffer.copied.record(stream);\n      std::memset(buffer.bytes.mutable_data_ptr(), 0, static_cast<size_t>(count));}' \
    simulated::main_job::two_gpus
mutation unwaited_sum "a sum over the ranks that its stream does not wait for" crates/torch-ext/cpp/process_group.cpp \
    's{group\.allreduce\(tensors\)->wait\(\);}{(void)group.allreduce(tensors);}' \
    simulated::main_job::a_job_with_every_setting
mutation memory_as_bug "memory that runs out, taken for a bug" crates/torch-ext/cpp/error.cpp \
    's{make_error\(FnetErrorKind::kOutOfMemory, error\.what_without_backtrace\(\)\)}{make_error(fallback, "unknown")}' \
    simulated::faults::memory
mutation wrong_device "a thread on a device that is not its rank's" crates/distributed/src/device.rs \
    's{cuda::set_device\(index\)\?;}{cuda::set_device(0)?;}' \
    simulated::machine::ranks
mutation unrecorded_use "memory that is freed while another stream uses it" crates/torch-ext/cpp/transfer.cpp \
    's{target\.record_stream\(current\);}{}' \
    simulated::main_job::two_gpus
mutation missing_kernel "an operator without a kernel for GPUs" crates/model/src/rpn.rs \
    's{rectify\(&hidden\)\?;}{rectify(&hidden)?;\n        drop(hidden[0].f_to_mkldnn(Kind::Float)?);}' \
    simulated::main_job::two_gpus
mutation undetermined "an operator without a deterministic form" crates/model/src/losses.rs \
    's{(let sum = scores\.f_cross_entropy_loss)}{drop(scores.f_cumsum(0, Kind::Float)?);\n    $1}' \
    simulated::main_job::deterministic
mutation old_card "a card that the wheel has no kernels for" crates/torch-ext/src/cuda/driver.rs \
    's{map\(\|index\| capability\(&library, index\)\)}{map(|_| None)}' \
    simulated::machine
mutation broken_card "a broken card, taken for a bug" crates/torch-ext/src/device_fault.rs \
    's{(?<=\D)214(?=, "cudaErrorECC)}{9214}' \
    simulated::faults::a_broken

restore
cargo build --release --workspace >"$log" 2>&1 || die "the product does not build after the mutations were taken back"
echo
echo "| mutation | noticed by | first words |"
echo "| --- | --- | --- |"
printf '%s\n' "${rows[@]}"
[ "$failures" -eq 0 ]
