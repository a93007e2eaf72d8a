#!/usr/bin/env bash
# Trains under Open MPI, one process a host, and again for as long as the run is preempted.
#
#   launch/mpi.sh [--dry-run] HOST,HOST,... -- --config=NAME --workdir=/shared/run [--config.key=value ...]
#
# The checkout has to lie at the same place on every host. --dry-run prints what would start and starts nothing.
# See docs/many_hosts.md.
set -euo pipefail

for argument in "$@"; do
  case "$argument" in
    *$'\n'* | *$'\r'*) printf 'error: %q: a flag must not hold a line break\n' "$argument" >&2; exit 2 ;;
  esac
done

dry=""
if [ "${1:-}" = "--dry-run" ]; then dry=1; shift; fi
if [ $# -lt 3 ] || [ "$2" != "--" ]; then
  echo "error: usage: launch/mpi.sh [--dry-run] HOST,HOST,... -- FLAGS OF ucgm train" >&2
  exit 2
fi
hosts="$1"
shift 2
IFS=, read -ra names <<<"$hosts"
coordinator="${names[0]}:8476"
# A process uses all cores of its host: mpirun would tie it to one of them. PATH: the same Python on every host.
command=(mpirun --host "${hosts//,/:1,}:1" --map-by node --bind-to none -x PATH -np "${#names[@]}"
  python -m ucgm_jax train "--coordinator=$coordinator" "$@")

if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}"
  echo
  for index in "${!names[@]}"; do
    echo "${names[$index]}:"
    OMPI_COMM_WORLD_RANK="$index" OMPI_COMM_WORLD_SIZE="${#names[@]}" \
      python -m ucgm_jax train "--coordinator=$coordinator" "$@" --dry-run | sed 's/^/  /'
  done
  exit 0
fi
# Asked to stop, mpirun would kill after two seconds; but it hands SIGUSR1 on to every process, which then saves.
stopped="" child=""
trap 'trap "" TERM; stopped=1; [ -z "$child" ] || kill -USR1 "$child" || true' TERM
while [ -z "$stopped" ]; do
  "${command[@]}" &
  child=$! code=0
  wait "$child" || code=$?
  if [ -n "$stopped" ]; then code=0; wait "$child" || code=$?; fi # the signal ended the first wait
  child=""
  # 75: preempted and saved. 134: another host died. Anything else is for a person to see.
  case "$code:$stopped" in
    75: | 134:) echo "exit code $code: starting again in 30 s" >&2; sleep 30 ;;
    *) exit "$code" ;;
  esac
done
exit 75
