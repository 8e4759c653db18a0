#!/usr/bin/env bash
# sbatch examples/slurm.sh run.yaml [--NAME VALUE ...]
#SBATCH --job-name=w2s
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

config=$1
shift
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# srun assigns the ranks. Exit code 75 means that a process was lost; a requeued job resumes.
code=0
srun --kill-on-bad-exit=1 python -m w2s_fast run --config "$config" "$@" || code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
