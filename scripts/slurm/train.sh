#!/usr/bin/env bash
# A training under Slurm that may take longer than a job: it saves before the time is up or when another job needs the
# nodes, goes back into the queue, and goes on from its newest checkpoint.
#
#   sbatch scripts/slurm/train.sh CONFIG [ARGUMENTS OF train]
#   WORK_DIR=/data/runs/a sbatch --nodes=2 scripts/slurm/train.sh cfg.toml --load-from detector.ckpt
#   sbatch --gpus-per-node=0 scripts/slurm/train.sh cfg.toml --device cpu --nproc 4
#
# WORK_DIR   where the job writes to, the same on every node (default: work_dirs/<name of the config>)
#
# Submit it from a folder that all nodes see, with fnet-launch on PATH, and fit the lines below to the cluster. The exit
# code is that of fnet-launch; only 75, stopped after saving, leads back into the queue.
#
#SBATCH --job-name=fnet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Two minutes before the end. Without `B:` the signal goes to the tasks of srun, so to fnet-launch, and not to this
# shell, which would act on it only after srun. `fnet-launch --time-limit 3h50m` does the same without a signal.
#SBATCH --signal=USR1@120
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch $0 CONFIG [ARGUMENTS OF train]" >&2
    exit 2
fi
config=$1
shift
name=${config##*/}
work_dir=${WORK_DIR:-work_dirs/${name%.*}}

# The arguments are also those of the first start, such as --load-from.
train=(train "$config" --work-dir "$work_dir" --auto-resume "$@")

place=(--gpus all)
for argument in "$@"; do
    case $argument in --gpus | --gpus=* | --device | --device=*) place=() ;; esac
done
nodes=${SLURM_JOB_NUM_NODES:-1}
if [ "$nodes" -gt 1 ]; then
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # Only the tasks of this job know it; srun passes it on.
    FNET_JOB_SECRET=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export FNET_JOB_SECRET
    # Jobs that share a machine need a port each.
    place+=(--nnodes "$nodes" --master-addr "$first" --master-port $((20000 + SLURM_JOB_ID % 10000)))
fi

# A node that is done first must not have the others killed while they save. srun does not take over the CPUs of a task
# by itself in every version.
step=(--nodes="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0)
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")

code=0
# shellcheck disable=SC2016 # SLURM_NODEID is that of the task.
srun "${step[@]}" bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' task fnet-launch "${place[@]}" "${train[@]}" || code=$?
echo "fnet-launch ended with code $code" >&2

# A job that had to make room may be on its way back already; scontrol then says so.
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID" || true; fi
exit "$code"
