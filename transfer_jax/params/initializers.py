"""Random starts by name, in place of those that the layers of a model declare."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, bind

Flat = dict[str, jax.Array]
Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


def scaled(mode: str, scale: float, distribution: str) -> Callable[..., Initializer]:
    """A registry entry: variance scale / n with n the number of inputs, of outputs, or their mean."""
    def make(*, gain: float = 1.0) -> Initializer:
        """`gain` multiplies the standard deviation."""
        return nn.initializers.variance_scaling(scale * gain ** 2, mode, distribution)

    return make


def uniform(*, bound: float = 0.05) -> Initializer:
    """Uniform between -`bound` and `bound`."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def normal(*, stddev: float = 0.01) -> Initializer:
    """Normal around 0."""
    return nn.initializers.normal(stddev)


def orthogonal(*, gain: float = 1.0) -> Initializer:
    """Orthogonal columns or rows (Saxe, McClelland & Ganguli 2014)."""
    return nn.initializers.orthogonal(gain)


def constant(*, value: float = 0.0) -> Initializer:
    """The same value everywhere. Units that start equal stay equal: a baseline, not a way to train."""
    return nn.initializers.constant(value)


# Xavier: Glorot & Bengio 2010, eq. 12 and 16. He: He et al. 2015, eq. 10. LeCun et al. 1998, eq. 16.
INITIALIZERS = {
    "xavier_uniform": scaled("fan_avg", 1.0, "uniform"),
    "xavier_normal": scaled("fan_avg", 1.0, "normal"),
    "he_uniform": scaled("fan_in", 2.0, "uniform"),
    "he_normal": scaled("fan_in", 2.0, "normal"),
    "lecun_uniform": scaled("fan_in", 1.0, "uniform"),
    "lecun_normal": scaled("fan_in", 1.0, "normal"),
    "orthogonal": orthogonal,
    "uniform": uniform,
    "normal": normal,
    "constant": constant,
}


def redrawn(component: Component, params: Mapping[str, jax.Array], seed: jax.Array, where: str = "initializer") -> Flat:
    """`params` of one seed with every kernel drawn by the initializer that `component` names.

    Only leaves called `kernel` change: biases, norms and embeddings keep the start of their layers. Each draws from
    `seed` (uint32 scalar) and a hash of its path, so that other layers do not matter.

    Raises:
      UserError: if the name or an argument is unknown, or there is no kernel.
    """
    draw = bind(INITIALIZERS, component, "initializer", where)()
    kernels = [path for path in params if path.rpartition("/")[2] == "kernel"]
    if not kernels:
        raise UserError(f"{where}: the model has no leaf called 'kernel' to initialise; leave the initializer out")
    key = jax.random.key(seed)
    new = {path: draw(jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode()))), params[path].shape,
                      params[path].dtype) for path in kernels}
    return {**params, **new}
