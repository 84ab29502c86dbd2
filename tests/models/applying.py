"""Variables for a module without running it, and running it as one program: op by op takes ten times as long."""

import functools

import jax

from tests.parity.harness import draw
from transfer_jax.core.paths import unflatten
from transfer_jax.pretrained.conversion import STATISTICS, leaf_shapes


def drawn(module, x):
    """Variables away from their initial values, so that no part is silent."""
    leaves = {path: draw(path, leaf.shape) for path, leaf in leaf_shapes(module, None, x).items()}
    statistics = {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[2] in STATISTICS}
    params = {path: leaf for path, leaf in leaves.items() if path not in statistics}
    return {"params": unflatten(params)} | ({"batch_stats": unflatten(statistics)} if statistics else {})


def applied(module, variables, x, **arguments):
    """`module.apply`, compiled."""
    return jax.jit(functools.partial(module.apply, **arguments))(variables, x)
