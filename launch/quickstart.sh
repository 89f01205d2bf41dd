#!/usr/bin/env bash
# REPA-E from scratch: environment, teacher, training, report. After an interruption, the same command resumes.
# On handwritten digits about nine minutes on two CPU cores; with --text on rendered objects with captions,
# where prompts make the images.
#
#   bash launch/quickstart.sh [--text] [WORKDIR] [--config.key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

name=digits
if [ "${1:-}" = --text ]; then
  name=described && shift
fi
workdir=runs/$name
case "${1:-}" in
  "" | --*) ;;
  *) workdir=$1 && shift ;;
esac
teacher=$workdir/teacher.safetensors
config=(--config "configs/$name.py" "--config.teachers.$name.weights=$teacher")
if [ "$name" = described ]; then
  config+=("--config.text_encoder.weights=$workdir/text_encoder")
fi
config+=("$@")

make_environment .venv requirements.txt
repae=(.venv/bin/python -m repae_jax)
if [ "$name" = described ]; then
  if [ ! -f "$workdir/text_encoder/model.safetensors" ]; then
    "${repae[@]}" pretrain-text-encoder "${config[@]}"
  fi
  "${repae[@]}" prepare described:40000 "$workdir/data/train" --resolution 32
  "${repae[@]}" prepare described:1000 "$workdir/data/heldout" --resolution 32 --split heldout
  config+=(--config.data.source=packed "--config.data.path=$workdir/data")
fi
[ -f "$teacher" ] || "${repae[@]}" pretrain-teacher "${config[@]}"
"${repae[@]}" train "${config[@]}" --workdir "$workdir"
"${repae[@]}" report --workdir "$workdir"
if [ "$name" = described ]; then
  "${repae[@]}" evaluate-described --write-prompts "$workdir/prompts.jsonl"
  "${repae[@]}" generate --workdir "$workdir" --output "$workdir/prompted" \
    --prompts "$workdir/prompts.jsonl" --layout geneval
  "${repae[@]}" evaluate-described "$workdir/prompted" --judge "$workdir/judge.safetensors" \
    --output "$workdir/scores.json"
fi
echo
echo "Look at  $workdir/report.html  (its pictures are in $workdir/report/)"
