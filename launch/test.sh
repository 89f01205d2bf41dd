#!/usr/bin/env bash
# Makes an environment and runs all tests; arguments go to pytest (default: the whole suite).
#
#   bash launch/test.sh
#   bash launch/test.sh tests/models -k vit
#   REPAE_ORIGINAL=/path/to/REPA-E bash launch/test.sh    # also against the original's code
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

make_environment .venv-test requirements.txt requirements-dev.txt
.venv-test/bin/ruff check .
.venv-test/bin/ruff format --check .
# Two workers with one compiler thread each use two cores better than one with two.
exec .venv-test/bin/python -m pytest -n "${TEST_WORKERS:-2}" --durations 15 "$@"
