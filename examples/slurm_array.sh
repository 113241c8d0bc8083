#!/bin/bash
# Features of many videos, as an array of jobs:   sbatch slurm_array.sh VIDEOS FEATURES.h5
# The same line again goes on where it was; so does a task that was preempted, killed or ran out of time.
#SBATCH --job-name=tvnet
#SBATCH --array=0-7
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# For GPUs: #SBATCH --gpus-per-task=1

# How many parts there are. It stays as it is when single tasks are submitted again, as in: sbatch --array=3,5 ...
shards=${SHARDS:-8}

srun tvnet features "$1" -o "$2" --shard "$SLURM_ARRAY_TASK_ID/$shards" --wait
code=$?

# 130: told to stop, by the end of the time or by a job that goes first. SLURM starts the task again.
if [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
