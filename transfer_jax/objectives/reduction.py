"""Means over a batch, for losses; see `core/reduction.py`."""

from transfer_jax.core.reduction import scaled_by_mass, weighted_mean

__all__ = ["scaled_by_mass", "weighted_mean"]
