#!/usr/bin/env bash
# Tests every pair of a Python and a jax version, and records what passed in docs/matrix.jsonl.
#
#   bash launch/matrix.sh                                    # the quick tests, in every pair
#   PYTHONS=3.13 JAXES=0.11 bash launch/matrix.sh            # in one pair
#   bash launch/matrix.sh tests/test_cli.py -m "not slow"    # other arguments go to pytest
#   TORCH=0 bash launch/matrix.sh                            # without torch: skips what needs it
#   RESULTS=runs/matrix.jsonl bash launch/matrix.sh          # records elsewhere
#
# Each pair has an environment of its own, .venv-PYTHON-JAX. A Python is `python3.13` on the PATH, or
# the newest 3.13 of pyenv. docs/matrix.md shows the results; benchmarks/versions.py makes its table.
# The status is 1 if a test failed in any pair.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source launch/environment.sh

results=${RESULTS:-docs/matrix.jsonl}
requirements=(requirements.txt requirements-dev.txt)
if [ "${TORCH:-1}" = 0 ]; then
  export REPAE_WITHOUT_TORCH=1 # tests/helpers/without_torch.py
else
  requirements+=(requirements-torch.txt)
fi
[ $# -gt 0 ] || set -- -m "not slow"

python_of() { # the program of a version such as 3.12
  local candidate
  for candidate in "python$1" "$HOME/.pyenv/versions/$1".*/bin/python; do
    if "$candidate" -c '' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python $1 found: install it, or set PYTHONS to the versions there are" >&2
  return 1
}

run_pair() {
  local python=$1 jax=$2 folder=.venv-$1-$2
  shift 2
  mkdir -p "$folder"
  echo "jax==$jax.*" >"$folder/jax.txt"
  PYTHON=$(python_of "$python") || return 1
  export PYTHON
  make_environment "$folder" "${requirements[@]}" "$folder/jax.txt" || return 1
  rm -f "$folder/tests.xml"
  "$folder/bin/python" -m pytest -n "${TEST_WORKERS:-2}" --junitxml "$folder/tests.xml" "$@"
  local status=$?
  if [ ! -f "$folder/tests.xml" ]; then
    echo "error: pytest wrote no report: nothing is recorded of Python $python and jax $jax" >&2
    return 1
  fi
  "$folder/bin/python" benchmarks/versions.py "$results" --add "$folder/tests.xml" "--selection=$*" || return 1
  return $status
}

status=0
for python in ${PYTHONS:-3.11 3.12 3.13}; do
  for jax in ${JAXES:-0.10 0.11}; do
    [ "$python $jax" != "3.11 0.11" ] || continue # jax 0.11 needs Python 3.12
    echo "== Python $python, jax $jax"
    run_pair "$python" "$jax" "$@" || status=1
  done
done
exit $status
