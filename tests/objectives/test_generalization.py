"""IRM, V-REx and GroupDRO: losses of several domains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import group_dro, irm_penalty, risk_variance
from transfer_jax.objectives.carried import CARRIED

COUNT = 4


def draw(rng):
    """Logits, and fixed labels, weights and domains; often without an example of some domain."""
    batch, classes = rng.integers(1, 12), rng.integers(2, 6)
    return {"logits": rng.normal(0, 2, (batch, classes))}, {
        "labels": rng.integers(0, classes, batch), "weights": rng.integers(0, 3, batch).astype(np.float32),
        "domains": rng.integers(0, COUNT, batch)}


def rows_of(fixed, domain):
    return [i for i in range(len(fixed["labels"])) if fixed["domains"][i] == domain and fixed["weights"][i] > 0]


def risk(x, fixed, rows, scale=1.0):
    losses = [-np.log(softmax(scale * x["logits"][i])[fixed["labels"][i]]) for i in rows]
    return np.average(losses, weights=[fixed["weights"][i] for i in rows])


def domain_rows(fixed):
    return [rows for rows in (rows_of(fixed, domain) for domain in range(COUNT)) if rows]


def scale_slope(x, fixed, rows):
    """The derivative in the scale of the scores, by differences: no formula is trusted."""
    return (risk(x, fixed, rows, 1 + 1e-4) - risk(x, fixed, rows, 1 - 1e-4)) / 2e-4


def penalty(x, _, fixed, halves):
    values = []
    for rows in domain_rows(fixed):
        if not halves:
            values.append(scale_slope(x, fixed, rows)**2)
        elif len(rows) > 1:
            values.append(scale_slope(x, fixed, rows[::2]) * scale_slope(x, fixed, rows[1::2]))
    return np.mean(values) if values else 0.0


def test_irm_penalises_the_slope_in_the_scale_of_the_scores():
    for seed in range(20):
        arrays, fixed = draw(np.random.default_rng(seed))
        halves = seed % 2 == 1
        agrees(functools.partial(irm_penalty, count=COUNT, halves=halves, **fixed),
               functools.partial(penalty, fixed=fixed, halves=halves), arrays, seed, slope_atol=1e-4)


def test_the_halves_are_unbiased_where_the_square_is_not():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(2000, 8, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (2000, 8)))
    large = irm_penalty(values.reshape(-1, 3), labels.reshape(-1), jnp.ones(16000), jnp.zeros(16000, int), count=1)
    means = {halves: jax.vmap(lambda z, y, halves=halves: irm_penalty(
        z, y, jnp.ones(8), jnp.zeros(8, int), count=1, halves=halves))(values, labels) for halves in (False, True)}
    error = means[True].std() / np.sqrt(2000)
    assert abs(means[True].mean() - large) < 4 * error < means[False].mean() - large


def variance(x, _, fixed):
    risks = [risk(x, fixed, rows) for rows in domain_rows(fixed)]
    return np.var(risks) if risks else 0.0


def test_risk_variance_is_that_of_the_domains_that_are_there():
    for seed in range(20):
        arrays, fixed = draw(np.random.default_rng(seed))
        agrees(functools.partial(risk_variance, count=COUNT, **fixed), functools.partial(variance, fixed=fixed), arrays,
               seed)


def weighted_risk(x, constants, fixed, q, step):
    def risks(x):
        return np.array([risk(x, fixed, rows) if rows else 0.0 for rows in (rows_of(fixed, d) for d in range(COUNT))])

    q = q * np.exp(step * risks(constants))
    return np.sum(q / q.sum() * risks(x))


def test_group_dro_weighs_the_domains_by_their_losses():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        arrays, fixed = draw(rng)
        q, step = rng.dirichlet(np.ones(COUNT)), (0.01, 1.0)[seed % 2]
        agrees(lambda logits, fixed=fixed, q=q, step=step: group_dro(
            logits, **fixed, carried={"domain_weights": jnp.asarray(q, jnp.float32)}, count=COUNT, step=step),
            functools.partial(weighted_risk, fixed=fixed, q=q, step=step), arrays, seed)


def test_the_weights_stay_on_the_simplex_and_move_to_the_worst_domain():
    logits, labels = jnp.array([[0.0, 5], [0, 0], [5, 0]]), jnp.array([1, 1, 1])
    carried = CARRIED["group_dro"](count=4)
    np.testing.assert_array_equal(carried["domain_weights"], np.full(4, 0.25))
    update = jax.jit(lambda carried: group_dro(logits, labels, jnp.ones(3), jnp.array([0, 1, 2]), carried, count=4,
                                               step=0.5)[2])
    for _ in range(500):
        carried = update(carried)
        q = np.asarray(carried["domain_weights"])
        assert np.all(q >= 0) and abs(q.sum() - 1) < 1e-5
    assert q[2] > 0.999
    _, metrics, _ = group_dro(logits, labels, jnp.ones(3), jnp.array([0, 1, 2]), carried, count=4)
    np.testing.assert_allclose(metrics["worst_risk"], np.log1p(np.exp(5)), rtol=1e-5)


def test_descending_evens_the_risks():
    rng = np.random.default_rng(1)
    logits, labels, domains = jnp.asarray(rng.normal(size=(9, 3))), jnp.zeros(9, int), jnp.arange(9) % 3
    for term in (risk_variance, lambda *x, count: (irm_penalty(*x, count=count),)):
        slope = jax.grad(lambda z, term=term: term(z, labels, jnp.ones(9), domains, count=3)[0])(logits)
        before, after = (term(z, labels, jnp.ones(9), domains, count=3)[0] for z in (logits, logits - 0.1 * slope))
        assert after < before


def test_extreme_scores_absent_domains_and_single_examples_stay_finite():
    for logits in (1e4 * np.eye(3), np.zeros((1, 3))):
        count = len(logits)
        fixed = {"labels": jnp.zeros(count, int), "domains": jnp.full(count, 2), "weights": jnp.ones(count)}
        for term in (functools.partial(irm_penalty, halves=True), irm_penalty, risk_variance,
                     functools.partial(group_dro, carried=CARRIED["group_dro"](count=COUNT), step=10.0)):
            finite(functools.partial(term, count=COUNT, **fixed), {"logits": logits})
        nobody = {**fixed, "weights": jnp.zeros(count)}
        for term in (irm_penalty, risk_variance):
            assert finite(functools.partial(term, count=COUNT, **nobody), {"logits": logits}) == 0


def test_a_label_that_is_no_class_is_told_by_nan_unless_it_is_padding():
    logits, domains = jnp.ones((2, 3)), jnp.zeros(2, int)
    for term in (irm_penalty, risk_variance):
        for weights, missing in ((jnp.ones(2), True), (jnp.array([1.0, 0.0]), False)):
            result = jax.value_and_grad(lambda z, term=term, w=weights: jnp.asarray(jax.tree.leaves(
                term(z, jnp.array([0, 7]), w, domains, count=1))[0]))(logits)
            assert np.isnan(result[0]) == missing
            assert missing or np.isfinite(result[1]).all()


def test_misfits_are_told():
    for term in (irm_penalty, risk_variance, functools.partial(group_dro, carried={})):
        with pytest.raises(UserError, match="labels"):
            term(jnp.ones((2, 3, 3, 4)), jnp.ones((2, 3, 3)), jnp.ones(2), domains=jnp.zeros(2, int), count=2)
        with pytest.raises(UserError, match="number of domains"):
            term(jnp.ones((2, 3)), jnp.zeros(2, int), jnp.ones(2), domains=jnp.zeros(2, int), count=0)
        with pytest.raises(UserError, match="compares domains"):
            term(jnp.ones((2, 3)), jnp.zeros(2, int), jnp.ones(2), domains=None, count=2)
    with pytest.raises(UserError, match="count = 0"):
        CARRIED["group_dro"](count=0)
