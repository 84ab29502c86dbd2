"""Distances of two domains by the means of a kernel: MMD on features, on several layers together, and by class."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError
from transfer_jax.objectives.alignment import vectors
from transfer_jax.objectives.kernels import (
    Layers,
    Profile,
    Settings,
    centred,
    gaussian,
    kernel_sum,
    paired,
    resolve,
    width,
)


def mmd(source_features: jax.Array, target_features: jax.Array, *, convention: str = "default",
        bandwidth: float | str | None = None, multipliers: Sequence[float] | None = None, kernels: str | None = None,
        estimator: str | None = None) -> jax.Array:
    """Squared maximum mean discrepancy, E k(s, s') + E k(t, t') - 2 E k(s, t) (Gretton et al. 2012, eq. 3, 5 and
    lemma 14; with several widths Long et al. 2015).

    The kernel is the mean (or sum) over the multipliers m of exp(-|x - y|^2 / (m b)). Up to 2^20 pairs are computed at
    once; larger batches go through blocks and cost time, not memory.

    Args:
      source_features, target_features: float [Bs, d], [Bt, d] or maps [B, H, W, d], every position a vector.
      convention: what the other options are when they are not given: 'default' (biased, mean of kernels of widths
        1/4, 1/2, 1, 2, 4 times the mean squared distance), or as in 'tllib', 'xlearn' (the authors of DAN),
        'jindongwang' (transferlearning, DeepDA), 'pytorch_adapt' or 'domainbed': see `kernels.CONVENTIONS`.
      bandwidth: b, or 'mean', 'mean_with_self', 'median' or 'source_median': see `kernels.width`.
      multipliers: m, widths of the kernels relative to b.
      kernels: 'mean' or 'sum' over the multipliers.
      estimator: 'biased' keeps the pairs of a vector with itself and is never negative; 'unbiased' leaves them out;
        'linear' takes the disjoint pairs (0, 1), (2, 3) ... of both domains, as many as the smaller batch has, and is
        unbiased, of more variance; 'ring' (tllib) takes the pairs (i, i + 1) around the batch.

    Raises:
      UserError: for fewer than two vectors in a domain, different lengths, options that do not fit, or unequal batches
        where the estimator or convention needs equal ones ('ring', 'tllib').
    """
    settings = resolve("mmd", convention, bandwidth=bandwidth, multipliers=multipliers, kernels=kernels,
                       estimator=estimator)
    source, target = centred(*vectors("mmd", source_features, target_features))
    found = width(source, target, settings.bandwidth)
    return _estimate("mmd", lambda squared: gaussian(squared[0], found, settings.multipliers, settings.kernels),
                     (source,), (target,), settings)


def joint_mmd(source_layers: Layers, source_task_logits: jax.Array, target_layers: Layers,
              target_task_logits: jax.Array, *, convention: str = "default", bandwidth: float | str | None = None,
              multipliers: Sequence[float] | None = None, kernels: str | None = None, estimator: str | None = None,
              sigma: float = 0.92) -> jax.Array:
    """MMD with the product of the layers' kernels: the joint distribution of layers and predictions (JAN; Long et al.
    2017).

    Every layer has the kernel of `mmd` with its own bandwidth; the class probabilities have
    exp(-|p - p'|^2 / (2 sigma^2)), as in the published code.

    Args:
      source_layers, target_layers: the features of the `taps`, float [B, ...] each; every example is one vector.
      source_task_logits, target_task_logits: float [Bs, K], [Bt, K].
      convention, bandwidth, multipliers, kernels, estimator: as in `mmd`. tllib adds its 2 / (n - 1) here too, though
        the diagonal of a product of sums of kernels has another size.

    Raises:
      UserError: as in `mmd`.
    """
    settings = resolve("joint_mmd", convention, bandwidth=bandwidth, multipliers=multipliers, kernels=kernels,
                       estimator=estimator)
    pairs = [centred(*vectors("joint_mmd", x.reshape(len(x), -1), y.reshape(len(y), -1)))
             for x, y in zip(source_layers, target_layers, strict=True)]
    widths = [width(x, y, settings.bandwidth) for x, y in pairs]
    pairs.append(centred(*vectors("joint_mmd", *(jax.nn.softmax(z.astype(jnp.float32))
                                                 for z in (source_task_logits, target_task_logits)))))

    def profile(squared: Layers) -> jax.Array:
        product = jnp.exp(-squared[-1] / (2 * sigma**2))
        for values, found in zip(squared[:-1], widths, strict=True):
            product *= gaussian(values, found, settings.multipliers, settings.kernels)
        return product

    source, target = (tuple(layers) for layers in zip(*pairs, strict=True))
    return _estimate("joint_mmd", profile, source, target, settings)


def local_mmd(source_features: jax.Array, source_labels: jax.Array, target_features: jax.Array,
              target_task_logits: jax.Array, *, convention: str = "default", bandwidth: float | str | None = None,
              multipliers: Sequence[float] | None = None, kernels: str | None = None) -> jax.Array:
    """Biased MMD between the same classes of both domains, mean over the classes (LMMD of DSAN; Zhu et al. 2020).

    The source vectors of a class count equally; target vectors by their predicted probability of it, a constant for the
    gradient. Only classes count that are labels in the source batch and the likeliest prediction somewhere in the
    target batch; without any the value is 0. The paper raises the weight with the progress (`weight_schedule`).

    Args:
      source_features, target_features: float [Bs, d], [Bt, d].
      source_labels: int [Bs].
      target_task_logits: float [Bt, K].
      convention, bandwidth, multipliers, kernels: as in `mmd`.
    """
    settings = resolve("local_mmd", convention, bandwidth=bandwidth, multipliers=multipliers, kernels=kernels)
    if source_features.ndim != 2 or target_features.ndim != 2 or target_task_logits.ndim != 2:
        raise UserError(f"local_mmd needs one vector and one prediction per example, got {source_features.shape}, "
                        f"{target_features.shape} and {target_task_logits.shape}; take a pooled tap and a classifier")
    source, target = centred(*vectors("local_mmd", source_features, target_features, least=1))
    shares = _class_shares(source_labels, target_task_logits)
    found = width(source, target, settings.bandwidth)

    def profile(squared: Layers) -> jax.Array:
        return gaussian(squared[0], found, settings.multipliers, settings.kernels)

    within = [kernel_sum(profile, (x,), (x,), share, share, same=True)
              for x, share in zip((source, target), shares, strict=True)]
    return within[0] + within[1] - 2 * kernel_sum(profile, (source,), (target,), *shares)


def _class_shares(labels: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 [Bs, K], [Bt, K]: what an example counts for in each class, so that every class that counts weighs 1 /
    sqrt(number of such classes) in each domain; zeros elsewhere."""
    classes = logits.shape[-1]
    members = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(logits.astype(jnp.float32)))
    counts, masses = jnp.sum(members, axis=0), jnp.sum(probabilities, axis=0)
    predicted = jnp.any(jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes, dtype=bool), axis=0)
    shared = (counts > 0) & predicted  # a class that is predicted has at least 1 / K of mass
    scale = jnp.sqrt(jnp.maximum(jnp.sum(shared), 1)).astype(jnp.float32)
    return tuple(jnp.where(shared, x / jnp.where(shared, total, 1.0), 0.0) / scale
                 for x, total in ((members, counts), (probabilities, masses)))


def _estimate(name: str, profile: Profile, source: Layers, target: Layers, settings: Settings) -> jax.Array:
    counts = len(source[0]), len(target[0])
    if counts[0] != counts[1] and (settings.offset or settings.estimator == "ring"):
        raise UserError(f"{name}: tllib's convention and its estimator 'ring' need equally many examples of both "
                        f"domains, got {counts[0]} and {counts[1]}; give both streams one batch size")
    value = settings.offset / (counts[0] - 1)
    if settings.estimator == "linear":
        return value + _mean_of_pairs(profile, *(tuple(x[start:2 * (min(counts) // 2):2] for x in layers)
                                                 for layers in (source, target) for start in (0, 1)))
    if settings.estimator == "ring":
        return value + _mean_of_pairs(profile, source, tuple(jnp.roll(x, -1, axis=0) for x in source), target,
                                      tuple(jnp.roll(x, -1, axis=0) for x in target))
    unbiased = settings.estimator == "unbiased"
    for layers, count in zip((source, target), counts, strict=True):
        pairs = count * (count - 1) if unbiased else count**2
        value += kernel_sum(profile, layers, layers, same=True, distinct=unbiased) / pairs
    return value - 2 * kernel_sum(profile, source, target) / (counts[0] * counts[1])


def _mean_of_pairs(profile: Profile, source: Layers, other_source: Layers, target: Layers,
                   other_target: Layers) -> jax.Array:
    """mean_i k(s_i, s'_i) + k(t_i, t'_i) - k(s_i, t'_i) - k(s'_i, t_i)."""
    return jnp.mean(paired(profile, source, other_source) + paired(profile, target, other_target)
                    - paired(profile, source, other_target) - paired(profile, other_source, target))
