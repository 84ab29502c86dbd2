"""SIGTERM and Ctrl-C ask the loop to save and leave; they never tear a step apart."""

from __future__ import annotations

import signal
from types import FrameType

import numpy as np

from transfer_jax.core import processes

EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


class Interrupted(Exception):
    """Training stopped on request after its state was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = EXIT_CODES[signal.Signals(number)]


class StopRequest:
    """While entered, remembers the first SIGTERM or SIGINT in `signal`; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_if_asked(self) -> None:
        """Between stages, where all is saved. In all processes alike."""
        asked = int(processes.gathered(np.array([self.signal or 0])).max())
        if asked:
            raise Interrupted(asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
