#!/usr/bin/env bash
# From scratch: environment, teacher, training, report. After an interruption, the same command resumes.
# On handwritten digits, minutes on two CPU cores; with --text on rendered objects with captions,
# where prompts make the images (docs/text-to-image.md).
#
#   bash launch/quickstart.sh [--text] [WORKDIR] [--quiet] [--config.key=value ...]
#
# WORKDIR is runs/digits, or with --text runs/described, unless given.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for argument in "$@"; do
  case "$argument" in
    -h | --help) sed -n 's/^# \{0,1\}//; 2,/^set/{/^set/!p;}' launch/quickstart.sh && exit ;;
    --text | --quiet | --config.* | [!-]*) ;;
    *) echo "error: there is no option $argument; --help shows them" >&2 && exit 2 ;;
  esac
done
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
config=configs/$name.py
teacher=${workdir}_teacher.safetensors # runs/digits_teacher.safetensors, where configs/digits.py reads it
[ "$name" = digits ] || teacher=$workdir/teacher.safetensors
keys=("--config.teachers.$name.weights=$teacher")

repae() { .venv/bin/python -m repae_jax "$@"; }

pretrain_teacher() {
  [ -f "$teacher" ] || repae pretrain-teacher --config "$config" "${keys[@]}" "$@"
}

digits() {
  pretrain_teacher "$@"
  repae train --config "$config" "${keys[@]}" "$@" --workdir "$workdir"
  repae report --workdir "$workdir"
}

# A VAE alone; REPA-E, which tunes it; REPA on the latents of the tuned VAE; images of prompts, and their scores.
text_to_image() {
  local encoder=$workdir/text_encoder latents=$workdir/latents prompts=$workdir/prompts.jsonl
  local images=(--config.data.source=packed --config.data.name= "--config.data.path=$workdir/images")
  keys+=("--config.text_encoder.weights=$encoder")
  [ -f "$encoder/model.safetensors" ] || repae pretrain-text-encoder --config "$config" "${keys[@]}" "$@"
  repae prepare described:40000 "$workdir/images/train" --resolution 32
  repae prepare described:1000 "$workdir/images/heldout" --resolution 32 --split heldout
  pretrain_teacher "${images[@]}" "$@"
  repae train --config "$config:vae" "${images[@]}" "$@" --workdir "$workdir/vae"
  repae train --config "$config" "${images[@]}" "${keys[@]}" "--config.tokenizer.weights=$workdir/vae" "$@" \
    --workdir "$workdir/repae"
  keys+=("--config.tokenizer.weights=$workdir/repae")
  if [ ! -f "$latents/manifest.json" ]; then
    repae encode --config "$config:repa" "${images[@]}" "${keys[@]}" "$@" --text --teachers --output "$latents"
  fi
  repae train --config "$config:repa" --config.data.source=latents --config.data.name= \
    "--config.data.path=$latents" "${keys[@]}" "$@" --workdir "$workdir/repa"
  repae evaluate-described --write-prompts "$prompts"
  repae generate --workdir "$workdir/repa" --output "$workdir/prompted" --prompts "$prompts" --layout geneval
  repae evaluate-described "$workdir/prompted" --judge "$workdir/judge.safetensors" --output "$workdir/scores.json"
  repae report --workdir "$workdir/repa" --images "$workdir/images"
  workdir=$workdir/repa
}

make_environment .venv requirements.txt
if [ "$name" = described ]; then text_to_image "$@"; else digits "$@"; fi
echo
echo "Look at  $workdir/report.html  (its pictures are in $workdir/report/)"
echo "All took $((SECONDS / 60)) min $((SECONDS % 60)) s"
