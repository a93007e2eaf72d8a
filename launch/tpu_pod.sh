#!/usr/bin/env bash
# Trains on a Cloud TPU pod: runs one command on every host of it, and again for as long as the run is preempted.
#
#   launch/tpu_pod.sh [--dry-run] NAME ZONE -- --config=NAME --workdir=/shared/run [--config.key=value ...]
#
# NAME and ZONE are the TPU's; the checkout has to lie in ~/ucgm_jax on every host (or in UCGM_CHECKOUT), and
# --workdir on a file system that all hosts share. UCGM_PYTHON names the hosts' Python (3.11 or newer; python3).
# --dry-run prints the commands and starts nothing. See docs/many_hosts.md.
set -euo pipefail

for argument in "$@"; do
  case "$argument" in
    *$'\n'* | *$'\r'*) printf 'error: %q: a flag must not hold a line break\n' "$argument" >&2; exit 2 ;;
  esac
done

dry=""
if [ "${1:-}" = "--dry-run" ]; then dry=1; shift; fi
if [ $# -lt 4 ] || [ "$3" != "--" ]; then
  echo "error: usage: launch/tpu_pod.sh [--dry-run] NAME ZONE -- FLAGS OF ucgm train" >&2
  exit 2
fi
name="$1" zone="$2"
shift 3
flags="$(printf '%q ' "$@")"
checkout="${UCGM_CHECKOUT:-~/ucgm_jax}" home=""
if [[ "$checkout" == "~/"* ]]; then home="~/" checkout="${checkout:2}"; fi # which the hosts' shells make their home of
printf -v checkout '%q' "$checkout"
printf -v python '%q' "${UCGM_PYTHON:-python3}"
# --coordinator=auto: JAX asks the TPU's metadata server which hosts there are.
remote="cd $home$checkout && $python -m ucgm_jax train --coordinator=auto ${flags% }"
command=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$remote")

if [ -n "$dry" ]; then
  echo "on every host of $name in $zone:"
  echo "  $remote"
  echo "through:"
  printf ' %q' "${command[@]}"
  echo
  exit 0
fi
while true; do
  code=0
  "${command[@]}" || code=$?
  # 75: preempted and saved. 134 and 255: another host or the connection died. Anything else is for a person to see.
  case "$code" in
    75 | 134 | 255) echo "exit code $code: starting again in 30 s" >&2; sleep 30 ;;
    *) exit "$code" ;;
  esac
done
