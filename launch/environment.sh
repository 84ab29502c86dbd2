# shellcheck shell=bash
# Sourced by the other scripts. Makes .venv beside the code and installs a requirements file into it, once per change.
# Needs: Python >= 3.11. PYTHON=/path/to/python chooses another interpreter than the first suitable one on the PATH.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# Byte code is kept in the environment, and the folders of the sources stay clean. Without it every process would
# compile hundreds of modules anew, for seconds.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$root/.venv/bytecode"

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python >= 3.11 found; install one or set PYTHON=/path/to/python" >&2
  exit 2
}

make_environment() {
  if [ ! -x .venv/bin/python ]; then
    "$(find_python)" -m venv .venv
  fi
}

pip_install() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile "$@"
}

install_requirements() {
  local file=$1
  local stamp
  make_environment
  stamp=$(cat requirements*.txt | cksum | tr ' ' '-')
  if [ ! -f ".venv/installed-$file-$stamp" ]; then
    echo "installing $file into .venv ..."
    pip_install -r "$file"
    touch ".venv/installed-$file-$stamp"
  fi
}

# On Linux glibc gives large blocks back to the system after every training step, and the page faults of the next step
# cost up to 40 % on a CPU. One arena that keeps its memory avoids them. TRANSFER_JAX_ALLOCATOR=system switches it off.
use_arena_allocator() {
  if [ "${TRANSFER_JAX_ALLOCATOR:-arena}" = arena ]; then
    export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776 MALLOC_TOP_PAD_=67108864
  fi
}
