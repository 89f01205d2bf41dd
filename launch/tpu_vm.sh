#!/usr/bin/env bash
# Trains on a Cloud TPU slice from queued resources: requests the slice, installs, trains, and
# requests it again after a preemption.
#
#   NAME=repae ZONE=us-east5-b TYPE=v6e-64 RUNTIME=v2-alpha-tpuv6e BUCKET=my-bucket \
#       bash launch/tpu_vm.sh train --config configs/imagenet256_repae_sdvae.py \
#       --workdir /mnt/bucket/runs/sdvae --config.mesh.fsdp=8
#   NAME=repae ZONE=us-east5-b bash launch/tpu_vm.sh delete
#
# `train` does all of this and can be stopped and repeated at any time; its arguments go to
# `python -m repae_jax train` on every host. SPOT=0 requests capacity that is not preempted.
# BUCKET is mounted at /mnt/bucket on every host: give it a hierarchical namespace (gcloud storage
# buckets create --enable-hierarchical-namespace), in which renaming a folder is atomic. The hosts
# run the code of the git repository's HEAD.
set -euo pipefail

need() { # checks that variables are set
  local variable missing=()
  for variable in "$@"; do
    [ -n "${!variable:-}" ] || missing+=("$variable")
  done
  [ ${#missing[@]} -eq 0 ] && return
  echo "tpu_vm.sh: set ${missing[*]}, see the head of this file" >&2
  exit 2
}
node=${NAME:-}-node

queued() { gcloud compute tpus queued-resources "$@" --zone "$ZONE"; }

on_all() {
  gcloud compute tpus tpu-vm ssh "$node" --zone "$ZONE" --worker all --command "$1"
}

state() {
  queued describe "$NAME" --format 'value(state.state)' 2>/dev/null || echo ABSENT
}

create() {
  local spot=()
  [ "${SPOT:-1}" = 1 ] && spot=(--spot)
  queued create "$NAME" --node-id "$node" --accelerator-type "$TYPE" \
    --runtime-version "$RUNTIME" "${spot[@]}"
}

delete() {
  queued delete "$NAME" --force --quiet
}

wait_until_active() {
  while true; do
    case "$(state)" in
      ACTIVE) return ;;
      ABSENT) create || true ;; # it may exist if only the query failed
      SUSPENDED | SUSPENDING | FAILED) delete && create || true ;;
      *) echo "tpu_vm.sh: $NAME is $(state)" >&2 ;;
    esac
    sleep 30
  done
}

install() {
  local archive
  archive=$(mktemp --suffix .tar.gz)
  git archive --format tar.gz --output "$archive" HEAD || return
  gcloud compute tpus tpu-vm scp "$archive" "$node:repae_jax.tar.gz" --zone "$ZONE" --worker all ||
    return
  rm "$archive"
  # A trainer left running by an earlier call of this script first saves and ends.
  on_all "set -e
    if pkill -TERM -f '[l]aunch/again.sh'; then
      timeout 300 sh -c \"while pgrep -f '[l]aunch/again.sh' >/dev/null; do sleep 1; done\"
    fi
    mkdir -p repae_jax && tar xzf repae_jax.tar.gz -C repae_jax
    python3 -m venv venv
    venv/bin/pip install --quiet -r repae_jax/requirements.txt 'jax[tpu]'
    venv/bin/pip install --quiet --no-deps -e repae_jax
    if ! command -v gcsfuse; then
      echo \"deb https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list
      curl -s https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo apt-key add -
      sudo apt-get -qq update && sudo apt-get -qq install gcsfuse
    fi
    sudo mkdir -p /mnt/bucket && sudo chown \$USER /mnt/bucket
    mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs $BUCKET /mnt/bucket"
}

train() {
  local words status
  printf -v words '%q ' "$@"
  while true; do
    wait_until_active
    status=0
    install && on_all "cd repae_jax && bash launch/again.sh \
      ../venv/bin/python -m repae_jax train --distributed $words" || status=$?
    # 0: done. 2: bad input, see the message. Otherwise the slice may be gone: check, and resume.
    case "$status" in 0 | 2) exit "$status" ;; esac
    echo "tpu_vm.sh: status $status, $NAME is $(state)" >&2
    sleep 30
  done
}

command=${1:-}
shift || true
case "$command" in
  train) need NAME ZONE TYPE RUNTIME BUCKET && train "$@" ;;
  delete) need NAME ZONE && delete ;;
  state) need NAME ZONE && state ;;
  *)
    sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'
    exit 2
    ;;
esac
