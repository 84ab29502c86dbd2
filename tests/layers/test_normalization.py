"""BatchNorm against `nn.BatchNorm`, and what freezing means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transfer_jax.layers.normalization import BatchNorm, _by_own_statistics, _with_short_gradient


def variables(channels=5):
    a, b, c, d = jax.random.split(jax.random.key(3), 4)
    return {"params": {"scale": 1 + jax.random.normal(a, (channels,)), "bias": jax.random.normal(b, (channels,))},
            "batch_stats": {"mean": jax.random.normal(c, (channels,)), "var": jax.random.uniform(d, (channels,)) + 0.5}}


def images(offset=0.0, channels=5):
    return 2 * jax.random.normal(jax.random.key(0), (4, 6, 6, channels)) + 1 + offset


def test_training_equals_flax_in_value_statistics_and_gradients():
    x, own = images(), variables()

    def run(layer, **mode):
        def loss(params, x):
            y, moved = layer.apply({**own, "params": params}, x, mutable=["batch_stats"], **mode)
            return jnp.sin(y).sum(), (y, moved)
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(own["params"], x)

    ours = run(BatchNorm(momentum=0.8), train=True)
    flax = run(nn.BatchNorm(momentum=0.8), use_running_average=False)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-5), ours, flax)


def test_evaluation_and_initialisation_equal_flax():
    x = images()
    ours = BatchNorm().init(jax.random.key(0), x, train=True)
    flax = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)
    np.testing.assert_allclose(BatchNorm().apply(variables(), x),
                               nn.BatchNorm(use_running_average=True).apply(variables(), x), atol=1e-5)


def test_frozen_uses_and_keeps_stored_statistics_bit_for_bit():
    own = variables()
    for step in range(20):
        y, moved = BatchNorm().apply({**own, "live": {"value": False}}, images(step), train=True,
                                     mutable=["batch_stats"])
        np.testing.assert_array_equal(y, BatchNorm().apply(own, images(step), train=False))
        jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], own["batch_stats"])
    live = BatchNorm().apply({**own, "live": {"value": True}}, images(), train=True, mutable=["batch_stats"])[1]
    assert float(jnp.abs(live["batch_stats"]["mean"] - own["batch_stats"]["mean"]).max()) > 1e-3


def test_a_large_mean_does_not_destroy_the_variance():
    x = images()
    y, _ = BatchNorm().apply(variables(), x, train=True, mutable=["batch_stats"])
    shifted, _ = BatchNorm().apply(variables(), x + 3000.0, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(shifted, y, atol=5e-3)


def test_bfloat16_output_with_float32_statistics():
    y, moved = BatchNorm(dtype=jnp.bfloat16).apply(variables(), images().astype(jnp.bfloat16), train=True,
                                                   mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16 and moved["batch_stats"]["var"].dtype == jnp.float32


@pytest.mark.parametrize("unbiased", [False, True])
def test_stored_variance_of_either_kind(unbiased, torch):
    x, own = images(), variables()
    y, moved = BatchNorm(unbiased=unbiased).apply(own, x, train=True, mutable=["batch_stats"])
    theirs = torch.nn.BatchNorm2d(5)
    theirs.load_state_dict({"weight": torch.tensor(np.array(own["params"]["scale"])),
                            "bias": torch.tensor(np.array(own["params"]["bias"])),
                            "running_mean": torch.tensor(np.array(own["batch_stats"]["mean"])),
                            "running_var": torch.tensor(np.array(own["batch_stats"]["var"])),
                            "num_batches_tracked": torch.tensor(0)})
    output = theirs(torch.tensor(np.array(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(y, output, atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], theirs.running_mean.numpy(), rtol=1e-5)
    count = x.size // 5
    batch = (theirs.running_var.numpy() - 0.9 * np.asarray(own["batch_stats"]["var"])) / 0.1
    expected = batch if unbiased else batch * (count - 1) / count
    stored = (moved["batch_stats"]["var"] - 0.9 * own["batch_stats"]["var"]) / 0.1
    np.testing.assert_allclose(stored, expected, rtol=1e-4)


def test_a_single_value_per_channel_stays_finite():
    _, moved = BatchNorm(unbiased=True).apply(variables(), jnp.ones((1, 5)), train=True, mutable=["batch_stats"])
    assert bool(jnp.isfinite(moved["batch_stats"]["var"]).all())


def stochastic(rate, key=0, train=True, **collections):
    return BatchNorm(momentum=0.8).apply({**variables(), "stochastic": {"rate": rate}, **collections}, images(),
                                         train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(key)})


def test_stochastic_norm_chooses_statistics_per_channel_and_moves_them_all():
    whole, moved = BatchNorm(momentum=0.8).apply(variables(), images(), True, mutable=["batch_stats"])
    stored = BatchNorm(momentum=0.8).apply(variables(), images(), False)  # by those before the step
    seen = set()
    for key in range(8):
        y, after = stochastic(0.5, key)
        jax.tree.map(np.testing.assert_array_equal, after, moved)
        own = np.array([np.array_equal(y[..., c], whole[..., c]) for c in range(5)])
        np.testing.assert_allclose(y, np.where(own, whole, stored), rtol=1e-6, atol=1e-6)
        seen.add(tuple(own))
    assert len(seen) > 3
    np.testing.assert_array_equal(stochastic(1.0)[0], whole)
    np.testing.assert_allclose(stochastic(0.0)[0], stored, rtol=1e-6, atol=1e-6)


def test_stochastic_norm_leaves_evaluation_and_frozen_layers_alone():
    stored = BatchNorm(momentum=0.8).apply(variables(), images(), False)
    np.testing.assert_array_equal(stochastic(0.5, train=False)[0], stored)
    y, after = stochastic(0.5, live={"value": False})
    np.testing.assert_array_equal(y, stored)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables()["batch_stats"])


def test_the_gradient_of_stochastic_norm_is_that_of_the_chosen_statistics():
    def loss(x, rate):
        y, _ = BatchNorm().apply({**variables(), "stochastic": {"rate": rate}}, x, True, mutable=["batch_stats"],
                                 rngs={"dropout": jax.random.key(3)})
        return jnp.sin(y).sum()

    x, half = images(), jax.grad(loss)(images(), 0.5)
    ends = [jax.grad(loss)(x, rate) for rate in (0.0, 1.0)]
    own = np.array([np.allclose(half[..., c], ends[1][..., c], atol=1e-6) for c in range(5)])
    assert 0 < own.sum() < 5
    np.testing.assert_allclose(half, np.where(own, ends[1], ends[0]), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3), (7, 3), (2, 3, 4, 4, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_written_gradient_is_the_derived_one(affine, shape):
    """Also to the statistics themselves, of second order, per member and inside of remat and scan."""
    x = 2 * jax.random.normal(jax.random.key(0), (2, *shape), jnp.float32) + 1
    scale, bias = (jax.random.normal(jax.random.key(i), (3,)) if affine else None for i in (1, 2))

    def run(function):
        def loss(x, scale, bias):
            y, mean, var = jax.checkpoint(lambda *given: function(1e-2, *given))(x, scale, bias)
            return jnp.sin(y).sum() + jnp.cos(3 * mean).sum() + jnp.sin(2 * var).sum()

        def twice(x, scale, bias):
            gradients = jax.grad(loss, (0, 1, 2))(x, scale, bias)
            return sum(jnp.sin(g).sum() for g in jax.tree.leaves(gradients)), gradients

        run = jax.jit(jax.vmap(jax.grad(twice, (0, 1, 2), has_aux=True), (0, None, None)))
        return jax.lax.scan(lambda carry, x: (carry, run(x, scale, bias)), 0, x[None])[1]

    with jax.enable_x64(True):
        x, scale, bias = jax.tree.map(lambda a: a.astype(jnp.float64), (x, scale, bias))
        written, derived = run(_with_short_gradient), run(_by_own_statistics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), written, derived)


def test_gradients_of_bfloat16_images():
    x, own = images().astype(jnp.bfloat16), variables()

    def gradients(x):
        def loss(params, x):
            return jnp.sin(BatchNorm().apply({**own, "params": params}, x, True, mutable=["batch_stats"])[0]
                           .astype(jnp.float32)).sum()
        return jax.grad(loss, (0, 1))(own["params"], x)

    (params, to_x), (wide_params, wide_x) = gradients(x), gradients(x.astype(jnp.float32))
    assert to_x.dtype == jnp.bfloat16 and params["scale"].dtype == jnp.float32
    np.testing.assert_allclose(to_x.astype(np.float32), wide_x, atol=0.05)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.3), params, wide_params)
