"""Faults that only the process itself can have; each changes the product in a process that the nursery has forked."""

from __future__ import annotations

import errno
import os
import signal

import numpy as np
import orbax.checkpoint as ocp

from transfer_jax.data.host import HostStream
from transfer_jax.experiment.workdir import Workdir


def thread_raises(step: int) -> None:
    """The thread that makes the batch of this step raises."""
    make = HostStream._training_batch

    def broken(self, number, **given):
        if number == step:
            raise RuntimeError("a fault within a thread")
        return make(self, number, **given)

    HostStream._training_batch = broken


def nan_at(step: int) -> None:
    """The examples of this step (from 0) weigh NaN."""
    make = HostStream._training_batch

    def poisoned(self, number, **given):
        batch = make(self, number, **given)
        return {**batch, "weight": np.full_like(batch["weight"], np.nan)} if number == step else batch

    HostStream._training_batch = poisoned


def save_fails() -> None:
    """This process finds no room for its part of a checkpoint."""
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ocp.AsyncCheckpointer.wait_until_finished = full


def stopped_while_opening() -> None:
    """SIGTERM comes while the workdir is opened, long before anything trains."""
    opened = Workdir.open

    def interrupted(self, *given):
        os.kill(os.getpid(), signal.SIGTERM)
        return opened(self, *given)

    Workdir.open = interrupted
