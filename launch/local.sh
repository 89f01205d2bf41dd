#!/usr/bin/env bash
# Trains on this machine in several processes, by default one per GPU.
#
#   bash launch/local.sh --config configs/imagenet256_repae_sdvae.py --workdir runs/sdvae
#   PROCESSES=2 bash launch/local.sh --config configs/digits.py --workdir runs/digits
#
# Arguments go to `python -m repae_jax train`. The first process writes to this terminal, the
# others to WORKDIR-process-N.log beside the work directory. If one process dies, the script ends
# all and starts them again from the last checkpoint, through launch/again.sh. (A single
# `python -m repae_jax train` uses all GPUs without a script. Several processes are faster if one
# Python process cannot feed all GPUs.)
set -uo pipefail

python=${PYTHON:-python}
processes=${PROCESSES:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
if [ "$processes" -lt 1 ]; then
  echo "local.sh: no GPU found; set PROCESSES to the number of processes" >&2
  exit 2
fi

if [ "${LOCAL_ONCE:-}" != 1 ]; then
  LOCAL_ONCE=1 PROCESSES=$processes exec bash "$(dirname "${BASH_SOURCE[0]}")/again.sh" \
    bash "${BASH_SOURCE[0]}" "$@"
fi

workdir=run
arguments=("$@")
for ((i = 0; i < $#; i++)); do
  case "${arguments[i]}" in
    --workdir) workdir=${arguments[i + 1]:-run} ;;
    --workdir=*) workdir=${arguments[i]#--workdir=} ;;
  esac
done
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
mkdir -p "$(dirname "$workdir")"

children=()
# shellcheck disable=SC2329
pass_on() { kill -TERM "${children[@]}" 2>/dev/null; }
trap pass_on INT TERM HUP

for ((index = 0; index < processes; index++)); do
  words=(-m repae_jax train "$@" --coordinator "localhost:$port"
    --process-count "$processes" --process-index "$index")
  if command -v nvidia-smi >/dev/null; then
    export CUDA_VISIBLE_DEVICES=$index
  fi
  if [ "$index" -eq 0 ]; then
    "$python" "${words[@]}" &
  else
    "$python" "${words[@]}" --quiet >"$workdir-process-$index.log" 2>&1 &
  fi
  children+=($!)
done

# The status of the first process that fails is the result. The others notice the failure and end by
# themselves, or are killed after a grace period.
result=0
while [ ${#children[@]} -gt 0 ]; do
  sleep 1 &
  wait $! # so that a signal is answered at once
  alive=()
  for child in "${children[@]}"; do
    if kill -0 "$child" 2>/dev/null; then
      alive+=("$child")
      continue
    fi
    wait "$child"
    status=$?
    if [ "$status" -ne 0 ] && [ "$result" -eq 0 ]; then
      result=$status
      deadline=$((SECONDS + ${LOCAL_GRACE:-150}))
    fi
  done
  children=("${alive[@]}")
  if [ "$result" -ne 0 ] && [ "$SECONDS" -ge "$deadline" ]; then
    kill -KILL "${children[@]}" 2>/dev/null
  fi
done
exit "$result"
