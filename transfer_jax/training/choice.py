"""One of several ways to do a step, chosen while it runs: the others are compiled, but not computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

STEPS = "#steps"  # ends the name of a metric that counts the steps in which a term had something to say
Apply = Callable[[Any], tuple[Any, dict[str, jax.Array]]]


def apply_one(functions: Sequence[Apply], choice: jax.Array, operand: Any) -> tuple[Any, dict[str, jax.Array]]:
    """The result of `functions[choice]`, (tree, metrics), of which the trees are alike; metrics that it lacks are 0."""
    names = dict.fromkeys(name for function in functions for name in jax.eval_shape(function, operand)[1])

    def whole(function: Apply) -> Apply:
        def run(operand: Any) -> tuple[Any, dict[str, jax.Array]]:
            tree, metrics = function(operand)
            return tree, {name: jnp.asarray(metrics.get(name, 0.0), jnp.float32) for name in names}

        return run

    return jax.lax.switch(choice, [whole(function) for function in functions], operand)


def steps_of(metric: str) -> str:
    """The name of the metric that counts the steps which a term's metric was measured in."""
    return metric.split("/")[0] + STEPS
