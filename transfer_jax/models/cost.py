"""What a network costs: parameters, and floating point operations of one forward pass, without running it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.models.taps import Backbone


def parameter_count(backbone: Backbone) -> int:
    """Number of parameters of the backbone, without head and without BatchNorm statistics."""
    shapes = jax.eval_shape(_draw(backbone), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def forward_flops(backbone: Backbone) -> int:
    """Operations of the convolutions and matrix products for one example; a multiplication and an addition are two."""
    variables = jax.eval_shape(_draw(backbone), jax.random.key(0))
    closed = jax.make_jaxpr(lambda v, x: backbone.apply(v, x, train=False))(variables, backbone.example)
    return _count(closed.jaxpr)


def _draw(backbone: Backbone) -> Any:
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), backbone.example)
    return lambda key: backbone.init({"params": key, "dropout": key}, example, train=False)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, result = equation.primitive.name, equation.outvars[0].aval if equation.outvars else None
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(result.shape) * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(result.shape) * math.prod(kernel) // features
        else:
            repeats = equation.params.get("length", 1) if name == "scan" else 1
            inner = [jaxpr for value in equation.params.values() for jaxpr in _jaxprs(value)]
            total += repeats * sum(map(_count, inner))
    return total


def _jaxprs(value: Any) -> list[Any]:
    """The programs inside a parameter of an equation."""
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if isinstance(value, list | tuple):
        return [inner for item in value for inner in _jaxprs(item)]
    return []
