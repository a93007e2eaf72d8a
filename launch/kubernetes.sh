#!/usr/bin/env bash
# Trains on Kubernetes as an indexed Job, one process a pod: fills in launch/kubernetes.yaml and applies it.
#
#   launch/kubernetes.sh [--dry-run] --image=IMAGE --claim=CLAIM --pods=N --gpus=N [--name=ucgm] \
#     -- --config=NAME --workdir=/shared/run [--config.key=value ...]
#
# The image has the checkout as its working folder; the claim is mounted as /shared in every pod; --gpus counts those of
# one pod. For a TPU slice of GKE, in place of --gpus:
#
#   --tpus=4 --tpu-accelerator=tpu-v5-lite-podslice --tpu-topology=4x4
#
# --dry-run prints the manifest and, as comments, what would start in which pod, with CPU devices in place of the
# accelerators; it needs neither kubectl nor a cluster. See docs/many_hosts.md.
set -euo pipefail

for argument in "$@"; do
  case "$argument" in
    *$'\n'* | *$'\r'*) printf 'error: %q: a flag must not hold a line break\n' "$argument" >&2; exit 2 ;;
  esac
done

refuse() { # message
  echo "error: $1" >&2
  exit 2
}

dry="" name=ucgm image="" claim="" pods="" gpus="" tpus="" tpu_accelerator="" tpu_topology=""
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
  case "$1" in
    --dry-run) dry=1 ;;
    --name=* | --image=* | --claim=* | --pods=* | --gpus=* | --tpus=* | --tpu-accelerator=* | --tpu-topology=*)
      key="${1%%=*}"
      key="${key#--}"
      printf -v "${key//-/_}" %s "${1#*=}"
      ;;
    *) refuse "$1: must be a flag of launch/kubernetes.sh, KEY=VALUE; those of ucgm train come after --" ;;
  esac
  shift
done
[ $# -eq 0 ] || shift

check() { # key, value, pattern, what it must be
  [[ "$2" =~ ^$3$ ]] || refuse "$1${2:+=$2}: $4"
}
word='[A-Za-z0-9][-A-Za-z0-9._/:@]*' number='[1-9][0-9]*'
check --name "$name" '[a-z]([-a-z0-9]{0,50}[a-z0-9])?' "must be a short name of a-z, 0-9 and -"
check --image "$image" "$word" "must name the container image, which has the checkout of ucgm_jax"
check --claim "$claim" "$word" "must name the claim of the volume that all pods share"
check --pods "$pods" "$number" "must be the number of pods"
if [ -z "$tpus" ]; then
  check --gpus "$gpus" "$number" "must be the number of GPUs in each pod; or give --tpus"
  [ -z "$tpu_accelerator$tpu_topology" ] || refuse "--tpus: must be given with --tpu-accelerator and --tpu-topology"
else
  check --tpus "$tpus" "$number" "must be the number of TPU chips in each pod"
  [ -z "$gpus" ] || refuse "--gpus=$gpus: must not be given with --tpus=$tpus"
  check --tpu-accelerator "$tpu_accelerator" "$word" "must be GKE's name of the TPU, such as tpu-v5-lite-podslice"
  check --tpu-topology "$tpu_topology" "$number(x$number){1,2}" "must be the shape of the TPU slice, such as 4x4"
  ((${tpu_topology//x/*} == pods * tpus)) ||
    refuse "--tpu-topology=$tpu_topology: must have as many chips as --pods=$pods x --tpus=$tpus"
fi
config="" workdir=""
for flag in "$@"; do
  case "$flag" in
    --config=*) config="$flag" ;;
    --workdir=*) workdir="${flag#*=}" ;;
  esac
done
[ -n "$config" ] || refuse "--config: must name a config, such as digits; it comes after --"
check --workdir "$workdir" '/shared/.+' "must be a folder in /shared, where the claim is mounted; it comes after --"

manifest() { # flags of ucgm train
  local line flag other=TPUs
  [ -z "$tpus" ] || other=GPUs
  while IFS= read -r line; do
    case "$line" in
      "#"* | *"# $other alone"*) continue ;;
      *"<flags>")
        for flag in "$@"; do
          flag="${flag//\$/\$\$}" # Kubernetes puts variables' values in place of $(NAME), and $ in place of $$
          printf "%s'%s'\n" "${line%<flags>}" "${flag//\'/\'\'}"
        done
        continue
        ;;
    esac
    line="${line%% # [GT]PUs alone*}"
    line="${line//<name>/$name}" line="${line//<pods>/$pods}" line="${line//<image>/$image}"
    line="${line//<claim>/$claim}" line="${line//<gpus>/$gpus}" line="${line//<tpus>/$tpus}"
    line="${line//<tpu-accelerator>/$tpu_accelerator}" line="${line//<tpu-topology>/$tpu_topology}"
    echo "$line"
  done <"$(dirname "$0")/kubernetes.yaml"
}

if [ -z "$dry" ]; then
  manifest "$@" | kubectl apply -f -
  exit 0
fi
manifest "$@"
names="$name-0.$name"
for ((index = 1; index < pods; index++)); do names+=",$name-$index.$name"; done
for ((index = 0; index < pods; index++)); do
  # What the pod's process is told: by the command above, or by GKE.
  if [ -z "$tpus" ]; then
    told=("JOB_COMPLETION_INDEX=$index")
    flags=("--coordinator=$name-0.$name:8476" "--process-count=$pods")
  else
    told=("JOB_COMPLETION_INDEX=$index" "TPU_WORKER_ID=$index" "TPU_WORKER_HOSTNAMES=$names")
    flags=()
  fi
  echo "# $name-$index.$name:"
  env "${told[@]}" JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${gpus:-$tpus}" \
    python -m ucgm_jax train ${flags[@]+"${flags[@]}"} "$@" --dry-run | sed 's/^/#   /'
done
