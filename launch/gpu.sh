#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: its tests, the speed of the training step, of the sampler and of attention, a
# profile of five steps and what it says, and a training run.
#
#   bash launch/gpu.sh [--published=PATH] [--small]
#
# PATH: a checkout of the published implementation, timed in the same run; needs torch and its requirements. --small:
# narrow networks, and no training run, to try all of it on a processor. The figures land in benchmarks/results/ and
# runs/gpu/. Uses the Python that it is started in where that has all that is needed (UCGM_PYTHON names another), and
# installs nothing there; without a network, UCGM_WHEELS names a folder that launch/wheels.sh has filled.
source "$(dirname "$0")/environment.sh"
ucgm_environment_of_the_image "${UCGM_EXTRAS:-cuda}"
small=""
for argument in "$@"; do if [ "$argument" = --small ]; then small=yes; fi; done
if [ -z "$small" ]; then UCGM_TEST_PLATFORM=cuda python -m pytest -q -m gpu tests/test_gpu.py; fi
python -m benchmarks.train_step --profile=runs/gpu/profile "$@"
python -m benchmarks.sampler "$@"
if [ -n "$small" ]; then python -m benchmarks.attention --small; else python -m benchmarks.attention; fi
if [ -z "$small" ]; then python launch/quickstart.py --out=runs/gpu; fi
