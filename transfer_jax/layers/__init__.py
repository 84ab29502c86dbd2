"""Floor 0: layers with the parameters of flax.linen, fast on every backend, inside loops and under vmap too."""
