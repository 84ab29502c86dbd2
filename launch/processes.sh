#!/usr/bin/env bash
# What:    runs a training as N processes on this machine that talk over loopback, to try out what a cluster does. The
#          output of process 0 is shown, that of the others goes to process_I.log in the folder that LOGS names. SIGTERM
#          and Ctrl-C go to all. When one fails the others end too, at the latest GRACE seconds later (default 60), and
#          its exit code is that of this script.
# Needs:   Python >= 3.11 and, the first time, a package index. JAX_NUM_CPU_DEVICES=4 gives each process four CPU devices.
# Command: bash launch/processes.sh N train --config configs/X.py --workdir DIR
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case "${1:-}" in
  ''|*[!0-9]*|0) echo "error: give the number of processes, then the command: processes.sh 2 train --config ..." >&2
                 exit 2 ;;
esac
if [ $# -lt 2 ]; then
  echo "error: name a command after the number of processes, for example train" >&2
  exit 2
fi
count=$1
command=$2
shift 2
install_requirements requirements.txt
use_arena_allocator
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
port=$(.venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# Each in a process group of its own: a terminal then sends Ctrl-C to this script alone, and each gets it once.
set -m
processes=()
for number in $(seq 0 $((count - 1))); do
  run=(.venv/bin/python -m "transfer_jax.$command" "$@" --coordinator "127.0.0.1:$port" --processes "$count"
       --process "$number")
  if [ "$number" -eq 0 ]; then
    "${run[@]}" < /dev/null &
  else
    "${run[@]}" < /dev/null > "$logs/process_$number.log" 2>&1 &
  fi
  processes+=($!)
done

# One that is asked to stop asks the others by itself; all are asked, in case it is not that far yet.
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM
trap 'kill -INT "${processes[@]}" 2>/dev/null || true' INT

code=0
failed=""
running=("${processes[@]}")
began=$SECONDS
while [ "${#running[@]}" -gt 0 ]; do
  left=()
  for process in "${running[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      left+=("$process")
      continue
    fi
    one=0
    wait "$process" || one=$?
    if [ "$code" -eq 0 ] && [ "$one" -ne 0 ]; then
      code=$one
      failed=$process
      began=$SECONDS
    fi
  done
  running=(${left[@]+"${left[@]}"})
  # They end by themselves, with a sentence, unless they were not connected yet.
  if [ -n "$failed" ] && [ "${#running[@]}" -gt 0 ] && [ $((SECONDS - began)) -ge "${GRACE:-60}" ]; then
    kill -KILL "${running[@]}" 2>/dev/null || true
  fi
  sleep 0.2
done
if [ "$code" -ne 0 ] && [ "$count" -gt 1 ]; then
  for number in "${!processes[@]}"; do
    [ "${processes[$number]}" != "$failed" ] || echo "process $number ended with code $code; logs: $logs" >&2
  done
fi
exit "$code"
