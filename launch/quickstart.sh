#!/usr/bin/env bash
# What:    makes .venv, installs the requirements and runs configs/quickstart.py: eight ways of transfer, five seeds
#          each, on data that come with scikit-learn. Ends with a table and the path of report.html.
# Needs:   Python >= 3.11 and a package index. No data is downloaded.
# Command: bash launch/quickstart.sh [WORKDIR] [--config.path.to.key=value ...]
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_requirements requirements.txt
use_arena_allocator
workdir=runs/quickstart
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  workdir=$1
  shift
fi
exec .venv/bin/python -m transfer_jax.train --config configs/quickstart.py --workdir "$workdir" "$@"
