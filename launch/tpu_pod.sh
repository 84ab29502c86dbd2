#!/usr/bin/env bash
# What:    a training on a TPU pod slice: `create` asks for the slice and waits, `copy` sends this checkout to all workers
#          and installs it, `run` starts the training on all of them, `log` follows worker 0, `stop` lets all save and
#          end, `delete` gives the slice back; `all` does create, copy, run, log. The same `run` again continues.
# Needs:   gcloud, logged in; NAME, ZONE, TYPE (for example v5litepod-256) and RUNTIME (for example v2-alpha-tpuv5-lite)
#          in the environment; a --workdir that all workers see, such as a mounted bucket. PROJECT and SPOT=1 if wanted.
# Command: NAME=pod ZONE=us-west4-a TYPE=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite \
#              bash launch/tpu_pod.sh [--dry-run] all --config configs/X.py --workdir /mnt/runs/X
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry=0
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
action=${1:-}
[ $# -eq 0 ] || shift
for variable in NAME ZONE TYPE RUNTIME; do
  if [ -z "${!variable:-}" ]; then
    echo "error: $variable is not set; the head of this file says what it is" >&2
    exit 2
  fi
done
if [ "$dry" -eq 0 ] && ! command -v gcloud > /dev/null; then
  echo "error: gcloud is not installed; install Google Cloud's command line and log in, or use --dry-run" >&2
  exit 2
fi
where=(--zone="$ZONE")
[ -z "${PROJECT:-}" ] || where+=(--project="$PROJECT")

does() {
  if [ "$dry" -eq 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

everywhere() {
  does gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

create() {
  local kind=()
  [ "${SPOT:-0}" != 1 ] || kind=(--spot)
  does gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" "${where[@]}" "${kind[@]}"
  if [ "$dry" -eq 1 ]; then
    does gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'
    return
  fi
  local state=""
  while [ "$state" != ACTIVE ]; do
    state=$(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)')
    case $state in
      FAILED|SUSPENDED) echo "error: the request for $TYPE ended as $state; see its description" >&2; exit 1 ;;
    esac
    echo "$(date +%H:%M:%S) $state"
    sleep 20
  done
}

copy() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  does git archive --format=tar.gz --output="$archive" HEAD
  does gcloud compute tpus tpu-vm scp "$archive" "$NAME:transfer_jax.tar.gz" "${where[@]}" --worker=all
  everywhere "mkdir -p transfer_jax && tar -xzf transfer_jax.tar.gz -C transfer_jax && cd transfer_jax && \
python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
  rm -f "$archive"
}

run() {
  if [ $# -eq 0 ]; then
    echo "error: give the options of the training: run --config configs/X.py --workdir DIR" >&2
    exit 2
  fi
  everywhere "cd transfer_jax && nohup .venv/bin/python -m transfer_jax.train --distributed $(printf '%q ' "$@")\
> train.log 2>&1 < /dev/null &"
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
  *) echo "error: name what to do: create, copy, run, log, stop, delete or all" >&2; exit 2 ;;
esac
