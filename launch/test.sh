#!/usr/bin/env bash
# Makes the environment and runs the tests; arguments go to pytest.
source "$(dirname "$0")/environment.sh"
ucgm_environment "test"
python -m pytest "$@"
