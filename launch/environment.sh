# shellcheck shell=bash
# Makes or updates a virtual environment; sourced by the other scripts of this folder.
#
#   make_environment FOLDER REQUIREMENTS...
#
# Uses the first of $PYTHON, python3.12, python3.11, python3.13 and python3 that is 3.11 or newer.

find_python() {
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with venv found; install one, or set PYTHON=/path/to/python" >&2
  return 1
}

make_environment() {
  local folder=$1 python stamp
  shift
  # Skip the installation if the same requirements are installed already.
  stamp=$(cat "$@" pyproject.toml | cksum)
  if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ]; then
    python=$(find_python) || return 1
    echo "installing into $folder with $("$python" --version)"
    "$python" -m venv "$folder" || return 1
    local requirements=()
    for file in "$@"; do requirements+=(-r "$file"); done
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${requirements[@]}" || return 1
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --editable . || return 1
    echo "$stamp" >"$folder/.stamp"
  fi
}
