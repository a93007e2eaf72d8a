# Sourced by the scripts beside it: a Python environment of the project's own in .venv, made once.
# UCGM_PYTHON names the interpreter (3.11 or newer) that it is made with.
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
  # Made anew when the project's metadata change, which stand before the settings of tools; extras are added as they
  # are asked for.
  local requirements
  requirements="$(sed '/^\[tool/,$d' pyproject.toml | cksum)"
  if [ ! -f "$folder/stamp" ] || [ "$(head -n 1 "$folder/stamp")" != "$requirements" ]; then
    echo "installing into $folder with $($python --version)"
    "$python" -m venv --clear "$folder"
    "$folder/bin/pip" install --quiet --upgrade pip
    "$folder/bin/pip" install --quiet --editable .
    echo "$requirements" >"$folder/stamp"
  fi
  if [ -n "$extras" ] && ! grep -qx "$extras" "$folder/stamp"; then
    "$folder/bin/pip" install --quiet --editable ".[$extras]"
    echo "$extras" >>"$folder/stamp"
  fi
  PATH="$PWD/$folder/bin:$PATH"
  [[ "$folder" == /* ]] && PATH="$folder/bin:$PATH"
  export PATH
}
