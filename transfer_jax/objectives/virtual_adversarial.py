"""Predictions that stay when the input moves a little in the worst direction (VAT)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean
from transfer_jax.objectives.lengths import example_lengths


def virtual_adversarial(inputs: jax.Array, apply_model: Callable[[jax.Array], jax.Array], weights: jax.Array,
                        key: jax.Array, *, radius: float = 1.0, probe: float = 1e-2,
                        iterations: int = 1) -> tuple[jax.Array, dict[str, jax.Array]]:
    """KL(p(x) | p(x + r)), p(x) constant, at the r of length `radius` that raises it most (VAT; Miyato et al. 2018,
    section 3).

    The direction is found by power iteration from a random one: the gradient at a point `probe` away. The divergence
    grows with the square of that distance: 1e-6, as often written, vanishes in float32 beside the rounding of p.

    VADA (Shu et al. 2018) is a sum of terms: the classifier's loss on the source, `domain_adversarial`,
    `entropy` on the target, this term on the source and on the target. DIRT-T then goes on, in a second stage, with
    `entropy` and this term on the target, and `distillation` or `teacher_consistency` in place of the source.

    Args:
      inputs: float x [B, ...] as the network receives it; the radius is in its units, over all its axes.
      apply_model: inputs -> scores [B, K], or [B, H, W, K] with every pixel a prediction. It should draw the same
        dropout at every call of a step: only then does the difference of two predictions come from r.
      weights: float [B].
      key: a typed random key.
      radius: epsilon in the paper, > 0.
      probe: xi. In a model that computes in bfloat16 a small one is lost, too: take the radius itself.
      iterations: of the power method, 1 in the paper.

    Returns:
      The loss, and {'perturbation_length'}: 0 in place of the radius where the model does not depend on its input.

    Raises:
      UserError: for inputs that are not float (tokens), or options that are not positive.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise UserError(f"virtual_adversarial moves the input and needs one of float numbers, got {inputs.dtype}; it "
                        f"does not work on tokens")
    if min(radius, probe, iterations) <= 0:
        raise UserError(f"virtual_adversarial: radius = {radius}, probe = {probe}, iterations = {iterations} do not "
                        f"fit; give numbers > 0")
    inputs = jax.lax.stop_gradient(inputs)
    clean = jax.lax.stop_gradient(jax.nn.log_softmax(apply_model(inputs).astype(jnp.float32)))

    def divergence(shift):
        moved = jax.nn.log_softmax(apply_model((inputs + shift).astype(inputs.dtype)).astype(jnp.float32))
        return jnp.sum(jnp.exp(clean) * (clean - moved), axis=-1)

    direction = unit(jax.random.normal(key, inputs.shape))
    for _ in range(iterations):
        direction = unit(jax.grad(lambda shift: jnp.sum(divergence(shift)))(probe * direction))
    shift = jax.lax.stop_gradient(radius * direction)
    return weighted_mean(divergence(shift), weights), {
        "perturbation_length": weighted_mean(example_lengths(shift), weights)}


def unit(x: jax.Array) -> jax.Array:
    """Every example [B, ...] divided by its length, float32; zeros stay. Squares of small entries do not underflow."""
    axes = tuple(range(1, x.ndim))
    x = x.astype(jnp.float32)
    x = x / jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True), jnp.finfo(jnp.float32).tiny)
    sizes = example_lengths(x).reshape((-1,) + (1,) * len(axes))
    return x / jnp.where(sizes > 0, sizes, 1.0)
