#!/usr/bin/env bash
# What:    runs the checks of the project: ruff, then the test suite.
# Needs:   Python >= 3.11 and a package index.
# Command: bash launch/test.sh [pytest options]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_requirements requirements-test.txt
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
