#!/usr/bin/env bash
# Fills a folder with the wheels of launch/wheels.txt, to be carried to a machine without a network:
#
#   bash launch/wheels.sh FOLDER [--python-version=3.12]
#
# UCGM_PYTHON names the interpreter whose pip fetches them, for its own version unless another is asked for. There:
# UCGM_WHEELS=FOLDER bash launch/gpu.sh
set -euo pipefail
if [ $# -eq 0 ] || [[ "$1" == -* ]]; then
  echo "error: usage: bash launch/wheels.sh FOLDER [--python-version=3.12]" >&2
  exit 2
fi
folder="$1"
shift
"${UCGM_PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder" "$@" \
  --requirement "$(dirname "$0")/wheels.txt" || {
  # A few are published as sources alone: pure Python, built here.
  "${UCGM_PYTHON:-python3}" -m pip wheel --quiet --no-deps --wheel-dir "$folder" --requirement "$(dirname "$0")/wheels.txt"
}
du -sh "$folder"
