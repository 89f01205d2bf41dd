#!/usr/bin/env bash
# Builds the site of the documents into site/, with warnings as errors.
#
#   bash launch/docs.sh                              # open site/index.html
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

make_environment .venv-docs requirements-docs.txt
exec .venv-docs/bin/python -m mkdocs build --strict
