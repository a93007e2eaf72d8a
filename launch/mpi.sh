#!/usr/bin/env bash
# Trains under Open MPI, one process a host, and again for as long as the run is preempted.
#
#   launch/mpi.sh [--dry-run] HOST,HOST,... -- --config=configs/... --workdir=/shared/run [--config.key=value ...]
#
# The checkout has to lie at the same place on every host. --dry-run prints what would start and starts nothing.
# See docs/many_hosts.md.
set -euo pipefail

dry=""
if [ "${1:-}" = "--dry-run" ]; then dry=1; shift; fi
if [ $# -lt 3 ] || [ "$2" != "--" ]; then
  echo "error: usage: launch/mpi.sh [--dry-run] HOST,HOST,... -- FLAGS OF ucgm_jax.train" >&2
  exit 2
fi
hosts="$1"
shift 2
IFS=, read -ra names <<<"$hosts"
coordinator="${names[0]}:8476"
command=(mpirun --host "${hosts//,/:1,}:1" --map-by node -np "${#names[@]}"
  python -m ucgm_jax.train "--coordinator=$coordinator" "$@")

if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}"
  echo
  for index in "${!names[@]}"; do
    echo "${names[$index]}:"
    OMPI_COMM_WORLD_RANK="$index" OMPI_COMM_WORLD_SIZE="${#names[@]}" \
      python -m ucgm_jax.train "--coordinator=$coordinator" "$@" --dry-run | sed 's/^/  /'
  done
  exit 0
fi
while true; do
  code=0
  "${command[@]}" || code=$?
  # 75: preempted and saved. 134: another host died. Anything else is for a person to see.
  case "$code" in
    75 | 134) echo "exit code $code: starting again in 30 s" >&2; sleep 30 ;;
    *) exit "$code" ;;
  esac
done
