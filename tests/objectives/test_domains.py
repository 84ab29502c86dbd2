"""Terms on two domains: adversarial, covariance and kernel means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from transfer_jax.core.errors import UserError
from transfer_jax.objectives import deep_coral as eager_deep_coral
from transfer_jax.objectives import domain_adversarial
from transfer_jax.objectives import mmd as eager_mmd
from transfer_jax.objectives.adversarial import reversal_scale

RNG = np.random.default_rng(2)
SOURCE = RNG.normal(size=(10, 4)).astype(np.float32)
TARGET = (RNG.normal(size=(7, 4)) * [1, 2, 0.5, 1] + [0, 0, 1, 0]).astype(np.float32)
HEAD = jnp.asarray(RNG.normal(size=(4, 1)), jnp.float32)
deep_coral = jax.jit(eager_deep_coral, static_argnames=("mean_weight", "convention"))
mmd = jax.jit(eager_mmd, static_argnames=("bandwidth", "multipliers", "estimator"))


def adversarial(source=SOURCE, target=TARGET, head=HEAD, progress=0.7, **options):
    def run(source, target, head, progress):
        return domain_adversarial(source, target, lambda x: x @ head, progress, **options)
    return jax.jit(run)(source, target, head, progress)


def test_domain_loss_is_the_mean_of_both_domains_and_log_two_at_chance():
    loss, metrics = adversarial()
    source, target = SOURCE @ HEAD, TARGET @ HEAD
    expected = (np.log1p(np.exp(-source)).mean() + np.log1p(np.exp(target)).mean()) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["domain_accuracy"], ((source > 0).mean() + (target <= 0).mean()) / 2, rtol=1e-6)
    np.testing.assert_allclose(adversarial(head=0 * HEAD)[0], np.log(2), rtol=1e-6)
    assert loss.dtype == jnp.float32


def test_reversal_scale_follows_the_published_schedule():
    progress = jnp.linspace(0, 1, 11)
    scales = reversal_scale(progress, gamma=10.0, max_scale=0.5, schedule="ganin")
    np.testing.assert_allclose(scales, 0.5 * (2 / (1 + np.exp(-10 * np.linspace(0, 1, 11))) - 1), atol=1e-6)
    assert scales[0] == 0 and np.all(np.diff(scales) > 0)
    assert reversal_scale(jnp.zeros(()), gamma=10.0, max_scale=0.5, schedule="constant") == 0.5
    with pytest.raises(UserError, match="'ganin' or 'constant'"):
        adversarial(schedule="linear")


def test_a_step_lowers_the_loss_for_the_head_and_raises_it_for_the_encoder():
    encoder = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)

    def loss(parameters):
        return adversarial(SOURCE @ parameters["encoder"], TARGET @ parameters["encoder"], parameters["head"],
                           schedule="constant", max_scale=2.0)[0]

    start = {"encoder": encoder, "head": HEAD}
    loss = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(start)
    for name, sign in (("encoder", 1), ("head", -1)):
        moved = {**start, name: start[name] - 0.01 * gradient[name]}
        assert sign * (loss(moved) - loss(start)) > 0


def test_the_reversed_gradient_is_minus_scale_times_the_plain_one():
    def plain(x):
        logits = x @ HEAD
        return (jnp.mean(jax.nn.softplus(-logits[:10])) + jnp.mean(jax.nn.softplus(logits[10:]))) / 2

    both = np.concatenate([SOURCE, TARGET])
    reversed_gradient = jax.jit(jax.grad(lambda x: adversarial(x[:10], x[10:])[0]))(both)
    scale = reversal_scale(jnp.asarray(0.7), gamma=10.0, max_scale=1.0, schedule="ganin")
    np.testing.assert_allclose(reversed_gradient, -scale * jax.jit(jax.grad(plain))(both), rtol=1e-4, atol=1e-7)


def test_progress_may_be_traced_and_maps_are_allowed():
    maps = RNG.normal(size=(2, 5, 3, 3, 4)).astype(np.float32)
    loss = jax.jit(lambda p: adversarial(maps[0], maps[1], progress=p)[0])(0.3)
    np.testing.assert_allclose(loss, adversarial(maps[0].reshape(-1, 4), maps[1].reshape(-1, 4))[0], rtol=1e-5)
    with pytest.raises(UserError, match="1 output"):
        adversarial(head=jnp.ones((4, 2)))


def test_deep_coral_equals_numpy_covariances():
    difference = np.cov(SOURCE.T) - np.cov(TARGET.T)
    np.testing.assert_allclose(deep_coral(SOURCE, TARGET), np.sum(difference**2) / (4 * 16), rtol=1e-5)
    means = np.mean((SOURCE.mean(0) - TARGET.mean(0))**2)
    np.testing.assert_allclose(deep_coral(SOURCE, TARGET, mean_weight=3.0) - deep_coral(SOURCE, TARGET), 3 * means,
                               rtol=1e-4)


def test_deep_coral_of_other_libraries_weighs_means_and_covariances_alike():
    expected = np.mean((SOURCE.mean(0) - TARGET.mean(0))**2) + np.mean((np.cov(SOURCE.T) - np.cov(TARGET.T))**2)
    np.testing.assert_allclose(deep_coral(SOURCE, TARGET, convention="tllib"), expected, rtol=1e-5)
    with pytest.raises(UserError, match="'paper' or 'tllib'"):
        deep_coral(SOURCE, TARGET, convention="skada")


def test_deep_coral_is_zero_exactly_for_equal_covariances():
    np.testing.assert_allclose(deep_coral(SOURCE, SOURCE + 5), 0, atol=1e-10)  # blind to the mean
    assert deep_coral(SOURCE, SOURCE + 5, mean_weight=1.0) > 20
    centre, cholesky = TARGET - TARGET.mean(0), np.linalg.cholesky
    matched = centre @ np.linalg.inv(cholesky(np.cov(TARGET.T)).T) @ cholesky(np.cov(SOURCE.T)).T
    np.testing.assert_allclose(deep_coral(SOURCE, matched.astype(np.float32)), 0, atol=1e-10)
    assert deep_coral(SOURCE, TARGET) > 1e-3


def test_deep_coral_scales_with_the_fourth_power_and_survives_large_means():
    np.testing.assert_allclose(deep_coral(2 * SOURCE, 2 * TARGET), 16 * deep_coral(SOURCE, TARGET), rtol=1e-5)
    np.testing.assert_allclose(deep_coral(SOURCE + 1e3, TARGET + 1e3), deep_coral(SOURCE, TARGET), rtol=1e-3)


def test_maps_count_as_many_vectors():
    maps = RNG.normal(size=(2, 5, 3, 2, 4)).astype(np.float32)
    for term in (deep_coral, mmd):
        np.testing.assert_allclose(term(maps[0], maps[1]), term(maps[0].reshape(-1, 4), maps[1].reshape(-1, 4)))


@pytest.mark.parametrize("estimator, bandwidth", [("biased", "mean"), ("unbiased", "median"), ("biased", 2.5)])
def test_mmd_equals_brute_force(estimator, bandwidth):
    both = np.concatenate([SOURCE, TARGET]).astype(np.float64)
    distances = ((both[:, None] - both[None])**2).sum(-1)
    pairs = distances[np.triu_indices(17, 1)]
    width = {"mean": pairs.mean(), "median": np.median(pairs)}.get(bandwidth, bandwidth)

    def kernel(x, y):
        return np.mean([rbf_kernel(x, y, gamma=1 / (m * width)) for m in (0.5, 1.0, 3.0)], axis=0)

    def within(x):
        values = kernel(x, x)
        return values.mean() if estimator == "biased" else values[~np.eye(len(x), dtype=bool)].mean()

    expected = within(SOURCE) + within(TARGET) - 2 * kernel(SOURCE, TARGET).mean()
    ours = mmd(SOURCE, TARGET, bandwidth=bandwidth, multipliers=(0.5, 1.0, 3.0), estimator=estimator)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_biased_mmd_vanishes_on_equal_samples_and_the_unbiased_one_on_average():
    np.testing.assert_allclose(mmd(SOURCE, SOURCE[::-1]), 0, atol=1e-6)
    draws = jnp.asarray(RNG.normal(size=(400, 2, 8, 3)), jnp.float32)
    values = jax.jit(jax.vmap(lambda x: mmd(x[0], x[1], bandwidth=3.0, estimator="unbiased")))(draws)
    error = values.std() / np.sqrt(400)
    assert abs(values.mean()) < 4 * error and values.min() < 0 < values.max()
    assert jax.jit(jax.vmap(lambda x: mmd(x[0], x[1], bandwidth=3.0)))(draws).min() > 0


def test_gradients_and_descent():
    towards = 0.01 * RNG.normal(size=TARGET.shape).astype(np.float32)
    for term in (deep_coral, functools.partial(mmd, bandwidth=4.0)):
        gradient = jax.jit(jax.grad(term, 1))(SOURCE, TARGET)
        slope = (term(SOURCE, TARGET + towards) - term(SOURCE, TARGET - towards)) / 2
        np.testing.assert_allclose(np.vdot(gradient, towards), slope, rtol=2e-2, atol=1e-5)
        assert term(SOURCE, TARGET - 0.05 * gradient) < term(SOURCE, TARGET)


def test_equal_vectors_have_a_finite_kernel_gradient():
    same = np.ones((10, 4), np.float32)
    assert np.isfinite(jax.jit(jax.grad(mmd))(same, same)).all()


def test_the_methods_differ():
    values = [float(term(SOURCE, TARGET)) for term in (deep_coral, mmd)] + [float(adversarial()[0])]
    assert len({round(value, 4) for value in values}) == 3
    directions = [np.asarray(jax.grad(term)(SOURCE, TARGET)).ravel() for term in (deep_coral, mmd)]
    assert abs(np.corrcoef(*directions)[0, 1]) < 0.99


@pytest.mark.parametrize("call, words", [
    (lambda: deep_coral(SOURCE[:1], TARGET), "at least 2 examples"),
    (lambda: deep_coral(SOURCE[:, :2], TARGET), "same tap"),
    (lambda: mmd(SOURCE, TARGET, bandwidth="modal"), "bandwidth = 'modal'"),
    (lambda: mmd(SOURCE, TARGET, estimator="cubic"), "'biased' or 'unbiased'"),
])
def test_misfits_are_one_clear_sentence(call, words):
    with pytest.raises(UserError, match=words):
        call()
