#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: its tests, the speed of the training step and of the sampler, and a training run.
#
#   bash launch/gpu.sh [--published=PATH]
#
# PATH: a checkout of the published implementation, timed in the same run; needs torch and its requirements. UCGM_VENV
# names an environment that is already there. The figures land in benchmarks/results/ and runs/gpu/.
source "$(dirname "$0")/environment.sh"
ucgm_environment "${UCGM_EXTRAS:-cuda}"
if ! python -c "import pytest" 2>/dev/null; then
  if [ -n "$ucgm_foreign" ]; then
    echo "error: UCGM_VENV=$UCGM_VENV: has no pytest, and nothing is installed into environments of others" >&2
    exit 2
  fi
  pip install --quiet pytest
fi
UCGM_TEST_PLATFORM=cuda python -m pytest -q -m gpu tests/test_gpu.py
python -m benchmarks.train_step "$@"
python -m benchmarks.sampler "$@"
python launch/quickstart.py --out=runs/gpu
