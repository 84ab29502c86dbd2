"""Means over a batch, for losses; see `core/reduction.py`."""

from transfer_jax.core.reduction import weighted_mean

__all__ = ["weighted_mean"]
