"""What changes from step to step, and what does not."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Flat = dict[str, jax.Array]


class State(NamedTuple):
    """The moving part of training; every array has a leading axis S of seeds ("members").

    Attributes:
      trainable: path -> parameter of the trainable groups.
      batch_stats: BatchNorm statistics, nested like the parameters; see `models/domains.py` for those of domains.
      opt_state: the one optax tree of the stage.
      ema: averages of the trainable parameters (`params/...`) and of the statistics (`stats/...`), or empty;
        averages that the optimizer keeps likewise.
      sums: float32 [S, M] sums of the metrics since the last log point.
      bad: int32 [S, 2]: the first step with a non-finite metric and the metric's number, or -1.
      carried: what terms carry from step to step, by their names.
    """

    trainable: Flat
    batch_stats: dict[str, Any]
    opt_state: Any
    ema: Flat
    sums: jax.Array
    bad: jax.Array
    carried: dict[str, Any] = {}


class Constants(NamedTuple):
    """What a stage never changes; every array has a leading axis S of seeds.

    Attributes:
      frozen: path -> parameter that does not train.
      initial: the trainable parameters at the stage's start, where a term looks back at it; else empty.
      initial_stats: the statistics at the stage's start, likewise.
      rates: group -> peak learning rate, float32 [S].
      statistics: what was measured at the start, or is measured anew every so often: see `objectives/statistics.py`.
    """

    frozen: Flat
    initial: Flat
    initial_stats: dict[str, Any]
    rates: Flat
    statistics: dict[str, Any]
