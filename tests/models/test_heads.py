"""Heads: shapes, plain arrays in place of taps, errors that name the taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.models import build_head

TAPS = {"stage1": jnp.ones((2, 8, 8, 4)), "stage2": jnp.ones((2, 4, 4, 6)), "stage3": jnp.ones((2, 2, 2, 8)),
        "pooled": jax.random.normal(jax.random.key(0), (2, 8))}


def run(features=TAPS, size=(16, 12), dtype=jnp.float32, **arguments):
    head = build_head(Component(**arguments), dtype)
    output, variables = jax.jit(lambda features: head.init_with_output(jax.random.key(1), features, size))(features)
    return output, variables["params"]


@pytest.mark.parametrize(("arguments", "shape"), [
    ({"kind": "linear", "classes": 5}, (2, 5)),
    ({"kind": "linear", "classes": 5, "tap": "stage3"}, (2, 5)),
    ({"kind": "mlp", "outputs": 3, "hidden": (7, 6)}, (2, 3)),
    ({"kind": "regression"}, (2, 1)),
    ({"kind": "segmentation", "classes": 11}, (2, 16, 12, 11)),
    ({"kind": "segmentation", "classes": 2, "taps": ("stage2",)}, (2, 16, 12, 2)),
])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_float32_outputs(arguments, shape, dtype):
    output, params = run(dtype=dtype, **arguments)
    assert output.shape == shape and output.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_an_array_stands_for_the_tap():
    for arguments in ({"kind": "linear", "classes": 5}, {"kind": "mlp", "outputs": 3}, {"kind": "regression"}):
        np.testing.assert_array_equal(run(TAPS["pooled"], **arguments)[0], run(**arguments)[0])
    assert run(TAPS["stage1"], size=None, kind="segmentation", classes=3)[0].shape == (2, 8, 8, 3)


def test_zero_start_gives_zero_scores():
    output, params = run(kind="linear", classes=4, kernel_init="zeros")
    assert float(jnp.abs(output).max()) == 0.0 and params["dense"]["kernel"].shape == (8, 4)


def test_dropout_acts_in_training_only():
    head = build_head(Component(kind="mlp", outputs=3, dropout=0.5))
    variables = head.init(jax.random.key(0), TAPS)
    calm = head.apply(variables, TAPS)
    noisy = head.apply(variables, TAPS, train=True, rngs={"dropout": jax.random.key(5)})
    assert bool((calm == head.apply(variables, TAPS)).all()) and float(jnp.abs(calm - noisy).max()) > 1e-3


@pytest.mark.parametrize(("arguments", "words"), [
    ({"kind": "linear", "classes": 5, "tap": "stage9"}, "pooled, stage1, stage2, stage3"),
    ({"kind": "segmentation", "classes": 5, "taps": ("pooled",)}, "needs maps"),
    ({"kind": "linear", "classes": 5, "kernel_init": "ones"}, "lecun_normal"),
    ({"kind": "linear", "class": 5}, "classes"),
    ({"kind": "linear"}, "classes"),
])
def test_mistakes_become_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        run(**arguments)
