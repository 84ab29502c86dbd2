#!/usr/bin/env bash
# What:    runs a training as N processes on this machine that talk over loopback, to try out what a cluster does. The
#          output of process 0 is shown, that of the others goes to process_I.log in the folder that LOGS names.
# Needs:   Python >= 3.11 and, the first time, a package index. JAX_NUM_CPU_DEVICES=4 gives each process four CPU devices.
# Command: bash launch/processes.sh N train --config configs/X.py --workdir DIR
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

processes=()
for number in $(seq 0 $((count - 1))); do
  run=(.venv/bin/python -m "transfer_jax.$command" "$@" --coordinator "127.0.0.1:$port" --processes "$count"
       --process "$number")
  if [ "$number" -eq 0 ]; then
    "${run[@]}" &
  else
    "${run[@]}" > "$logs/process_$number.log" 2>&1 &
  fi
  processes+=($!)
done

# One that is asked to stop asks the others by itself; all are asked, in case it is not that far yet.
trap 'kill -TERM "${processes[@]}" 2>/dev/null' TERM
trap 'kill -INT "${processes[@]}" 2>/dev/null' INT

code=0
for process in "${processes[@]}"; do
  # A signal ends `wait` before the process does.
  while true; do
    one=0
    wait "$process" || one=$?
    kill -0 "$process" 2>/dev/null || break
  done
  if [ "$code" -eq 0 ]; then
    code=$one
  fi
done
if [ "$code" -ne 0 ] && [ "$count" -gt 1 ]; then
  echo "a process ended with code $code; what the others said: $logs" >&2
fi
exit "$code"
