"""A domain classifier that sees features and predictions together (CDAN)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.layers.gradient import reverse_gradient
from transfer_jax.objectives.adversarial import reversal_scale, two_domain_loss

# Beyond this many entries of the outer product the paper samples it.
LARGEST_OUTER_PRODUCT = 4096


def conditional_adversarial(source_features: jax.Array, source_task_logits: jax.Array, target_features: jax.Array,
                            target_task_logits: jax.Array, apply_head: Callable[[jax.Array], jax.Array],
                            progress: jax.Array, *, entropy_weights: bool = False, randomized: bool | None = None,
                            size: int = 1024, seed: int = 0, through_predictions: bool = False, gamma: float = 10.0,
                            max_scale: float = 1.0, schedule: Literal["ganin", "constant"] = "ganin",
                            ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`domain_adversarial` on g x f, the outer product of the class probabilities g and the features f (CDAN; Long,
    Cao, Wang & Jordan 2018, section 3); with `entropy_weights` CDAN+E.

    CDAN+E gives an example the weight 1 + exp(-H(g)), so that sure predictions count twice as much as those that could
    be anything. The weights are constants for the gradient and are divided by their sum within each domain:
    each domain counts for one half. (tllib divides by the mean over both domains together, pytorch-adapt by the
    largest weight.)

    Args:
      source_features, target_features: float [Bs, D], [Bt, D].
      source_task_logits, target_task_logits: float [Bs, K], [Bt, K]: the scores of the `task`, beside the `head` that
        tells the domains.
      apply_head: array [B, K D] or, randomized, [B, size] -> one logit per row, positive for the source.
      progress, gamma, max_scale, schedule: as in `domain_adversarial`.
      randomized: replaces the outer product by (R_f f) * (R_g g) / sqrt(size) with R of independent standard normal
        entries, whose inner products are those of the outer products on average. None: where K D > 4096.
      size: number of entries of the randomized product.
      seed: of R, which is the same at every step and after a resumption.
      through_predictions: whether the reversed gradient also reaches the classifier, as the equations of the paper say;
        the published code holds g constant.

    Returns:
      The loss, and {'domain_accuracy', 'reversal_scale'}.

    Raises:
      UserError: for features or scores that are not one vector per example.
    """
    scale = reversal_scale(progress, gamma=gamma, max_scale=max_scale, schedule=schedule)
    features, probabilities, entropies = _joint_inputs(source_features, source_task_logits, target_features,
                                                       target_task_logits)
    if not through_predictions:
        probabilities = jax.lax.stop_gradient(probabilities)
    if randomized is None:
        randomized = features.shape[1] * probabilities.shape[1] > LARGEST_OUTER_PRODUCT
    joint = randomized_product(features, probabilities, size, seed) if randomized else outer_product(features,
                                                                                                     probabilities)
    weights = jax.lax.stop_gradient(1 + jnp.exp(-entropies))[:, None] if entropy_weights else None
    loss, metrics = two_domain_loss("conditional_adversarial", reverse_gradient(joint, scale), len(source_features),
                                    apply_head, weights)
    return loss, {**metrics, "reversal_scale": scale}


def outer_product(features: jax.Array, probabilities: jax.Array) -> jax.Array:
    """[B, D] and [B, K] -> [B, K D], entry (k, d) at k D + d."""
    return (probabilities[:, :, None] * features[:, None, :]).reshape(len(features), -1)


def randomized_product(features: jax.Array, probabilities: jax.Array, size: int, seed: int) -> jax.Array:
    """[B, D] and [B, K] -> float32 [B, size] with the inner products of `outer_product` in the mean over seeds."""
    keys = jax.random.split(jax.random.key(seed))
    projected = [jnp.matmul(x, jax.random.normal(key, (x.shape[1], size)), precision="highest")
                 for key, x in zip(keys, (features, probabilities), strict=True)]
    return projected[0] * projected[1] / jnp.sqrt(jnp.float32(size))


def _joint_inputs(source_features: jax.Array, source_logits: jax.Array, target_features: jax.Array,
                  target_logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float32 features [Bs + Bt, D], probabilities [Bs + Bt, K] and entropies [Bs + Bt]."""
    for features, logits in ((source_features, source_logits), (target_features, target_logits)):
        if features.ndim != 2 or logits.ndim != 2:
            raise UserError(f"conditional_adversarial needs features [batch, length] and class scores [batch, "
                            f"classes], got {features.shape} and {logits.shape}; take a pooled tap and a classifier")
    features = jnp.concatenate([source_features, target_features]).astype(jnp.float32)
    logs = jax.nn.log_softmax(jnp.concatenate([source_logits, target_logits]).astype(jnp.float32))
    return features, jnp.exp(logs), -jnp.sum(jnp.exp(logs) * logs, axis=-1)
