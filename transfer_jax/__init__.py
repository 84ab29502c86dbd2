"""transfer_jax: transfer learning in JAX, from a config to a report."""

__version__ = "0.1.0"
