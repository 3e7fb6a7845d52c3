#!/usr/bin/env bash
# sbatch --nodes=N --gpus-per-node=8 launch/slurm.sh JOB [FLAGS]: python -m JOB FLAGS on N nodes, a
# process each, with all of its GPUs. Call it from the repository's root; PYTHON is the interpreter,
# .venv/bin/python by default. Two minutes before its time is over, SLURM sends SIGTERM: the training
# saves its step, and the job is queued again, as it is after a node has failed. DRY_RUN=1 prints the
# command instead.
#SBATCH --job-name=hubert_jax
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
[[ $# -ge 1 ]] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }

# Not coordinator=auto: under SLURM that gives each process one GPU.
if [[ -n ${SLURM_JOB_ID-} ]]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    port=$((61440 + SLURM_JOB_ID % 4096))
else
    [[ -n ${DRY_RUN-} ]] || { echo 'error: not within a job of SLURM: call it by sbatch' >&2; exit 2; }
    first=FIRST_NODE port=PORT SLURM_JOB_NUM_NODES=NODES
fi
# shellcheck disable=SC2016  # the number is each process's own
command=(srun --kill-on-bad-exit=0
    bash -c 'exec "$@" --config.distributed.index="$SLURM_PROCID"' job
    "${PYTHON:-.venv/bin/python}" -m "$@"
    --config.distributed.coordinator="$first:$port" --config.distributed.count="$SLURM_JOB_NUM_NODES")
if [[ -n ${DRY_RUN-} ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
"${command[@]}"
status=$?
if [[ $status == 75 || $status == 143 ]]; then # preempted, and saved or before the first step
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
