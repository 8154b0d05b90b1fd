#!/usr/bin/env bash
# demo.sh [SEED]: generates images, trains a small Mask R-CNN with two workers on the CPU, evaluates it on other images,
# and draws the detections. A second run resumes the first.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

seed=${1:-0}
case $seed in
'' | *[!0-9]*) die "the seed is \"$seed\", but must be a whole number" "Example: make demo SEED=1" ;;
esac
data=data/synth-demo-$seed
work=work_dirs/demo
[ "$seed" = 0 ] || work=work_dirs/demo-$seed
launch=target/release/fnet-launch
started=$SECONDS
# The epoch of the first checkpoint, see configs/demo.toml.
EARLY=4

# The demo has its own data, and one thread for each of its two workers.
unset FNET_DATA_ROOT
export OMP_NUM_THREADS=1

say "1 of 3: generating images"
"$launch" synth --out "$data" --seed "$seed"

# Draws detections of the first checkpoint on one image while training continues.
paint_early() {
    local checkpoint=$work/epoch_$EARLY.ckpt image
    until [ -e "$checkpoint" ]; do sleep 0.5; done
    image=$(find "$data/val" -type f | sort | sed -n 1p)
    "$launch" -q --device cpu --nproc 1 predict "$checkpoint" "$image" --out "$work/early" >"$work/early.log" 2>&1 || return 0
    say "after $((SECONDS - started)) s: detections of epoch $EARLY are in $work/early/${image##*/}"
}

say "2 of 3: training with two workers on the CPU"
resume=()
[ -e "$work/latest.ckpt" ] && resume=(--resume)
if [ ${#resume[@]} -eq 0 ]; then
    paint_early &
    trap 'kill $! 2>/dev/null || true' EXIT
fi
"$launch" --device cpu --nproc 2 train configs/demo.toml --work-dir "$work" --seed "$seed" \
    "${resume[@]}" --set "data.root=$data"

say "3 of 3: evaluating on images that were not used for training"
"$launch" --device cpu --nproc 2 test "$work/latest.ckpt" --metrics "$work/metrics.json" --show-dir "$work/painted"

cat >&2 <<EOF

done in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s
   checkpoint    $work/latest.ckpt
   log           $(ls -t "$work"/*.log | head -n 1)
   TensorBoard   $work/tensorboard   (.venv/bin/tensorboard --logdir work_dirs)
   metrics       $work/metrics.json
   images        $work/painted
EOF
