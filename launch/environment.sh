# shellcheck shell=bash
# Makes or updates a virtual environment; sourced by the other scripts of this folder.
#
#   make_environment FOLDER REQUIREMENTS...
#
# Uses the first of $PYTHON, python3.12, python3.11, python3.13 and python3 that is 3.11 or newer.
# Installs with uv where it is on the PATH, else with pip; INSTALLER=pip or INSTALLER=uv chooses.

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

# The installer for these requirements files. uv reads none of pip's settings. Where those name a
# CPU build of torch, uv would install the CUDA build, with 3 GB of NVIDIA's libraries.
find_installer() {
  if [ -n "${INSTALLER:-}" ]; then
    echo "$INSTALLER"
  elif command -v uv >/dev/null 2>&1 && ! grep -qs '^torch' "$@"; then
    echo uv
  else
    echo pip
  fi
}

make_environment() {
  local folder=$1 python stamp installer
  shift
  # Skip the installation if the same requirements are installed already.
  stamp=$(cat "$@" pyproject.toml setup.py | cksum)
  if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ]; then
    python=$(find_python) || return 1
    installer=$(find_installer "$@")
    echo "installing into $folder with $("$python" --version) and $installer: this takes a minute or more"
    local requirements=() install
    for file in "$@"; do requirements+=(-r "$file"); done
    # Python keeps the bytecode of a module at its first import, unless PYTHONDONTWRITEBYTECODE is set; compiling
    # all modules now would take half of the installation.
    if [ "$installer" = uv ]; then
      # --seed: with pip, for all that is installed later, as `python -m venv` does
      uv venv --quiet --seed --allow-existing --python "$python" "$folder" || return 1
      install=(uv pip install --quiet --python "$folder/bin/python")
      [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || requirements+=(--compile-bytecode)
    else
      "$python" -m venv "$folder" || return 1
      install=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
      [ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || requirements+=(--no-compile)
    fi
    if ! { "${install[@]}" "${requirements[@]}" && "${install[@]}" --no-deps --editable .; }; then
      [ "$installer" = pip ] || echo "error: uv could not install; INSTALLER=pip uses pip" >&2
      return 1
    fi
    echo "$stamp" >"$folder/.stamp"
  fi
}
