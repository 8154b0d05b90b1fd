#!/usr/bin/env bash
# A training under Slurm that may take longer than a job: it saves before the time is up or when another job needs the
# nodes, goes back into the queue, and goes on from its newest checkpoint.
#
#   sbatch scripts/slurm/train.sh CONFIG [ARGUMENTS OF train]
#   sbatch --nodes=2 scripts/slurm/train.sh cfg.toml --work-dir /data/runs/a --load-from detector.ckpt
#   sbatch --gpus-per-node=0 scripts/slurm/train.sh cfg.toml --device cpu --nproc 4
#
# docs/clusters/slurm.md explains it. Submit it from a folder that all nodes see, with fnet-launch on PATH, and fit the lines
# below to the cluster. The exit code is that of fnet-launch; only 75, stopped after saving, leads back into the queue.
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
# shell, which would act on it only after srun.
#SBATCH --signal=USR1@120
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch $0 CONFIG [ARGUMENTS OF train]" >&2
    exit 2
fi

# One task on each node, with all CPUs that the job has there, which fnet-launch divides among its workers. A node that is done
# first must not have the others killed while they save.
step=(--ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0)
# Also on the nodes of the other components of a heterogeneous job.
[ -z "${SLURM_HET_SIZE:-}" ] || step+=(--het-group="0-$((SLURM_HET_SIZE - 1))")

# fnet-launch knows from srun's variables how many nodes there are and which one it is. Jobs that share a machine need a port
# each. Only the tasks of this job know the secret; srun passes it on.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
FNET_JOB_SECRET=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export MASTER_ADDR MASTER_PORT FNET_JOB_SECRET

code=0
srun "${step[@]}" fnet-launch train "$@" --auto-resume || code=$?
echo "fnet-launch ended with code $code" >&2

# 138: the signal came before fnet-launch could catch it. A job that had to make room may be on its way back already;
# scontrol then says so.
case $code in 75 | 138) scontrol requeue "$SLURM_JOB_ID" || true ;; esac
exit "$code"
