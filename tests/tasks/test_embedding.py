"""Embedding: losses against loops over pairs and triplets, their gradients, and retrieval against its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.models import HEADS
from transfer_jax.tasks import TASKS, TaskSpec, head_outputs
from transfer_jax.tasks.embedding import (
    contrastive_pairs,
    pairwise_distances,
    retrieval,
    supervised_contrastive,
    triplet,
)

RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 0, 2, 1, 1, 3, 0])
X = RNG.normal(size=(8, 5))
X /= np.linalg.norm(X, axis=1, keepdims=True)
ONES = np.ones(8)
D = np.linalg.norm(X[:, None] - X[None], axis=-1)
LOSSES = [contrastive_pairs, triplet, lambda *a: triplet(*a, mining="hard"), supervised_contrastive]


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def value(loss, *arguments, **options):
    found = loss(*map(jnp.asarray, arguments), **options)
    return float(found[0] if isinstance(found, tuple) else found)


def test_contrastive_is_the_mean_over_pairs():
    pairs = [(D[i, j], LABELS[i] == LABELS[j]) for i, j in itertools.combinations(range(8), 2)]
    near = np.mean([d**2 for d, same in pairs if same])
    far = np.mean([max(0, 1.3 - d) ** 2 for d, same in pairs if not same])
    assert value(contrastive_pairs, X, LABELS, ONES, margin=1.3) == pytest.approx((near + far) / 2)


def by_loops(mining, margin):
    losses = []
    for a in range(8):
        positives = [p for p in range(8) if p != a and LABELS[p] == LABELS[a]]
        negatives = [n for n in range(8) if LABELS[n] != LABELS[a]]
        if mining == "hard" and positives:
            losses.append(max(0, margin + max(D[a, p] for p in positives) - min(D[a, n] for n in negatives)))
        for p in positives if mining == "semi_hard" else ():
            farther = [D[a, n] for n in negatives if D[a, n] > D[a, p]]
            losses.append(max(0, margin + D[a, p] - (min(farther) if farther else max(D[a, n] for n in negatives))))
    return np.mean(losses)


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
def test_triplets_are_those_of_loops(mining):
    assert value(triplet, X, LABELS, ONES, margin=0.3, mining=mining) == pytest.approx(by_loops(mining, 0.3))
    assert by_loops("hard", 0.3) != by_loops("semi_hard", 0.3)


def test_supervised_contrastive_is_the_sum_over_anchors():
    terms = []
    for i in range(8):
        others = [a for a in range(8) if a != i]
        positives = [p for p in others if LABELS[p] == LABELS[i]]
        total = np.log(sum(np.exp(X[i] @ X[a] / 0.2) for a in others))
        if positives:
            terms.append(-np.mean([X[i] @ X[p] / 0.2 - total for p in positives]))
    assert value(supervised_contrastive, X, LABELS, ONES, temperature=0.2) == pytest.approx(np.mean(terms))


@pytest.mark.parametrize("loss", LOSSES)
def test_examples_of_weight_zero_do_not_exist_and_gradients_are_slopes(loss):
    weights = ONES.copy()
    weights[[1, 6]] = 0
    kept = weights > 0
    assert value(loss, X, LABELS, weights) == pytest.approx(value(loss, X[kept], LABELS[kept], ONES[kept]))

    def scalar(x):
        found = loss(x, jnp.asarray(LABELS), jnp.asarray(ONES))
        return found[0] if isinstance(found, tuple) else found

    slope, direction = jax.grad(scalar)(jnp.asarray(X)), jnp.asarray(RNG.normal(size=X.shape))
    numeric = (scalar(X + 1e-6 * direction) - scalar(X - 1e-6 * direction)) / 2e-6
    assert float(jnp.vdot(slope, direction)) == pytest.approx(float(numeric), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("x,labels", [(np.ones((4, 3)), [0, 0, 1, 1]), (np.eye(4), [0, 1, 2, 3]),
                                      (np.eye(4), [0, 0, 0, 0])])
def test_equal_vectors_single_classes_and_lone_examples_are_finite(loss, x, labels):
    def scalar(x):
        found = loss(x, jnp.array(labels), jnp.ones(4))
        return found[0] if isinstance(found, tuple) else found

    found, slope = jax.value_and_grad(scalar)(jnp.asarray(x))
    assert np.isfinite(found) and np.isfinite(slope).all()


def test_distances():
    np.testing.assert_allclose(pairwise_distances(jnp.asarray(X), jnp.asarray(X)), D, atol=1e-7)


def retrieved_by_definition(x, labels, k):
    recalls, precisions = [], []
    for q in range(len(x)):
        order = sorted((i for i in range(len(x)) if i != q), key=lambda i: (-float(x[q] @ x[i]), i))
        right = [labels[i] == labels[q] for i in order]
        size = sum(right)
        if size:
            recalls.append(any(right[:k]))
            precisions.append(sum(right[i] * sum(right[:i + 1]) / (i + 1) for i in range(size)) / size)
    return np.mean(recalls), np.mean(precisions)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_retrieval_follows_its_definition(k, monkeypatch):
    monkeypatch.setattr("transfer_jax.tasks.embedding.QUERIES", 7)
    x = RNG.integers(-2, 3, (40, 3)).astype(float)  # many ties
    labels = RNG.integers(0, 12, 40)
    recall, precision = retrieved_by_definition(x, labels, k)
    scores = retrieval(x, labels)
    assert scores[f"recall_at_{k}"] == pytest.approx(recall) and scores["map_at_r"] == pytest.approx(precision)


def test_retrieval_without_a_second_example_of_a_class():
    assert np.isnan(list(retrieval(np.eye(3), np.arange(3)).values())).all()


def test_spec_head_and_bad_mining():
    task = TaskSpec(kind="embedding", head="e", outputs=16)
    assert head_outputs(task) == 16 and head_outputs(TaskSpec(kind="embedding", head="e")) == 64
    vectors = HEADS["embedding"](outputs=16).init_with_output(jax.random.key(0), {"pooled": jnp.ones((2, 3))})[0]
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert "recall_at_1" in TASKS["embedding"].measures["retrieval"].better
    with pytest.raises(UserError, match="semi_hard"):
        triplet(jnp.ones((2, 2)), jnp.zeros(2), jnp.ones(2), mining="easy")
