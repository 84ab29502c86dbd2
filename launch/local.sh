#!/usr/bin/env bash
# What:    runs a command of transfer_jax on this machine, with all of its devices and the allocator setting for CPUs.
# Needs:   Python >= 3.11 and, the first time, a package index.
# Command: bash launch/local.sh train --config configs/X.py --workdir DIR
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -eq 0 ]; then
  echo "error: name a command: train, evaluate, predict, report, sweep, convert or models" >&2
  exit 2
fi
install_requirements requirements.txt
use_arena_allocator
command=$1
shift
exec .venv/bin/python -m "transfer_jax.$command" "$@"
