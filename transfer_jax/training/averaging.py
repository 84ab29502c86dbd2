"""Moving averages of what a stage trains: parameters and BatchNorm statistics, as one flat tree in `State.ema`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.training.state import Flat, State

PARAMETERS, STATISTICS = "params/", "stats/"


def average_targets(trainable: Flat, batch_stats: Any) -> Flat:
    """What an average follows: trainable leaves and statistics under the names that `State.ema` has."""
    return ({PARAMETERS + path: leaf for path, leaf in trainable.items()}
            | {STATISTICS + path: leaf for path, leaf in flatten(batch_stats).items()})


def moved_average(average: Flat, targets: Flat, decay: float | jax.Array, warmup: bool, step: jax.Array) -> Flat:
    """The average after this step; with `warmup` the decay is at most (1 + step) / (10 + step)."""
    if warmup:
        decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {path: old + (1 - decay) * (targets[path] - old) for path, old in average.items()}


def averaged_variables(state: State) -> tuple[Flat, Any]:
    """The averaged parameters and statistics that `State.ema` holds."""
    parts = {kind: {path.removeprefix(kind): leaf for path, leaf in state.ema.items() if path.startswith(kind)}
             for kind in (PARAMETERS, STATISTICS)}
    return parts[PARAMETERS], unflatten(parts[STATISTICS])
