"""Beside POT and skada, where they are installed; neither is a requirement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.adaptation.correlation import alignment
from transfer_jax.adaptation.domains import Problem
from transfer_jax.adaptation.kmm import minimise, program
from transfer_jax.adaptation.subspaces import subspace_alignment
from transfer_jax.adaptation.transport import barycentric, costs, exact_plan, sinkhorn_plan


@pytest.fixture
def pot():
    return pytest.importorskip("ot", reason="compares with POT, which is not installed here")


@pytest.fixture
def skada():
    return pytest.importorskip("skada", reason="compares with skada, which is not installed here")


def drawn(n_s=24, n_t=18, d=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_s, d)), rng.normal(0.5, 1, (n_t, d)) @ rng.normal(size=(d, d))


def stacked(source, target):
    """As skada takes them: one array, positive and negative domains."""
    return np.concatenate([source, target]), np.repeat([1, -2], [len(source), len(target)])


def test_plans_are_those_of_pot(pot):
    source, target = drawn()
    cost = costs(source, target)
    cost = cost / cost.max()
    a, b = np.full(24, 1 / 24), np.full(18, 1 / 18)
    assert (exact_plan(cost) * cost).sum() == pytest.approx(pot.emd2(a, b, cost), rel=1e-9)
    theirs = pot.sinkhorn(a, b, cost, 0.05, stopThr=1e-13, numItermax=20000)
    ours = sinkhorn_plan(cost, 0.05, 20000, 1e-13)
    np.testing.assert_allclose(ours, theirs, atol=1e-10)
    np.testing.assert_allclose(barycentric(ours, target), theirs @ target / theirs.sum(1, keepdims=True), atol=1e-7)


def test_coral_is_that_of_skada(skada):
    source, target = drawn(20, 20)  # it divides by n where we divide by n - 1
    x, domain = stacked(source, target)
    moved = skada.CORALAdapter(reg=0.0).fit_transform(x, sample_domain=domain)
    ours, theirs = source @ np.asarray(alignment(source, target, 0.0)), moved[domain > 0]
    np.testing.assert_allclose(ours - ours.mean(0), theirs - theirs.mean(0), atol=1e-8)  # they differ in the place


def test_subspace_alignment_is_that_of_skada(skada):
    source, target = drawn()
    source, target = source - source.mean(0), target - target.mean(0)
    x, domain = stacked(source, target)
    theirs = skada.SubspaceAlignmentAdapter(n_components=2).fit_transform(x, sample_domain=domain)
    mapping = subspace_alignment(Problem(source, np.arange(24) % 2, target, np.full(18, -1), None), dimensions=2)
    ours = np.concatenate([mapping.of_source(source), mapping.of_target(target)])
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-8)


def test_kmm_reaches_at_least_skadas_objective(skada):
    source, target = drawn()
    x, domain = stacked(source, target)
    adapter = skada.KMMReweightAdapter(gamma=0.5, B=5.0, eps=0.1, solver="scipy").fit(x, sample_domain=domain)
    theirs = adapter.source_weights_.ravel()
    with jax.enable_x64(True):
        matrix, linear = program(source, target, 1.0)
        ours, _ = minimise(matrix, linear, 5.0, 24 * 0.9, 24 * 1.1, 1e-12, 50000)
        matrix, linear, ours = (np.asarray(part) for part in (matrix, jnp.asarray(linear), ours))
    values = [b @ matrix @ b / 2 - linear @ b for b in (ours, theirs)]
    assert theirs.max() <= 5 + 1e-6 and values[0] <= values[1] + 1e-9
