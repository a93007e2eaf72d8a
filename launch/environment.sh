# Sourced by the scripts beside it: a Python environment of the project's own in .venv, made once.
# UCGM_PYTHON names the interpreter (3.11 or newer) that it is made with, UCGM_VENV another folder for it. A folder that
# is there already is only made anew if these scripts made it; an environment that somebody else made is used as it is,
# and nothing is installed into it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What the project imports, beside JAX's own needs. tensorflow_datasets is for data sets of images alone.
UCGM_MODULES="jax flax optax orbax.checkpoint ml_collections clu grain safetensors sklearn PIL tensorboardX flatbuffers"

ucgm_missing() { # python modules...: prints those of the modules that this interpreter does not find
  "$1" - "${@:2}" <<'PYTHON'
import importlib.util, sys
def found(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
print(*[name for name in sys.argv[1:] if not found(name)])
PYTHON
}

ucgm_python() { # prints the interpreter that environments are made with
  local candidate
  for candidate in ${UCGM_PYTHON:-python3.12 python3.11 python3.13 python3}; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: UCGM_PYTHON: must name a Python of version 3.11 or newer; none was found" >&2
  exit 2
}

ucgm_enter() { # folder
  PATH="$(cd "$1" && pwd)/bin:$PATH"
  export PATH
}

ucgm_environment() { # extras
  local extras="$1" folder="${UCGM_VENV:-.venv}" python requirements missing
  if [ -e "$folder/stamp" ]; then
    # The first line of ours is a checksum, or says that the environment was never finished.
    if [ ! -f "$folder/pyvenv.cfg" ] || ! head -n 1 "$folder/stamp" | grep -qxE '[0-9]+ [0-9]+|unfinished'; then
      echo "error: UCGM_VENV=$folder: holds something else than an environment of these scripts" >&2
      exit 2
    fi
  elif [ -f "$folder/pyvenv.cfg" ] && [ -x "$folder/bin/python" ]; then
    missing="$(ucgm_missing "$folder/bin/python" $UCGM_MODULES)"
    if [ -n "$missing" ]; then
      echo "error: UCGM_VENV=$folder: was not made here and lacks $missing; it is left as it is" >&2
      exit 2
    fi
    echo "using the environment $folder as it is" >&2
    ucgm_enter "$folder"
    return
  elif [ -e "$folder" ] && { [ ! -d "$folder" ] || [ -n "$(ls -A "$folder")" ]; }; then
    echo "error: UCGM_VENV=$folder: is there and no Python environment; name another folder or remove it" >&2
    exit 2
  fi
  python="$(ucgm_python)"
  # Made anew when the project's metadata change, which stand before the settings of tools; extras are added as they
  # are asked for.
  requirements="$(sed '/^\[tool/,$d' pyproject.toml | cksum)"
  if [ ! -f "$folder/stamp" ] || [ "$(head -n 1 "$folder/stamp")" != "$requirements" ]; then
    echo "installing into $folder with $($python --version)"
    "$python" -m venv --clear "$folder"
    echo unfinished >"$folder/stamp"
    "$folder/bin/pip" install --quiet --upgrade pip
    "$folder/bin/pip" install --quiet --editable .
    echo "$requirements" >"$folder/stamp"
  fi
  if [ -n "$extras" ] && ! grep -qx "$extras" "$folder/stamp"; then
    "$folder/bin/pip" install --quiet --editable ".[$extras]"
    echo "$extras" >>"$folder/stamp"
  fi
  ucgm_enter "$folder"
}

# For machines whose image has JAX for its GPU. Uses the environment that it is started in where that has everything,
# and installs nothing there. Where something is missing and UCGM_WHEELS names a folder of wheels (launch/wheels.sh
# fills one), puts what is missing beside it into .venv-wheels, without a network; else the project's own environment.
ucgm_environment_of_the_image() { # extras
  local extras="$1" folder="${UCGM_VENV:-.venv-wheels}" python="${UCGM_PYTHON:-python3}" missing
  if [ -z "${UCGM_VENV:-}" ] && command -v "$python" >/dev/null; then
    missing="$(ucgm_missing "$python" $UCGM_MODULES pytest)"
    if [ -z "$missing" ]; then
      UCGM_FOUND="$(command -v "$python")"
      echo "using $UCGM_FOUND"
      python() { "$UCGM_FOUND" "$@"; } # an image may have python3 alone
      return
    fi
    echo "$(command -v "$python") lacks $missing"
  fi
  if [ -z "${UCGM_WHEELS:-}" ]; then
    ucgm_environment "$extras"
    return
  fi
  # Only what the image lacks: its own versions go with its GPU. UCGM_WHEELS has all that those need.
  if [ ! -f "$folder/stamp" ]; then
    if [ -e "$folder" ]; then
      echo "error: UCGM_VENV=$folder: must be a folder that is not there yet; it was not made here" >&2
      exit 2
    fi
    local lacking
    lacking="$("$python" - "$UCGM_WHEELS" <<'PYTHON'
import importlib.metadata, pathlib, re, sys
have = {re.sub(r"[-_.]+", "_", found.name).lower() for found in importlib.metadata.distributions()}
wheels = sorted(pathlib.Path(sys.argv[1]).glob("*.whl"))
print(*[wheel for wheel in wheels if re.sub(r"[-_.]+", "_", wheel.name.split("-")[0]).lower() not in have], sep="\n")
PYTHON
)"
    if [ -z "$lacking" ]; then
      echo "error: UCGM_WHEELS=$UCGM_WHEELS: must be a folder that launch/wheels.sh has filled" >&2
      exit 2
    fi
    mapfile -t lacking <<<"$lacking"
    "$python" -m pip install --quiet --no-index --no-deps --target="$folder" "${lacking[@]}"
    touch "$folder/stamp"
  fi
  UCGM_FOUND="$(command -v "$python")"
  python() { "$UCGM_FOUND" "$@"; }
  PYTHONPATH="$(cd "$folder" && pwd)${PYTHONPATH:+:$PYTHONPATH}"
  export PYTHONPATH
  missing="$(ucgm_missing "$python" $UCGM_MODULES pytest)"
  if [ -n "$missing" ]; then
    echo "error: UCGM_WHEELS=$UCGM_WHEELS: lacks $missing; see launch/wheels.txt" >&2
    exit 2
  fi
}
