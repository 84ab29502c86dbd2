"""Terms in which a model, or an average of it, labels the examples that nobody has.

Predictions that teach are constants for the gradient. Roles `weak` and `strong` are two views of the same examples in
the same order; both may name one stream.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.core.reduction import weighted_mean


def pseudo_labels(logits: jax.Array, weights: jax.Array, *, threshold: float = 0.95,
                  divide_by: Literal["batch", "confident"] = "batch") -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy with the model's own likeliest class, where its probability is at least `threshold` (Lee 2013;
    there 0, with a weight that rises from 0: `weight_schedule`).

    Args:
      logits: float [B, K], or [B, H, W, K] with every pixel a prediction.
      weights: float [B].
      threshold: 0 to 1.
      divide_by: the sum of weights of the 'batch', or of the 'confident' predictions alone.

    Returns:
      The loss, 0 where nothing is confident, and {'confident'}: the share of confident predictions.
    """
    return _hard_targets("pseudo_labels", logits, logits, weights, threshold, divide_by)


def fixmatch(weak_logits: jax.Array, strong_logits: jax.Array, strong_weights: jax.Array, *, threshold: float = 0.95,
             divide_by: Literal["batch", "confident"] = "batch") -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of the strongly augmented view with the likeliest class of the weakly augmented one, where its
    probability is at least `threshold` (FixMatch; Sohn et al. 2020, eq. 4).

    The mean is over the whole batch, so that the term grows as predictions become sure.

    Args:
      weak_logits, strong_logits: float [B, K], of the same examples.
      strong_weights: float [B].
      threshold, divide_by: as in `pseudo_labels`.

    Returns:
      The loss, and {'confident'}.
    """
    _check_views("fixmatch", weak_logits, strong_logits)
    return _hard_targets("fixmatch", weak_logits, strong_logits, strong_weights, threshold, divide_by)


def flexmatch(weak_logits: jax.Array, strong_logits: jax.Array, strong_weights: jax.Array, strong_examples: jax.Array,
              carried: dict[str, jax.Array], *, threshold: float = 0.95, warm_up: bool = True,
              ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """`fixmatch` with a threshold for each class, lower for those that are learned less (FlexMatch; Zhang et al. 2021,
    algorithm 1).

    A table remembers for every example the class that it was last given with a probability of at least `threshold`.
    Class c that stands n_c times in it has the threshold `threshold` b / (2 - b), b = n_c / max(max_k n_k, number of
    examples never given one): the second in the maximum is the warm-up (eq. 11). With it thresholds begin at 0, where
    every prediction teaches, and rise as most of the stream is given a class, which takes many epochs; without it the
    class that is learned most has the whole `threshold` from its first example on. The table is read before this batch
    is written into it.

    Args:
      weak_logits, strong_logits, strong_weights: as in `fixmatch`.
      strong_examples: int32 [B], numbers of the examples within their stream.
      carried: {'given': float32 [examples of the stream], the class, or -1}.
      threshold: tau.
      warm_up: whether examples never given a class count.

    Returns:
      The loss, mean over the batch, {'confident', 'mean_threshold'}, and the table after this batch.
    """
    _check_views("flexmatch", weak_logits, strong_logits)
    _check_threshold("flexmatch", threshold)
    given, classes = carried["given"], weak_logits.shape[-1]
    thresholds = threshold * class_leniency(given, classes, warm_up)
    chosen, probability = _choices(weak_logits)
    loss, share = _masked_cross_entropy(strong_logits, chosen, probability >= thresholds[chosen], strong_weights,
                                        "batch")
    sure = (probability >= threshold) & (strong_weights > 0)
    kept = jnp.where(sure, chosen.astype(jnp.float32), given[strong_examples])
    return loss, {"confident": share, "mean_threshold": jnp.mean(thresholds)}, {
        "given": given.at[strong_examples].set(kept)}


def class_leniency(given: jax.Array, classes: int, warm_up: bool = True) -> jax.Array:
    """float32 [classes]: b / (2 - b), between 0 and 1, of the classes in a table of given ones (-1: none yet). Where
    none is given yet and there is no warm-up, 1: as in `fixmatch`."""
    counts = jnp.sum(jax.nn.one_hot(given.astype(jnp.int32), classes, dtype=jnp.float32), axis=0)
    most = jnp.max(counts)
    if not warm_up:
        return jnp.where(most > 0, _lenient(counts / jnp.maximum(most, 1)), 1.0)
    return _lenient(counts / jnp.maximum(jnp.maximum(most, jnp.sum(given < 0)), 1))


def _lenient(share: jax.Array) -> jax.Array:
    return share / (2 - share)


def teacher_consistency(strong_logits: jax.Array, weak_teacher_logits: jax.Array, strong_weights: jax.Array, *,
                        distance: Literal["squared", "divergence"] = "squared") -> jax.Array:
    """Distance of the student's predictions from those of the averaged model (mean teacher; Tarvainen & Valpola
    2017).

    Args:
      strong_logits: float [B, K], or [B, H, W, K], of the student on its view.
      weak_teacher_logits: of that shape, of the teacher on its own view of the same examples; constants.
      strong_weights: float [B].
      distance: 'squared', the mean over the classes of squared differences of probabilities, or 'divergence', KL of
        the student from the teacher.
    """
    _check_views("teacher_consistency", weak_teacher_logits, strong_logits)
    student, teacher = (jax.nn.log_softmax(z.astype(jnp.float32))
                        for z in (strong_logits, jax.lax.stop_gradient(weak_teacher_logits)))
    if distance == "squared":
        return weighted_mean(jnp.mean(jnp.square(jnp.exp(student) - jnp.exp(teacher)), axis=-1), strong_weights)
    if distance == "divergence":
        return weighted_mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1), strong_weights)
    raise UserError(f"teacher_consistency: distance = {distance!r} does not fit; use 'squared' or 'divergence'")


def self_ensembling(strong_logits: jax.Array, weak_teacher_logits: jax.Array, strong_weights: jax.Array, *,
                    threshold: float = 0.968, balance: float = 0.005) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared consistency with the teacher where it is sure, plus class balance (French, Mackiewicz & Fisher 2018,
    section 3).

    An example counts 1 if the teacher's largest probability is at least `threshold`, else 0; the mean over the classes
    of squared differences is averaged over the whole batch. Class balance is the binary cross-entropy between 1 / K and
    the student's mean prediction, summed over the classes, times the share of sure examples.

    Args:
      strong_logits, weak_teacher_logits: float [B, K], as in `teacher_consistency`.
      strong_weights: float [B].
      threshold: 0 for none.
      balance: weight of class balance within the term, which the paper multiplies by 3 as a whole.

    Returns:
      The loss, and {'confident'}: the share of sure examples.
    """
    _check_views("self_ensembling", weak_teacher_logits, strong_logits)
    _check_threshold("self_ensembling", threshold)
    student, teacher = (jax.nn.softmax(z.astype(jnp.float32))
                        for z in (strong_logits, jax.lax.stop_gradient(weak_teacher_logits)))
    sure = (jnp.max(teacher, axis=-1) >= threshold).astype(jnp.float32)
    share = weighted_mean(sure, strong_weights)
    loss = weighted_mean(sure * jnp.mean(jnp.square(student - teacher), axis=-1), strong_weights)
    if balance:
        classes = student.shape[-1]
        means = jax.vmap(weighted_mean, (-1, None))(student, strong_weights)
        # The floor keeps the slope finite at a class that nobody, or everybody, is given.
        logs, others = (jnp.log(jnp.maximum(x, 1e-6)) for x in (means, 1 - means))
        loss += balance * share * -jnp.sum(logs / classes + (1 - 1 / classes) * others)
    return loss, {"confident": share}


def _hard_targets(name: str, teaching: jax.Array, logits: jax.Array, weights: jax.Array, threshold: float,
                  divide_by: str) -> tuple[jax.Array, dict[str, jax.Array]]:
    _check_threshold(name, threshold)
    if divide_by not in ("batch", "confident"):
        raise UserError(f"{name}: divide_by = {divide_by!r} does not fit; use 'batch' or 'confident'")
    chosen, probability = _choices(teaching)
    loss, share = _masked_cross_entropy(logits, chosen, probability >= threshold, weights, divide_by)
    return loss, {"confident": share}


def _choices(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., K] -> the likeliest class, int32 [...], and its probability, without gradient."""
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32))
    return jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1)


def _masked_cross_entropy(logits: jax.Array, chosen: jax.Array, mask: jax.Array, weights: jax.Array,
                          divide_by: str) -> tuple[jax.Array, jax.Array]:
    """The mean loss, and the share of the mask."""
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), chosen[..., None], axis=-1)[..., 0]
    mask = mask.astype(jnp.float32)
    masses = mask if divide_by == "confident" else None
    return weighted_mean(-mask * logs, weights, masses), weighted_mean(mask, weights)


def _check_views(name: str, weak: jax.Array, strong: jax.Array) -> None:
    if weak.shape != strong.shape:
        raise UserError(f"{name}: the two views have predictions {weak.shape} and {strong.shape}; give the same "
                        f"examples, in the same order, to both roles")


def _check_threshold(name: str, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UserError(f"{name}: threshold = {threshold} does not fit; give a number from 0 to 1")
