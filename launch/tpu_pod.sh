#!/usr/bin/env bash
# What:    a training on a TPU pod slice: `create` asks for the slice and waits, `copy` sends the committed files to all
#          workers and installs them, `run` starts the training on all of them, `log` follows worker 0, `stop` lets all
#          save and end, `delete` gives the slice back; `all` is create, copy, run, log. The same `run` continues.
# Needs:   gcloud, logged in; NAME and ZONE, for `create` also TYPE (such as v5litepod-256) and RUNTIME (such as
#          v2-alpha-tpuv5-lite) in the environment; PROJECT and SPOT=1 if wanted; a workdir that all workers see.
# Command: NAME=pod ZONE=us-west4-a TYPE=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite \
#              bash launch/tpu_pod.sh [--dry-run] all --config configs/X.py --workdir /mnt/runs/X
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $1" >&2
  exit 2
}

need() {
  local variable
  for variable in "$@"; do
    [ -n "${!variable:-}" ] || fail "$variable is not set; the head of launch/tpu_pod.sh says what it is"
  done
}

dry=0
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  create|all) need NAME ZONE TYPE RUNTIME ;;
  copy|run|log|stop|delete) need NAME ZONE ;;
  *) fail "name what to do: create, copy, run, log, stop, delete or all" ;;
esac
case $action in
  run|all) [ $# -gt 0 ] || fail "give the options of the training: $action --config configs/X.py --workdir DIR" ;;
esac
if [ "$dry" -eq 0 ] && ! command -v gcloud > /dev/null; then
  fail "gcloud is not installed; install Google Cloud's command line and log in, or use --dry-run"
fi
where=(--zone="$ZONE")
[ -z "${PROJECT:-}" ] || where+=(--project="$PROJECT")

# Runs a command, or with --dry-run prints it in a form that a shell can read.
does() {
  if [ "$dry" -eq 1 ]; then
    echo "${*@Q}"
  else
    "$@"
  fi
}

everywhere() {
  does gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

state() {
  does gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'
}

create() {
  local kind=() now=""
  [ "${SPOT:-0}" != 1 ] || kind=(--spot)
  does gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" "${where[@]}" ${kind[@]+"${kind[@]}"}
  if [ "$dry" -eq 1 ]; then
    state
    return
  fi
  while true; do
    now=$(state)
    echo "$(date +%H:%M:%S) $now"
    case $now in
      ACTIVE) return ;;
      FAILED|SUSPENDED) fail "the request for $TYPE ended as $now; delete it and ask again, or elsewhere" ;;
    esac
    sleep 20
  done
}

copy() {
  local folder=.
  [ "$dry" -eq 1 ] || folder=$(mktemp -d)
  does git archive --format=tar.gz --output="$folder/transfer_jax.tar.gz" HEAD
  does gcloud compute tpus tpu-vm scp "$folder/transfer_jax.tar.gz" "$NAME:" "${where[@]}" --worker=all
  # The system's Python of these machines can be older than 3.11.
  everywhere "mkdir -p transfer_jax && tar -xzf transfer_jax.tar.gz -C transfer_jax && cd transfer_jax && \
sudo apt-get install -y -qq python3.11-venv && python3.11 -m venv .venv && \
.venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
  [ "$dry" -eq 1 ] || rm -r "$folder"
}

run() {
  everywhere "cd transfer_jax && { nohup .venv/bin/python -m transfer_jax.train --distributed ${*@Q} \
>> train.log 2>&1 < /dev/null & }"
}

log() {
  does gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 --command='tail -n 100 -F transfer_jax/train.log'
}

case $action in
  create) create ;;
  copy) copy ;;
  run) run "$@" ;;
  log) log ;;
  stop) everywhere "pkill -TERM -f '[t]ransfer_jax.train'" ;;
  delete) does gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet ;;
  all) create; copy; run "$@"; log ;;
esac
