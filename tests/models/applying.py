"""Variables for a module without running it, and running it as one program: op by op takes longer."""

import functools

import jax

from tests.parity.harness import draw, variables_of
from transfer_jax.pretrained.conversion import leaf_shapes


def drawn(module, x):
    """Variables away from their initial values, so that no part is silent."""
    return variables_of({path: draw(path, leaf.shape) for path, leaf in leaf_shapes(module, None, x).items()})


def applied(module, variables, x, **arguments):
    """`module.apply`, compiled."""
    return jax.jit(functools.partial(module.apply, **arguments))(variables, x)
