#!/usr/bin/env bash
# REPA-E from scratch on handwritten digits: environment, teacher, training, report.
# About nine minutes on two CPU cores; after an interruption, the same command resumes.
#
#   bash launch/quickstart.sh [WORKDIR] [--config.key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

workdir=runs/digits
case "${1:-}" in
  "" | --*) ;;
  *) workdir=$1 && shift ;;
esac
teacher=$workdir/teacher.safetensors
config=(--config configs/digits.py "--config.teachers.digits.weights=$teacher" "$@")

make_environment .venv requirements.txt
repae=(.venv/bin/python -m repae_jax)
[ -f "$teacher" ] || "${repae[@]}" pretrain-teacher "${config[@]}"
"${repae[@]}" train "${config[@]}" --workdir "$workdir"
"${repae[@]}" report --workdir "$workdir"
echo
echo "Look at  $workdir/report.html  (its pictures are in $workdir/report/)"
