#!/usr/bin/env bash
#SBATCH --job-name=ucgm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# Trains under SLURM, one process a node with all of its GPUs.
#
#   sbatch --nodes=4 launch/slurm.sh --config=NAME --workdir=/shared/run [--config.key=value ...]
#   launch/slurm.sh --dry-run NODES --config=... --workdir=...
#
# Two minutes before its time is up, and when it is preempted, the job gets SIGTERM, saves, exits with 75 and is queued
# again. --dry-run prints what would start and starts nothing. See docs/many_hosts.md.
set -uo pipefail

for argument in "$@"; do
  case "$argument" in
    *$'\n'* | *$'\r'*) printf 'error: %q: a flag must not hold a line break\n' "$argument" >&2; exit 2 ;;
  esac
done

# One process that fails takes the others with it. Since Slurm 22.05 srun may not take over the job's --cpus-per-task.
command=(srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}
  python -m ucgm_jax train)

if [ "${1:-}" = "--dry-run" ]; then
  nodes="${2:-}"
  if ! [[ "$nodes" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: --dry-run: must be followed by the number of nodes" >&2
    exit 2
  fi
  shift 2
  echo "in a job of $nodes nodes with one task each:"
  printf ' %q' "${command[@]}" "$@"
  echo
  for ((index = 0; index < nodes; index++)); do
    echo "node $index:"
    SLURM_JOB_ID=1 SLURM_STEP_NODELIST="node0,..." SLURM_NTASKS="$nodes" SLURM_PROCID="$index" \
      python -m ucgm_jax train "$@" --dry-run | sed 's/^/  /' || exit "${PIPESTATUS[0]}"
  done
  exit 0
fi

cd "${SLURM_SUBMIT_DIR:-.}"
"${command[@]}" "$@" # --signal reaches the steps, not this shell
code=$?
# 75: preempted and saved. 134: another host died.
if [ "$code" -eq 75 ] || [ "$code" -eq 134 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
