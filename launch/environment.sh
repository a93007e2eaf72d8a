# Sourced by the scripts beside it: a Python environment of the project's own in .venv, made once.
# UCGM_PYTHON names the interpreter (3.11 or newer) that it is made with, UCGM_VENV another folder for it. A folder that
# is there already is only made anew if these scripts made it; an environment that somebody else made is used as it is,
# and nothing is installed into it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ucgm_environment() { # extras
  local extras="$1" folder="${UCGM_VENV:-.venv}" python="${UCGM_PYTHON:-}"
  if [ -z "$python" ]; then
    for candidate in python3.12 python3.11 python3.13 python3; do
      if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python="$candidate"
        break
      fi
    done
  fi
  if [ -z "$python" ]; then
    echo "error: UCGM_PYTHON: must name a Python of version 3.11 or newer; none was found" >&2
    exit 2
  fi
  ucgm_foreign=""
  if [ -e "$folder/stamp" ]; then
    # The first line of ours is a checksum, or says that the environment was never finished.
    if [ ! -f "$folder/pyvenv.cfg" ] || ! head -n 1 "$folder/stamp" | grep -qxE '[0-9]+ [0-9]+|unfinished'; then
      echo "error: UCGM_VENV=$folder: holds something else than an environment of these scripts" >&2
      exit 2
    fi
  elif [ -f "$folder/pyvenv.cfg" ] && [ -x "$folder/bin/python" ]; then
    echo "using the environment $folder as it is" >&2
    ucgm_foreign=1
    ucgm_path "$folder"
    return
  elif [ -e "$folder" ] && { [ ! -d "$folder" ] || [ -n "$(ls -A "$folder")" ]; }; then
    echo "error: UCGM_VENV=$folder: is there and no Python environment; name another folder or remove it" >&2
    exit 2
  fi
  # Made anew when the project's metadata change, which stand before the settings of tools; extras are added as they
  # are asked for.
  local requirements
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
  ucgm_path "$folder"
}

ucgm_path() { # folder of an environment, whose programs come first from now on
  PATH="$(cd "$1/bin" && pwd):$PATH"
  export PATH
}
