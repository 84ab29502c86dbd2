#!/usr/bin/env bash
# What:    runs a training, passes SIGTERM on to it, and ends with 75 if it saved and left before its end: where a host is
#          taken away, Kubernetes and the like would take the 0 of an orderly stop for the end of the work.
# Needs:   the Python of the environment, as PYTHON or python on the PATH.
# Command: bash launch/until_finished.sh WORKDIR [options of transfer_jax.train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
workdir=${1:?give the workdir, then the options of the training}
shift
trap 'kill -TERM "$training" 2>/dev/null || true' TERM
"${PYTHON:-python}" -m transfer_jax.train --workdir "$workdir" "$@" &
training=$!
while true; do  # a signal ends `wait` before the training does
  code=0
  wait "$training" || code=$?
  kill -0 "$training" 2>/dev/null || break
done
# Process 0 writes the report before any process leaves.
if [ "$code" -eq 0 ] && [ ! -f "$workdir/report.html" ]; then
  code=75
fi
exit "$code"
