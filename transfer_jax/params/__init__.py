"""Which parameters move, how fast, and with which optimizer.

`SCHEDULES` maps a name to a factor over the course of a stage, `OPTIMIZERS` to an optax transformation.
"""

from transfer_jax.params.optimizers import OPTIMIZERS
from transfer_jax.params.schedules import SCHEDULES

__all__ = ["OPTIMIZERS", "SCHEDULES"]
