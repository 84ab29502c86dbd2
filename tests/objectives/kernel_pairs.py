"""Kernel means written out as loops over pairs of examples."""

import itertools

import numpy as np

PAIR = ("source_features", "target_features")


def draw(rng, equal=False, least=2):
    sources = rng.integers(least, 8)
    targets = sources if equal else rng.integers(least, 8)
    length = rng.integers(1, 5)
    return {"source_features": rng.normal(size=(sources, length)),
            "target_features": rng.normal(0.5, 1.5, size=(targets, length))}


def squared(x, y):
    return float(sum((a - b)**2 for a, b in zip(x, y, strict=True)))


def both(x):
    return [*x["source_features"], *x["target_features"]]


def width_of(x, rule):
    rows = both(x)
    distinct = [squared(a, b) for a, b in itertools.combinations(rows, 2)]
    every = [squared(a, b) for a in rows for b in rows]
    source = sorted(squared(a, b) for a in x["source_features"] for b in x["source_features"])
    return {"mean": np.mean(distinct), "mean_with_self": np.mean(every), "median": np.median(distinct),
            "source_median": source[(len(source) - 1) // 2]}.get(rule, rule)


def in_pairs(x, kernel, estimator):
    """The estimators, pair by pair, for any kernel of two row numbers (domain, row)."""
    source, target = ([(d, i) for i in range(len(x[name]))] for d, name in enumerate(PAIR))
    if estimator in ("linear", "ring"):
        count = min(len(source), len(target)) // 2
        pairs = [(2 * i, 2 * i + 1) for i in range(count)]
        if estimator == "ring":
            pairs = [(i, (i + 1) % len(source)) for i in range(len(source))]
        return np.mean([kernel(source[i], source[j]) + kernel(target[i], target[j]) - kernel(source[i], target[j])
                        - kernel(source[j], target[i]) for i, j in pairs])
    total = -2 * np.mean([kernel(a, b) for a in source for b in target])
    for rows in (source, target):
        total += np.mean([kernel(a, b) for a in rows for b in rows if estimator == "biased" or a != b])
    return total
