#!/usr/bin/env bash
# Makes an environment, checks the style, and runs tests.
#
#   bash launch/test.sh                        # the quick tests
#   bash launch/test.sh --all                  # all tests, as continuous integration does
#   bash launch/test.sh tests/models -k vit    # other arguments go to pytest
#   REPAE_ORIGINAL=/path/to/REPA-E bash launch/test.sh --all    # also against the original's code
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

make_environment .venv-test requirements.txt requirements-{dev,docs,torch}.txt
.venv-test/bin/ruff check .
.venv-test/bin/ruff format --check .
case "${1:-}" in
  "") set -- -m "not slow" ;;
  --all) shift ;;
esac
# Two workers with one compiler thread each use two cores better than one with two.
# A file's tests share a worker: many have a run in common.
exec .venv-test/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --durations 15 "$@"
