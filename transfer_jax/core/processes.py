"""Several processes that run one program: who is who, how they agree, and how one tells the others that it failed.

Everything here also works in a process of its own, where it costs nothing: `count()` is 1 and all agree at once.

JAX gives its processes a shared table of strings, kept by process 0 (the coordinator). Every process writes a pulse
into it, and a watching thread in each of them ends the process, with a sentence that names the guilty one, as soon as
another reports a failure or its pulse stands still for the heartbeat time. JAX alone would leave the others waiting in
a collective operation, and end them without a name.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from transfer_jax.core.errors import UserError

FAILED = 3  # exit code of a process that ends because of another one
GRACE = 20  # seconds until JAX's own watch ends a process, should ours have failed
# How an operation of several processes says that it broke; JAX raises it as one of several types.
BROKEN = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
_rounds = itertools.count()
_watch: Watch | None = None


@dataclass(frozen=True)
class Membership:
    """How this process finds the others: explicit numbers, or (all None) what the launcher's environment says."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.coordinator, self.processes, self.process)]
        if any(given) and not all(given):
            raise UserError("--coordinator, --processes and --process belong together; give all three, or only "
                            "--distributed, which reads them from Slurm, a TPU pod, GKE or Open MPI")
        if all(given):
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdigit():
                raise UserError(f"--coordinator {self.coordinator!r} is not HOST:PORT, for example 10.0.0.1:8476")
            if not 0 <= self.process < self.processes:
                raise UserError(f"--process {self.process} is not among 0 ... {self.processes - 1} (--processes "
                                f"{self.processes})")


def join(membership: Membership, heartbeat_seconds: int, wait_seconds: int = 300) -> None:
    """Connects this process with the others; before anything asks for a device.

    The coordinator listens on the named address only. Raises UserError where the launcher is unknown, or where the
    others do not come within `wait_seconds`.
    """
    global _watch
    explicit = {} if membership.coordinator is None else {
        "coordinator_address": membership.coordinator, "num_processes": membership.processes,
        "process_id": membership.process, "cluster_detection_method": "deactivate",
        "coordinator_bind_address": membership.coordinator}
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see training/interruption.py
    # JAX's own watch counts from a sign of life that can be half of its time old: twice ours, so that ours is first.
    try:
        jax.distributed.initialize(initialization_timeout=wait_seconds, shutdown_timeout_seconds=30,
                                   heartbeat_timeout_seconds=2 * heartbeat_seconds + GRACE, **explicit)
    except ValueError as error:
        raise UserError(f"--distributed found no launcher that it knows (Slurm within srun, TPU pod, GKE, Open MPI): "
                        f"{error}; give --coordinator HOST:PORT --processes N --process I") from error
    except (RuntimeError, OSError) as error:
        raise UserError(f"the processes did not find each other within {wait_seconds} s at "
                        f"{membership.coordinator or 'the launcher’s address'}: {_first_line(error)}") from error
    if jax.process_count() > 1:
        _watch = Watch(heartbeat_seconds)
        _watch.start()


@contextlib.contextmanager
def together(membership: Membership | None, heartbeat_seconds: int) -> Iterator[None]:
    """Runs what is inside as one of several processes (None: alone), and leaves them in an orderly way.

    An error of this process is told to the others, which end with its sentence. A broken operation of all is another
    one's fault: then this process waits until the watch names it.
    """
    if membership is not None:
        join(membership, heartbeat_seconds)
    if _watch is None:
        yield
        return
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code"):  # a stop that was asked for comes to all
            _leave()
            raise
        if _another_is_gone(error):
            _watch.wait_for_verdict()
        _watch.report(_first_line(error))
        _end_at_once(error)
    except KeyboardInterrupt as stop:  # a second Ctrl-C
        _watch.report("stopped at once by Ctrl-C")
        _end_at_once(stop)
    _leave()


def _another_is_gone(error: BaseException) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(BROKEN.match(str(error)))


def _end_at_once(error: BaseException) -> NoReturn:
    """Without JAX's farewell, in which a process waits for those that will not come."""
    if isinstance(error, KeyboardInterrupt):
        print("stopped at once; the same command continues from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(130)
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def _leave() -> None:
    """From here on a silent process is no failure."""
    global _watch
    watch, _watch = _watch, None
    barrier("leave")
    watch.stop()
    jax.distributed.shutdown()


def primary() -> bool:
    """Whether this is the process that writes logs, tables and reports."""
    return jax.process_index() == 0


def count() -> int:
    return jax.process_count()


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if count() > 1:
        _client().wait_at_barrier(f"transfer_jax/{name}/{next(_rounds)}", 3600 * 1000)


def first_says(make: Callable[[], Any]) -> Any:
    """What `make` gives in process 0, in all processes; only that one calls it. The value must be JSON.

    A UserError of process 0 is raised in all.
    """
    if count() == 1:
        return make()
    key = f"transfer_jax/said/{next(_rounds)}"
    if primary():
        try:
            said: dict[str, Any] = {"value": make()}
        except UserError as error:
            said = {"error": str(error)}
        _client().key_value_set(key, json.dumps(said))
    said = json.loads(_client().blocking_key_value_get(key, 3600 * 1000))
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def gathered(values: np.ndarray) -> np.ndarray:
    """The small vectors of all processes, [count, n]. A collective operation: all must call it at the same point."""
    if count() == 1:
        return np.asarray(values)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(values)))


class Watch(threading.Thread):
    """The pulse of this process, and the eye on those of the others."""

    def __init__(self, heartbeat_seconds: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.heartbeat = heartbeat_seconds
        self.interval = min(1.0, heartbeat_seconds / 5)
        self.me = jax.process_index()
        self._done = threading.Event()
        self._beat = 0
        self._seen: dict[int, tuple[str, float]] = {}
        self._client = _client()
        self._coordinator = _coordinator()

    def run(self) -> None:
        if self.me != 0:
            threading.Thread(target=self._watch_coordinator, name="watch of process 0", daemon=True).start()
            self._catch_abort()
        for self._beat in itertools.count():
            if self._done.wait(self.interval):
                return
            try:
                self._client.key_value_set(f"transfer_jax/pulse/{self.me}", f"{self._beat} {_here()}", True)
                self._look()
            except jax.errors.JaxRuntimeError as error:
                if not self._done.is_set():
                    self._end(f"process 0, the coordinator, cannot be reached any more ({_first_line(error)})")

    def report(self, sentence: str) -> None:
        try:
            self._client.key_value_set(f"transfer_jax/failed/{self.me}", f"{_here()}: {sentence}", True)
        except jax.errors.JaxRuntimeError:  # the coordinator is gone, and the others know that
            return
        # Process 0 keeps the table: were it gone at once, nobody could read why.
        time.sleep(2 * self.interval if self.me == 0 else 0)

    def wait_for_verdict(self) -> None:
        self._done.wait(self.heartbeat + 2 * self.interval)

    def stop(self) -> None:
        self._done.set()

    def _watch_coordinator(self) -> None:
        """A table that hangs lets whoever reads it wait, so that another thread has to count.

        It counts its own looks, not seconds: a whole process that stood still must not blame another one.
        """
        seen, looks = -1, 0
        while not self._done.wait(self.interval):
            seen, looks = self._beat, looks + 1 if seen == self._beat else 0
            if looks * self.interval > self.heartbeat:
                self._end(f"process 0, the coordinator, has not answered for {looks * self.interval:.0f} s")

    def _catch_abort(self) -> None:
        """JAX aborts a process, without a name, as soon as its connection to the coordinator breaks; only a handler in
        C sees that in time, since one of Python's would run after the end."""
        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def aborted(number: int) -> None:
            del number
            if not self._done.is_set() and not _listens(self._coordinator):
                self._end("process 0, the coordinator, cannot be reached any more")

        self._handler = aborted  # C keeps no count of references
        ctypes.CDLL(None).signal(signal.SIGABRT, aborted)

    def _look(self) -> None:
        for key, sentence in self._client.key_value_dir_get("transfer_jax/failed/"):
            number = key.rpartition("/")[2]
            if number != str(self.me):
                self._end(f"process {number} on {sentence}")
        now = time.monotonic()
        pulses = {key.rpartition("/")[2]: pulse for key, pulse in
                  self._client.key_value_dir_get("transfer_jax/pulse/")}
        for number in range(count()):  # also those that have not written one yet
            pulse = pulses.get(str(number), "")
            last, since = self._seen.get(number, (None, now))
            if pulse != last:
                self._seen[number] = pulse, now
            elif now - since > self.heartbeat:
                place = pulse.partition(" ")[2]
                self._end(f"process {number}{place and ' on '}{place} has not answered for {now - since:.0f} s")

    def _end(self, reason: str) -> None:
        print(f"error: {reason}; process {self.me} ends too, the same command continues from the last checkpoint",
              file=sys.stderr, flush=True)
        os._exit(FAILED)  # the main thread hangs in an operation of all processes, nothing else would end it


def _here() -> str:
    return f"{socket.gethostname()} (pid {os.getpid()})"


def _client() -> Any:
    from jax._src import distributed  # JAX shows its table of strings nowhere else

    return distributed.global_state.client


def _coordinator() -> tuple[str, int]:
    from jax._src import distributed

    host, _, port = distributed.global_state.coordinator_address.rpartition(":")
    return host.strip("[]"), int(port)


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
