#!/usr/bin/env bash
# Trains a multi-step model on real digits, tunes it to one and two steps, and leaves runs/quickstart/samples.png and
# results.json. Needs Python 3.11 or newer and nothing else; arguments go to launch/quickstart.py.
source "$(dirname "$0")/environment.sh"
ucgm_environment ""
python launch/quickstart.py "$@"
