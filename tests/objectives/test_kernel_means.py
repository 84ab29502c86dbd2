"""MMD against loops over all pairs; its estimates, widths, blocks and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite
from tests.objectives.kernel_pairs import PAIR, draw, in_pairs, squared, width_of
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import kernels as kernel_module
from transfer_jax.objectives import local_mmd, mmd
from transfer_jax.objectives.kernels import _distance_bits, order_statistic


def plain_mmd(x, constants, rule, multipliers, kernels, estimator):
    width = width_of(constants, rule) or 1.0

    def kernel(a, b):
        distance = squared(x[PAIR[a[0]]][a[1]], x[PAIR[b[0]]][b[1]])
        values = [np.exp(-distance / (m * width)) for m in multipliers]
        return np.mean(values) if kernels == "mean" else np.sum(values)

    return in_pairs(x, kernel, estimator)


VARIANTS = (("biased", "mean", "mean"), ("unbiased", "median", "sum"), ("linear", "source_median", "mean"),
            ("ring", "mean_with_self", "sum"), ("unbiased", 1.7, "mean"))


def test_mmd_is_its_definition():
    for seed in range(20):
        estimator, rule, kernels = VARIANTS[seed % len(VARIANTS)]
        options = {"multipliers": (0.5, 1.0, 3.0), "kernels": kernels, "estimator": estimator}
        arrays = draw(np.random.default_rng(seed), equal=estimator == "ring", least=3)
        agrees(functools.partial(mmd, bandwidth=rule, **options),
               functools.partial(plain_mmd, rule=rule, **options), arrays, seed)


def test_equal_samples_orders_and_origins():
    rng = np.random.default_rng(1)
    arrays = draw(rng)
    source, target = arrays.values()
    np.testing.assert_allclose(mmd(source, source), 0, atol=1e-6)
    shuffled = mmd(rng.permutation(source), rng.permutation(target))
    np.testing.assert_allclose(shuffled, mmd(source, target), rtol=1e-5)
    np.testing.assert_allclose(mmd(source + 300, target + 300), mmd(source, target), rtol=1e-3)
    np.testing.assert_allclose(mmd(target, source), mmd(source, target), rtol=1e-5)
    np.testing.assert_allclose(mmd(3 * source, 3 * target), mmd(source, target), rtol=1e-4)  # the width follows


@pytest.mark.parametrize("estimator", ["unbiased", "linear", "ring"])
def test_unbiased_estimates_are_zero_on_average_under_equality(estimator):
    draws = jnp.asarray(np.random.default_rng(2).normal(size=(600, 2, 8, 3)), jnp.float32)
    values = jax.jit(jax.vmap(lambda x: mmd(x[0], x[1], bandwidth=3.0, estimator=estimator)))(draws)
    error = values.std() / np.sqrt(600)
    assert abs(values.mean()) < 4 * error and values.min() < 0 < values.max()
    apart = jax.jit(jax.vmap(lambda x: mmd(x[0], x[1] + 1, bandwidth=3.0, estimator=estimator)))(draws)
    assert apart.mean() > 10 * error


def test_blocks_give_what_one_matrix_gives(monkeypatch):
    rng = np.random.default_rng(3)
    arrays = {name: jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32)
              for name, rows in zip(PAIR, (37, 23), strict=True)}
    labels, logits = rng.integers(0, 4, 37), jnp.asarray(rng.normal(size=(23, 4)))
    terms = [functools.partial(mmd, bandwidth=rule, estimator=estimator) for rule in ("median", "source_median")
             for estimator in ("biased", "unbiased")]
    terms.append(lambda source_features, target_features: local_mmd(source_features, labels, target_features, logits))
    whole = [jax.jit(jax.value_and_grad(lambda x, term=term: term(**x)))(arrays) for term in terms]
    monkeypatch.setattr(kernel_module, "BLOCK", 100)
    for term, (value, gradient) in zip(terms, whole, strict=True):
        blocked = jax.jit(jax.value_and_grad(lambda x, term=term: term(**x)))(arrays)
        np.testing.assert_allclose(blocked[0], value, rtol=1e-4, atol=1e-6)
        for name in arrays:
            np.testing.assert_allclose(blocked[1][name], gradient[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_4096_against_4096_vectors_need_less_than_a_gigabyte(rule):
    """All of it, gradients too; a single kernel matrix of both domains has 256 MiB, and there are five."""
    jax.config.update("jax_disable_most_optimizations", False)
    shape = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    program = jax.jit(jax.value_and_grad(functools.partial(mmd, bandwidth=rule), (0, 1))).lower(shape, shape).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 10**9
    if rule == "mean":
        assert memory.temp_size_in_bytes < 2 * 10**8


def test_order_statistics_are_those_of_sorting():
    rng = np.random.default_rng(4)
    values = np.concatenate([np.zeros(5), rng.gamma(0.1, size=50), [1e-30, 1e30, 7, 7, 7]]).astype(np.float32)
    bits = jnp.asarray(values).view(jnp.int32)
    found = jax.jit(jax.vmap(lambda index: order_statistic(bits, index)))(jnp.arange(len(values)))
    np.testing.assert_array_equal(found, np.sort(values))
    x = rng.normal(size=(9, 2)).astype(np.float32)
    distances = np.sort(np.asarray(_distance_bits(jnp.asarray(x)).view(jnp.float32)).ravel())[:81]
    np.testing.assert_allclose(distances, np.sort(((x[:, None] - x[None])**2).sum(-1).ravel()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["mean", "mean_with_self", "median", "source_median"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "ring"])
def test_equal_vectors_have_finite_values_and_slopes(rule, estimator, request):
    if rule != "mean" and estimator != "biased" and not request.config.getoption("--all"):
        pytest.skip("the width and the estimate are tried one at a time; run with --all")
    same = {name: np.ones((4, 3)) for name in PAIR}
    value = finite(functools.partial(mmd, bandwidth=rule, estimator=estimator), same)
    np.testing.assert_allclose(value, 0, atol=1e-6)


@pytest.mark.parametrize(("options", "words"), [
    ({"convention": "tlib"}, "did you mean 'tllib'"), ({"kernels": "max"}, "'mean' or 'sum'"),
    ({"bandwidth": "mode"}, "'mean'"), ({"bandwidth": -1.0}, "number > 0"), ({"multipliers": ()}, "numbers > 0"),
    ({"convention": "tllib"}, "equally many"), ({"estimator": "ring"}, "equally many")])
def test_misfits_are_told(options, words):
    with pytest.raises(UserError, match=words):
        mmd(np.ones((4, 2)), np.ones((3, 2)), **options)
