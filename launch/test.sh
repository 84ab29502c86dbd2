#!/usr/bin/env bash
# What:    runs the checks of the project: ruff, then the test suite. With --parity it also installs torch, torchvision,
#          timm, transformers and keras and compares every family with its original, live: one of the smallest members
#          of each; with --parity --all every member in every layout (hours of work for two cores, and 16 GB of memory).
#          --all also compiles the programs whose bits are compared as users do, not as quickly as possible.
# Needs:   Python >= 3.11 and a package index. For --parity about 3 GB of disk (more where torch comes with CUDA).
# Command: bash launch/test.sh [--parity [--all]] [pytest options]
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# torchvision and timm ask for each other's torch, so torchvision comes without what it asks for.
install_originals() {
  local torchvision=.venv/installed-torchvision-0.28.0
  if [ ! -f "$torchvision" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile torch==2.13.0
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps torchvision==0.28.0
    touch "$torchvision"
  fi
  install_requirements requirements-parity.txt
}

install_requirements requirements-test.txt
for option in "$@"; do
  if [ "$option" = --parity ]; then
    install_originals
  fi
done
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
