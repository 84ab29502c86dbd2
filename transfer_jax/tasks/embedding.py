"""Embedding: a vector of length 1 an example, near those of its class and far from others."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.tasks.kind import ClassNames, TaskKind
from transfer_jax.tasks.metric import Batch, Collected, Result

RECALLS = (1, 2, 4, 8)
NEAREST = 1e-12  # below which two vectors are one, where the square root has no slope
QUERIES = 512  # whose distances are in memory at once


def pairwise_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean distances of the rows of [N, D] and [M, D], [N, M]; the slope where two rows are equal is 0."""
    squares = jnp.sum((x[:, None] - y[None]) ** 2, -1)
    apart = squares > NEAREST
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1.0)), 0.0)


def _pairs(labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """bool [B, B]: pairs of one class, without those of an example and itself, and pairs of two classes."""
    counted = (weights[:, None] > 0) & (weights[None] > 0)
    same = labels[:, None] == labels[None]
    return counted & same & ~jnp.eye(len(labels), dtype=bool), counted & ~same


def _mean(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Mean of the chosen entries; 0 if there is none."""
    return jnp.where(chosen, values, 0).sum() / jnp.maximum(chosen.sum(), 1)


def contrastive_pairs(logits: jax.Array, labels: jax.Array, weights: jax.Array, *, margin: float = 1.0) -> jax.Array:
    """d^2 / 2 of pairs of one class, max(0, margin - d)^2 / 2 of others (Hadsell et al. 2006, equation 4).

    The mean over pairs of either kind, added: there are many more of the second.

    Args:
      logits: vectors float32 [B, D].
      labels: int32 [B].
      weights: float32 [B]; 0: the example does not count.
    """
    distances = pairwise_distances(logits, logits)
    same, other = _pairs(labels, weights)
    return (_mean(distances**2, same) + _mean(jax.nn.relu(margin - distances) ** 2, other)) / 2


def triplet(logits: jax.Array, labels: jax.Array, weights: jax.Array, *, margin: float = 0.2,
            mining: str = "semi_hard", squared: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """max(0, margin + d(anchor, positive) - d(anchor, negative)), mean over triplets.

    `mining`: 'semi_hard', for every pair of one class the nearest negative that is farther than the positive, where
    there is none the farthest of all (Schroff et al. 2015); 'hard', for every anchor its farthest positive and nearest
    negative (Hermans et al. 2017, equation 5). `squared`: of squared distances, as Schroff et al. do.

    Returns:
      The loss, and the share of triplets within the margin.
    """
    if mining not in ("semi_hard", "hard"):
        raise UserError(f"mining={mining!r} of the triplet loss is unknown; use 'semi_hard' or 'hard'")
    distances = pairwise_distances(logits, logits)
    distances = distances**2 if squared else distances
    same, other = _pairs(labels, weights)
    if mining == "hard":
        far = jnp.where(same, distances, -jnp.inf).max(1)
        near = jnp.where(other, distances, jnp.inf).min(1)
        usable = same.any(1) & other.any(1)
    else:
        far, usable = distances, same & other.any(1)[:, None]
        farther = other[:, None] & (distances[:, None] > distances[:, :, None])  # [anchor, positive, negative]
        nearest = jnp.where(farther, distances[:, None], jnp.inf).min(2)
        farthest = jnp.where(other, distances, -jnp.inf).max(1)[:, None]
        near = jnp.where(farther.any(2), nearest, farthest)
    # Chosen before they are subtracted: infinite distances of triplets that are none would poison the gradient.
    excess = margin + jnp.where(usable, far, 0.0) - jnp.where(usable, near, 0.0)
    return _mean(jax.nn.relu(excess), usable), {"active": _mean(jnp.float32(excess > 0), usable)}


def supervised_contrastive(logits: jax.Array, labels: jax.Array, weights: jax.Array, *,
                           temperature: float = 0.1) -> jax.Array:
    """Mean over anchors of the mean over their positives of -log softmax of the similarity to the positive, among all
    others of the batch (SupCon, Khosla et al. 2020, equation 2). Anchors without a positive do not count."""
    same, other = _pairs(labels, weights)
    similar = jnp.where(same | other, logits @ logits.T / temperature, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(similar.max(1, keepdims=True), -1e30))
    total = jnp.exp(similar - top).sum(1, keepdims=True)
    logs = jnp.where(same, similar, 0.0) - top - jnp.log(jnp.maximum(total, 1e-30))
    each = -jnp.where(same, logs, 0).sum(1) / jnp.maximum(same.sum(1), 1)
    return _mean(each, same.any(1))


def retrieval(vectors: np.ndarray, labels: np.ndarray) -> Result:
    """recall@k and MAP@R (Musgrave et al. 2020) of every example as a query among all others, by falling similarity.

    Of equal similarities the earlier example comes first. A query whose class has no other example does not count; NaN
    if none counts. Exact: nothing is sampled, blocks of queries only spare memory.

    Args:
      vectors: [n, D], of length 1.
      labels: [n].
    """
    recalls, precisions = {k: [] for k in RECALLS}, []
    for start in range(0, len(vectors), QUERIES):
        rows = np.arange(start, min(start + QUERIES, len(vectors)))
        similar = vectors[rows].astype(np.float64) @ vectors.T.astype(np.float64)
        similar[np.arange(len(rows)), rows] = -np.inf
        order = np.argsort(-similar, axis=1, kind="stable")[:, :-1]
        right = labels[order] == labels[rows, None]
        total = right.sum(1)
        right, total = right[total > 0], total[total > 0]
        for k in RECALLS:
            recalls[k] += right[:, :k].any(1).tolist()
        places = np.arange(1, right.shape[1] + 1)
        hits = right & (places <= total[:, None])
        precisions += ((np.cumsum(right, 1) / places * hits).sum(1) / total).tolist()
    scores = {f"recall_at_{k}": float(np.mean(found)) if found else float("nan") for k, found in recalls.items()}
    return {**scores, "map_at_r": float(np.mean(precisions)) if precisions else float("nan")}


def _rows(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"vectors": outputs.astype(jnp.float32), "labels": batch["label"]}


def _retrieved(rows: Mapping[str, np.ndarray]) -> Result:
    return retrieval(rows["vectors"], rows["labels"])


def _vector(outputs: jax.Array) -> dict[str, jax.Array]:
    """Outputs [B, D] -> prediction float32 [B, D]."""
    return {"prediction": outputs.astype(jnp.float32)}


def _length(class_names: ClassNames) -> int:
    """64 numbers, where the task's `outputs` does not say otherwise."""
    del class_names
    return 64


EMBEDDING = TaskKind(
    label="label", loss=Component(kind="supervised_contrastive"), outputs=_length, predict=_vector,
    metrics=("retrieval",), has_classes=False,
    terms={"contrastive_pairs": contrastive_pairs, "triplet": triplet,
           "supervised_contrastive": supervised_contrastive},
    measures={"retrieval": Collected(_rows, _retrieved,
                                     {name: "max" for name in (*(f"recall_at_{k}" for k in RECALLS), "map_at_r")})})
