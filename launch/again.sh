#!/usr/bin/env bash
# Repeats a command until it succeeds or fails for good.
#
#   bash launch/again.sh python -m repae_jax train --config ... --workdir runs/mine
#
# Status 0 (done) and 2 (bad input, a full disk, a run that diverges: see its message) end the
# script. After any other status, such as 75 (saved on a signal) or a crash, the command starts
# again and resumes from its last checkpoint: at most AGAIN_LIMIT times (default 100), AGAIN_PAUSE
# seconds apart (default 10). Ctrl-C, SIGTERM and the end of the terminal are passed on to the
# command, and end this script with its status.
set -uo pipefail

limit=${AGAIN_LIMIT:-100}
pause=${AGAIN_PAUSE:-10}
ending=
child=

# shellcheck disable=SC2329
pass_on() {
  ending=1
  [ -n "$child" ] && kill -TERM "$child" 2>/dev/null
}
trap pass_on INT TERM HUP

for ((restart = 0; restart <= limit; restart++)); do
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
    wait "$child"
    status=$?
  done
  if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ -n "$ending" ]; then
    exit "$status"
  fi
  [ "$restart" -eq "$limit" ] && break
  echo "again.sh: status $status, starting again in $pause s ($((restart + 1)) of $limit)" >&2
  sleep "$pause" &
  wait $! # so that a signal is answered at once
  [ -n "$ending" ] && exit "$status"
done
exit "$status"
