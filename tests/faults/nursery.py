"""Forks processes of our commands from one that has imported everything: a restart costs no imports.

Reads requests as JSON, one a line, and answers each with one line. A fork is a process of its own: it sets up its
devices and joins others as one that was started from a shell does.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

import injected
import jax

from transfer_jax import command_line, train
from transfer_jax.experiment import export, runner  # noqa: F401 - what a run imports later
from transfer_jax.training import writers

writers._tensorboard_parts()
train.show_report = lambda *given: None  # a third of the time of so small a run; what it reads is compared


def become(request: dict[str, Any]) -> None:
    """Runs the command of a request in this process, and ends it."""
    os.setsid()
    out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    faulthandler.register(signal.SIGUSR1)  # where it hangs, if it does: see `Team.end`
    jax.config.update("jax_num_cpu_devices", request["devices"])
    for name, *values in request["inject"]:
        getattr(injected, name)(*values)
    sys.argv = ["train", *request["arguments"]]
    command_line.run(train.main)


def fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        become(request)
    except SystemExit as end:
        # The end of an interpreter, in its order: what was registered for it, then its threads.
        code = end.code if isinstance(end.code, int) else 1
        importlib.import_module("threading")._shutdown()
        importlib.import_module("atexit")._run_exitfuncs()
    except BaseException:  # noqa: BLE001 - a traceback, as the interpreter would leave
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int) -> int | None:
    """The exit status of a fork (negative: the signal that ended it), or None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def main() -> None:
    gc.collect()
    gc.freeze()  # no fork searches what was imported for garbage, nor copies its pages for that
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(ended(request["pid"]) if "pid" in request else fork(request)), flush=True)


if __name__ == "__main__":
    main()
