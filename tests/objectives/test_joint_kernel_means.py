"""MMD of several layers together (JAN), and class by class (LMMD)."""

import functools

import numpy as np

from tests.objectives.definitions import agrees, finite, softmax
from tests.objectives.kernel_pairs import PAIR, draw, in_pairs, squared, width_of
from transfer_jax.objectives import joint_mmd, local_mmd, mmd


def layers_of(rng, sources, targets):
    arrays = {}
    for domain, rows in (("source", sources), ("target", targets)):
        shapes = {"hidden": (rows, 2, 3), "pooled": (rows, 4), "logits": (rows, 3)}
        arrays |= {f"{domain}_{name}": rng.normal(size=shape) for name, shape in shapes.items()}
    return arrays


def joint(source_hidden, source_pooled, source_logits, target_hidden, target_pooled, target_logits, **options):
    return joint_mmd((source_hidden, source_pooled), source_logits, (target_hidden, target_pooled), target_logits,
                     **options)


def joint_definition(x, constants, rule, multipliers, kernels, estimator, offset=0.0, sigma=0.92):
    def flat(x, name):
        return {f"{domain}_features": x[f"{domain}_{name}"].reshape(len(x[f"{domain}_{name}"]), -1)
                for domain in ("source", "target")}

    layers = [(flat(x, name), width_of(flat(constants, name), rule)) for name in ("hidden", "pooled")]

    def kernel(a, b):
        product = 1.0
        for now, width in layers:
            distance = squared(now[PAIR[a[0]]][a[1]], now[PAIR[b[0]]][b[1]])
            values = [np.exp(-distance / (m * width)) for m in multipliers]
            product *= np.mean(values) if kernels == "mean" else np.sum(values)
        p, q = (softmax(x[f"{('source', 'target')[d]}_logits"][i]) for d, i in (a, b))
        return product * np.exp(-squared(p, q) / (2 * sigma**2))

    return in_pairs({name: x[f"{domain}_pooled"] for name, domain in zip(PAIR, ("source", "target"), strict=True)},
                    kernel, estimator) + offset / (len(x["source_pooled"]) - 1)


def test_joint_mmd_multiplies_the_kernels_of_the_layers():
    for seed in range(20):
        estimator = ("biased", "unbiased", "linear")[seed % 3]
        rng = np.random.default_rng(seed)
        arrays = layers_of(rng, *rng.integers(2, 6, 2))
        agrees(functools.partial(joint, estimator=estimator),
               functools.partial(joint_definition, rule="mean", multipliers=(0.25, 0.5, 1, 2, 4), kernels="mean",
                                 estimator=estimator), arrays, seed)


def test_joint_mmd_of_tllib():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        arrays = layers_of(rng, *[rng.integers(3, 6)] * 2)
        agrees(functools.partial(joint, convention="tllib"),
               lambda x, c: joint_definition(x, c, "mean_with_self", (0.25, 0.5, 1, 2, 4), "sum", "unbiased", 2.0),
               arrays, seed)


def local_definition(x, constants, kernels="mean"):
    width, labels = width_of(constants, "mean"), x["source_labels"]
    probabilities = softmax(constants["target_task_logits"])
    present = set(labels.tolist()) & set(np.argmax(probabilities, axis=1).tolist())

    def kernel(a, b):
        values = [np.exp(-squared(a, b) / (m * width)) for m in (0.25, 0.5, 1, 2, 4)]
        return np.mean(values) if kernels == "mean" else np.sum(values)

    total = 0.0
    for c in present:
        source = [(float(label == c) / np.sum(labels == c), row) for label, row in zip(labels, x["source_features"],
                                                                                        strict=True)]
        target = [(p[c] / probabilities[:, c].sum(), row) for p, row in zip(probabilities, x["target_features"],
                                                                            strict=True)]
        signed = source + [(-share, row) for share, row in target]
        total += sum(p * q * kernel(a, b) for p, a in signed for q, b in signed)
    return total / max(len(present), 1)


def test_local_mmd_is_mmd_by_class_with_absent_classes_left_out():
    met = set()
    for seed in range(20):
        convention, kernels = (("default", "mean"), ("jindongwang", "sum"))[seed % 2]
        rng = np.random.default_rng(seed)
        arrays = draw(rng, least=1)
        arrays |= {"source_labels": rng.integers(0, 3, len(arrays["source_features"])),
                   "target_task_logits": rng.normal(0, 2, (len(arrays["target_features"]), 3))}
        agrees(functools.partial(local_mmd, convention=convention),
               functools.partial(local_definition, kernels=kernels), arrays, seed)
        met.add(local_definition(arrays, arrays) == 0)
    assert met == {True, False}  # also batches without a class in common


def test_local_mmd_sees_what_mmd_cannot():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(-2, 0.1, (6, 2)), rng.normal(2, 0.1, (6, 2))])
    labels = np.repeat([0, 1], 6)
    right, swapped = (10 * np.eye(2)[order] for order in (labels, 1 - labels))
    assert mmd(features, features) < 1e-6
    assert local_mmd(features, labels, features, right) < 1e-3 < 0.3 < local_mmd(features, labels, features, swapped)


def test_degenerate_batches_of_the_others_stay_finite():
    zeros = {name: np.zeros(x.shape) for name, x in layers_of(np.random.default_rng(0), 2, 3).items()}
    finite(joint, zeros)
    features = {name: np.zeros((1, 2)) for name in PAIR}
    for label in (0, 1, 7):
        value = finite(lambda label=label, **x: local_mmd(x["source_features"], np.array([label]),
                                                          x["target_features"], np.array([[9.0, 0.0]])), features)
        assert value == 0
