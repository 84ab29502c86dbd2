"""Parameter-efficient fine-tuning against its formulas, on the layers that it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.params.peft import PEFT, PeftSpec, merged, new_leaves

RNG = np.random.default_rng(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="conv")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(5, name="dense")(x)


X = jnp.asarray(RNG.normal(size=(2, 7, 7, 3)), jnp.float32)
PARAMS = {path: jnp.asarray(RNG.normal(size=shape), jnp.float32) for path, shape in {
    "conv/kernel": (3, 3, 3, 6), "conv/bias": (6,), "norm/scale": (6,), "norm/bias": (6,), "dense/kernel": (6, 5),
    "dense/bias": (5,)}.items()}


def run(params):
    return Net().apply({"params": unflatten(params)}, X)


def moved(specs, scale=0.3):
    """Parameters with new leaves away from their start."""
    new = new_leaves(specs, PARAMS, jnp.uint32(1))
    return {**PARAMS, **{path: leaf + scale * RNG.normal(size=leaf.shape).astype(np.float32)
                         for path, leaf in new.items()}}


def spec(kind, *targets, **arguments):
    return {"x": PeftSpec(kind=kind, targets=targets, **arguments)}


@pytest.mark.parametrize("kind", PEFT)
def test_training_starts_at_the_model_and_all_leaves_are_new(kind):
    specs = spec(kind, "conv|dense")
    new = new_leaves(specs, PARAMS, jnp.uint32(0))
    assert new and not set(new) & set(PARAMS) and all(path.startswith("peft/x/") for path in new)
    result = merged(specs, {**PARAMS, **new})
    assert set(result) == set(PARAMS)
    for path, leaf in result.items():
        np.testing.assert_allclose(leaf, PARAMS[path], rtol=1e-6)
    other = new_leaves(specs, PARAMS, jnp.uint32(1))
    assert (kind in ("lora", "dora")) == any((new[path] != other[path]).any() for path in new)  # drawn from the seed


@pytest.mark.parametrize(("scaling", "factor"), [("rank", 16 / 4), ("root", 16 / 2)])
def test_lora_adds_a_low_rank_path_beside_dense_and_convolution(scaling, factor):
    specs = spec("lora", "conv|dense", rank=4, alpha=16.0, scaling=scaling)
    params = moved(specs)
    assert params["peft/x/conv/a"].shape == (3, 3, 3, 4) and params["peft/x/conv/b"].shape == (4, 6)
    y = nn.Conv(6, (3, 3)).apply({"params": {"kernel": PARAMS["conv/kernel"], "bias": PARAMS["conv/bias"]}}, X)
    below = nn.Conv(4, (3, 3), use_bias=False).apply({"params": {"kernel": params["peft/x/conv/a"]}}, X)
    y = y + factor * below @ params["peft/x/conv/b"]
    y = nn.LayerNorm().apply({"params": {"scale": PARAMS["norm/scale"], "bias": PARAMS["norm/bias"]}}, y)
    expected = y @ PARAMS["dense/kernel"] + PARAMS["dense/bias"]
    expected += factor * (y @ params["peft/x/dense/a"]) @ params["peft/x/dense/b"]
    np.testing.assert_allclose(run(merged(specs, params)), expected, rtol=1e-4, atol=1e-4)


def test_the_draws_of_lora_are_those_of_a_linear_layer():
    params = {"wide/kernel": jnp.zeros((400, 300))}
    new = new_leaves(spec("lora", "wide", rank=64), params, jnp.uint32(3))
    a = np.asarray(new["peft/x/wide/a"])
    assert 0.99 / 20 < np.abs(a).max() <= 1 / 20 and abs(a.std() - 1 / 20 / np.sqrt(3)) < 2e-4
    assert not new["peft/x/wide/b"].any()


def test_dora_has_lengths_of_its_own():
    specs = spec("dora", "conv", rank=2, alpha=1.0)
    params = moved(specs)
    found = merged(specs, params)["conv/kernel"]
    lengths = np.sqrt(np.square(np.asarray(found, np.float64)).sum((0, 1, 2)))
    np.testing.assert_allclose(lengths, np.abs(params["peft/x/conv/length"]), rtol=1e-5)
    direction = PARAMS["conv/kernel"] + 0.5 * jnp.einsum("hwir,ro->hwio", params["peft/x/conv/a"],
                                                         params["peft/x/conv/b"])
    cosine = (found * direction).sum((0, 1, 2)) / lengths / jnp.sqrt(jnp.square(direction).sum((0, 1, 2)))
    np.testing.assert_allclose(np.abs(cosine), 1, rtol=1e-5)

    def of_b(b):
        return (merged(specs, {**params, "peft/x/conv/b": b})["conv/kernel"] ** 2).sum()

    # With |V| held constant the gradient is that of a plain scaling of V; else it would be zero here.
    scale = params["peft/x/conv/length"] / jnp.sqrt(jnp.square(direction).sum((0, 1, 2)))
    expected = jnp.einsum("hwir,hwio->ro", params["peft/x/conv/a"], direction) * scale ** 2
    np.testing.assert_allclose(jax.grad(of_b)(params["peft/x/conv/b"]), expected, rtol=1e-3, atol=1e-3)


def test_ia3_scales_outputs_or_inputs():
    params = moved(spec("ia3", "conv"))
    y = nn.Conv(6, (3, 3)).apply({"params": {"kernel": PARAMS["conv/kernel"], "bias": PARAMS["conv/bias"]}}, X)
    new = merged(spec("ia3", "conv"), params)
    changed = nn.Conv(6, (3, 3)).apply({"params": {"kernel": new["conv/kernel"], "bias": new["conv/bias"]}}, X)
    np.testing.assert_allclose(changed, y * params["peft/x/conv/factor"], rtol=1e-5, atol=1e-5)
    specs = spec("ia3", "dense", side="input")
    params = moved(specs)
    new = merged(specs, params)
    np.testing.assert_allclose(y @ new["dense/kernel"], (y * params["peft/x/dense/factor"]) @ PARAMS["dense/kernel"],
                               rtol=1e-4, atol=1e-4)
    assert new["dense/bias"] is PARAMS["dense/bias"]


@pytest.mark.parametrize("module", ["conv", "norm", "dense"])
def test_ssf_scales_and_shifts_what_a_layer_gives(module):
    specs = spec("ssf", module)
    params = moved(specs)
    layers = {"conv": nn.Conv(6, (3, 3)), "norm": nn.LayerNorm(), "dense": nn.Dense(5)}
    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 3 if module == "conv" else 6)), jnp.float32)

    def apply(flat):
        own = {path.rpartition("/")[2]: leaf for path, leaf in flat.items() if path.startswith(f"{module}/")}
        return layers[module].apply({"params": own}, x)

    expected = apply(PARAMS) * params[f"peft/x/{module}/factor"] + params[f"peft/x/{module}/shift"]
    np.testing.assert_allclose(apply(merged(specs, params)), expected, rtol=1e-4, atol=1e-4)


def test_methods_follow_each_other_in_order():
    specs = {"low": PeftSpec(kind="lora", targets=("dense",), rank=2),
             "scale": PeftSpec(kind="ia3", targets=("dense",))}
    params = moved(specs)
    kernel = PARAMS["dense/kernel"] + 4 * params["peft/low/dense/a"] @ params["peft/low/dense/b"]
    np.testing.assert_allclose(merged(specs, params)["dense/kernel"], kernel * params["peft/scale/dense/factor"],
                               rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("specs", "words"), [
    (spec("lora", "dens"), "matches no module; nearest: dense"),
    (spec("lora", "norm"), "'norm' has no 'kernel'"),
    (spec("lora", "dense", rank=0), "use a rank above 0"),
    (spec("lora", "dense", ranks=2), "did you mean 'rank'"),
    (spec("lor", "dense"), "did you mean 'lora'"),
    (spec("ia3", "dense", side="both"), "'output' or 'input'"),
])
def test_faults_are_named(specs, words):
    with pytest.raises(UserError, match=words):
        new_leaves(specs, PARAMS, jnp.uint32(0), "config.stages.tune.peft")
