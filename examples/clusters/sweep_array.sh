#!/usr/bin/env bash
# A sweep with a task of a Slurm array for each seed, then a job that collects what they have stored:
#
#   job=$(sbatch --parsable --array=0-4 examples/clusters/sweep_array.sh sizes.yaml out/sizes)
#   sbatch --dependency="afterok:$job" examples/clusters/sweep_array.sh sizes.yaml out/sizes --run.seeds 0 1 2 3 4
#
# All tasks share the store out/sizes/cache, on a file system with locks. A stage that two of them need is
# computed by one. A requeued task continues where it stopped.
#SBATCH --job-name=w2s-sweep
#SBATCH --nodes=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

config=$1
out=$2
shift 2
folder=$out
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  folder=$out/seed-$SLURM_ARRAY_TASK_ID
  set -- --run.seeds "$SLURM_ARRAY_TASK_ID" "$@"
fi
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
exec python -m w2s_fast sweep --config "$config" --output_dir "$folder" --cache_dir "$out/cache" --quiet "$@"
