"""Comparison of a term with its definition, written out in float64 numpy: value, and gradient along random directions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

STEP = 1e-5


def agrees(term: Callable, definition: Callable, arrays: dict[str, np.ndarray], seed: int = 0, rtol: float = 1e-4,
           atol: float = 1e-6, slope_rtol: float = 1e-3, slope_atol: float = 1e-5,
           slope_of: Callable | None = None) -> None:
    """Asserts that `term(**arrays)` and its gradient are those of `definition(arrays, constants)`.

    Args:
      term: of float32 arrays -> float32 scalar, or (scalar, ...).
      definition: (arrays, constants) -> float. Both are float64 and equal, except while the slope is measured: then
        `constants` stay where they are; from them comes what the method holds constant for its gradient.
      arrays: the arguments by name; those of float dtype are differentiated.
      slope_of: the function of (arrays, constants) whose slope the gradient is, where it is not the definition's.
    """
    rng = np.random.default_rng(seed)
    exact = {name: np.asarray(x, np.float64) if x.dtype.kind == "f" else x for name, x in arrays.items()}
    moving = {name: x.astype(np.float32) for name, x in arrays.items() if x.dtype.kind == "f"}
    fixed = {name: x for name, x in arrays.items() if x.dtype.kind != "f"}

    def scalar(moving):
        result = term(**moving, **fixed)
        return result[0] if isinstance(result, tuple) else result

    value, gradient = jax.jit(jax.value_and_grad(scalar))(moving)
    assert value.dtype == np.float32 and value.shape == ()
    np.testing.assert_allclose(value, definition(exact, exact), rtol=rtol, atol=atol)
    for name in moving:
        direction = rng.normal(size=exact[name].shape)
        direction /= np.linalg.norm(direction)
        ends = [(slope_of or definition)({**exact, name: exact[name] + sign * STEP * direction}, exact)
                for sign in (1, -1)]
        np.testing.assert_allclose(np.vdot(gradient[name], direction), (ends[0] - ends[1]) / (2 * STEP),
                                   rtol=slope_rtol, atol=slope_atol, err_msg=f"gradient of {name}")


def softmax(z: np.ndarray) -> np.ndarray:
    """Rows of class scores [..., K] -> probabilities."""
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def finite(term: Callable, arrays: dict[str, np.ndarray]) -> float:
    """The value of the term after asserting that it and all its gradients are finite."""
    moving = {name: x.astype(np.float32) for name, x in arrays.items() if np.asarray(x).dtype.kind == "f"}
    fixed = {name: x for name, x in arrays.items() if name not in moving}

    def scalar(moving):
        result = term(**moving, **fixed)
        return result[0] if isinstance(result, tuple) else result

    value, gradient = jax.jit(jax.value_and_grad(scalar))(moving)
    assert np.isfinite(value), value
    for name, slope in gradient.items():
        assert np.isfinite(slope).all(), name
    return float(value)
