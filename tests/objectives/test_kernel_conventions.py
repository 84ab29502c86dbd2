"""MMD as five other libraries compute it, each written from its description."""

import functools

import jax
import numpy as np
import pytest

from tests.objectives.definitions import agrees
from tests.objectives.kernel_pairs import both, draw, squared, width_of
from transfer_jax.objectives import mmd
from transfer_jax.objectives.kernels import CONVENTIONS


def tllib(x, constants, linear=False):
    z, fixed, n = np.array(both(x)), np.array(both(constants)), len(x["source_features"])
    distances = np.array([[squared(a, b) for b in z] for a in z])
    scale = np.mean([[squared(a, b) for b in fixed] for a in fixed])
    matrix = sum(np.exp(-distances / (2 * 2.0**k * scale)) for k in range(-3, 2))
    index = np.zeros_like(matrix)
    for i in range(n):
        if linear:
            j = (i + 1) % n
            for a, b, sign in ((i, j, 1), (i + n, j + n, 1), (i, j + n, -1), (j, i + n, -1)):
                index[a, b] += sign / n
            continue
        for j in range(n):
            if i != j:
                index[i, j] = index[i + n, j + n] = 1 / (n * (n - 1))
            index[i, j + n] = index[i + n, j] = -1 / n**2
    return np.sum(matrix * index) + 2 / (n - 1)


def five_kernels(x, constants):
    z, fixed = np.array(both(x)), np.array(both(constants))
    count = len(z)
    bandwidth = sum(squared(a, b) for a in fixed for b in fixed) / (count**2 - count) / 2**(5 // 2)
    distances = np.array([[squared(a, b) for b in z] for a in z])
    return [np.exp(-distances / (bandwidth * 2**k)) for k in range(5)]


def xlearn(x, constants):
    matrix, n = sum(five_kernels(x, constants)) / 5, len(x["source_features"])
    first = second = 0.0
    for a in range(n):
        first += sum(matrix[a, b] + matrix[a + n, b + n] for b in range(a + 1, n))
        second += sum(matrix[a, b + n] + matrix[b, a + n] for b in range(n))
    return first / (n * (n - 1) / 2) - second / n**2


def jindongwang(x, constants):
    matrix, n = sum(five_kernels(x, constants)), len(x["source_features"])
    return np.mean(matrix[:n, :n] + matrix[n:, n:] - matrix[:n, n:] - matrix[n:, :n])


def pytorch_adapt(x, constants):
    n = len(x["source_features"])
    scale = 1 / width_of(constants, "source_median")

    def mean(a, b, divisor, skip):
        return sum(np.exp(-scale * squared(p, q)) for i, p in enumerate(a) for j, q in enumerate(b)
                   if not (skip and i == j)) / divisor

    source, target = x["source_features"], x["target_features"]
    return (mean(source, source, n * (n - 1), True) + mean(target, target, n * (n - 1), True)
            - 2 * mean(source, target, n * n, False))


def domainbed(x, _):
    def mean(a, b):
        return np.mean([[sum(np.exp(-gamma * squared(p, q)) for gamma in (1e-3, 1e-2, 0.1, 1, 10, 100, 1000))
                         for q in b] for p in a])

    source, target = x["source_features"], x["target_features"]
    return mean(source, source) + mean(target, target) - 2 * mean(source, target)


@pytest.mark.parametrize("library", [tllib, xlearn, jindongwang, pytorch_adapt, domainbed])
def test_conventions_of_other_libraries(library):
    for seed in range(5):
        arrays = draw(np.random.default_rng(seed), equal=True, least=3)
        agrees(functools.partial(mmd, convention=library.__name__), library, arrays, seed)
    ours = [float(jax.jit(functools.partial(mmd, convention=name))(**arrays)) for name in CONVENTIONS]
    assert len({round(value, 4) for value in ours}) == len(ours)  # none is another in disguise


def test_the_linear_estimate_of_tllib_runs_around_the_ring():
    for seed in range(5):
        agrees(functools.partial(mmd, convention="tllib", estimator="ring"), functools.partial(tllib, linear=True),
               draw(np.random.default_rng(seed), equal=True, least=3), seed)
