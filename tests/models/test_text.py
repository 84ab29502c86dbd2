"""Text backbones: input, masks, positions, pooling, and where `until` cuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.applying import applied, drawn
from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.models.blocks import stack_blocks
from transfer_jax.models.text import pool_tokens, unit_length
from transfer_jax.pretrained.conversion import leaf_shapes

TINY = {"vocabulary": 50, "width": 16, "layers": 3, "heads": 2, "mlp_width": 32, "positions": 12}
KINDS = ["bert", "roberta", "distilbert", "minilm", "gpt2", "clip_text_b32"]
VECTORS = jnp.arange(24.0).reshape(2, 4, 3) - 12
MASK = jnp.array([[True, True, False, False], [False, False, False, False]])


def tiny(kind, **arguments):
    return build_backbone(Component(kind=kind, **TINY, **arguments))


def tokens(rows=2, length=7):
    return np.random.default_rng(0).integers(2, 50, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_until_leaves_no_parameters_beyond_it(kind):
    whole = tiny(kind)
    everything = set(flatten(jax.eval_shape(whole.init, jax.random.key(0), tokens())["params"]))
    before = 0
    for number, tap in enumerate(whole.tap_names):
        cut = tiny(kind, until=tap)
        variables = jax.eval_shape(cut.init, jax.random.key(0), tokens())
        taps = jax.eval_shape(cut.apply, variables, tokens())
        assert set(taps) == set(whole.tap_names[:number + 1])
        assert set(flatten(variables["params"])) <= everything
        assert before <= len(flatten(variables["params"]))
        before = len(flatten(variables["params"]))
    assert before == len(everything)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_what_is_there_do_not_matter(kind):
    """Real tokens and the pooled vector are the same whatever stands behind them."""
    module, x = tiny(kind), tokens()
    x[:, 6] = 49  # the largest number ends a text of CLIP
    padding = {"roberta": 1}.get(kind, 0)
    longer = np.concatenate([x, np.full((2, 3), padding, np.int32)], 1)
    mask = np.arange(10) < 7
    variables = drawn(module, x)
    short = applied(module, variables, x)
    long = applied(module, variables, {"tokens": longer, "mask": np.broadcast_to(mask, longer.shape)})
    np.testing.assert_allclose(long["tokens"][:, :7], short["tokens"], atol=2e-5)
    np.testing.assert_allclose(long["pooled"], short["pooled"], atol=2e-5)
    if kind not in ("gpt2", "clip_text_b32"):  # these have no token of padding
        np.testing.assert_allclose(applied(module, variables, longer)["pooled"], short["pooled"], atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", "clip_text_b32"])
def test_a_token_sees_only_those_before_it(kind):
    module, x = tiny(kind), tokens()
    variables, other = drawn(module, x), x.copy()
    other[:, 4] = (x[:, 4] + 1) % 49
    before, after = (applied(module, variables, given)["tokens"] for given in (x, other))
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "gpt2", "clip_text_b32"])
def test_stacked_and_recomputed_blocks_are_the_same_function(kind):
    plain, x = tiny(kind), tokens()
    variables = drawn(plain, x)
    flat = {name: np.asarray(leaf) for name, leaf in flatten(variables["params"]).items()}

    def loss(module):
        return jax.jit(jax.value_and_grad(lambda v: jnp.square(module.apply(v, x)["pooled"][:, :5]).sum()))

    value, gradient = loss(plain)(variables)
    again, same = loss(tiny(kind, remat=True))(variables)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), same, gradient)
    scanned = tiny(kind, scan=True, remat=True)
    shapes = {name: leaf.shape for name, leaf in
              flatten(jax.eval_shape(scanned.init, jax.random.key(0), x)["params"]).items()}
    stacked = stack_blocks(flat)
    assert shapes == {name: leaf.shape for name, leaf in stacked.items()}
    np.testing.assert_allclose(loss(scanned)({"params": unflatten(stacked)})[0], value, rtol=1e-5)


def test_dropout_needs_training():
    module, x = tiny("bert", dropout=0.5), tokens()
    variables = drawn(module, x)
    one, two = (applied(module, variables, x, train=True, rngs={"dropout": jax.random.key(seed)})["pooled"]
                for seed in (0, 1))
    assert np.abs(one - two).max() > 0.01
    np.testing.assert_array_equal(applied(module, variables, x)["pooled"], applied(module, variables, x)["pooled"])


def test_half_precision_keeps_parameters_and_is_close():
    x = tokens()
    module = tiny("bert")
    half = module.clone(dtype=jnp.bfloat16)
    variables = drawn(module, x)
    taps = applied(half, variables, x)
    assert all(tap.dtype == jnp.bfloat16 for tap in taps.values())
    assert all(leaf.dtype == jnp.float32 for leaf in leaf_shapes(half, None, x).values())
    np.testing.assert_allclose(taps["pooled"].astype(jnp.float32), applied(module, variables, x)["pooled"], atol=0.1)


def test_scores_of_the_next_token_share_the_table_of_words():
    module, x = tiny("gpt2", token_logits=True), tokens()
    variables = drawn(module, x)
    taps = applied(module, variables, x)
    assert module.tap_names[-3:] == ("tokens", "logits", "pooled") and set(taps) == set(module.tap_names)
    table = variables["params"]["word"]["embedding"]
    np.testing.assert_allclose(taps["logits"], taps["tokens"] @ table.T, rtol=1e-4, atol=1e-4)
    assert "pooled" not in applied(tiny("gpt2", token_logits=True, until="logits"), variables, x)


def test_pooling():
    first, second = VECTORS
    assert np.array_equal(pool_tokens(VECTORS, MASK, "first"), [first[0], second[0]])
    assert np.array_equal(pool_tokens(VECTORS, MASK, "last"), [first[1], second[0]])
    assert np.array_equal(pool_tokens(VECTORS, MASK, "mean"), [first[:2].mean(0), np.zeros(3)])
    assert np.array_equal(pool_tokens(VECTORS, MASK, "max"), [first[1], np.zeros(3)])
    with pytest.raises(UserError, match="unknown pool 'means'"):
        pool_tokens(VECTORS, MASK, "means")
    with pytest.raises(UserError, match="did you mean 'pooler'"):
        tiny("bert", pool="poler").init(jax.random.key(0), tokens())


def test_unit_length_and_its_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit_length(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: unit_length(x).sum())(x)).all()


@pytest.mark.parametrize(("given", "message"), [
    (np.zeros((2, 13), np.int32), "13 tokens is too long for a backbone of 12 positions"),
    (np.zeros((2, 5), np.float32), "takes integers"),
    ({"mask": np.ones((2, 5), bool)}, "give 'tokens'"),
    ({"tokens": np.zeros((2, 5), np.int32), "labels": np.zeros(2)}, "parts tokens, labels"),
])
def test_inputs_that_do_not_fit(given, message):
    with pytest.raises(UserError, match=message):
        tiny("bert").init(jax.random.key(0), given)


def test_the_class_token_of_clip_and_sizes_that_do_not_split():
    module = build_backbone(Component(kind="clip_image_b32", width=16, layers=1, heads=2, projection=4, patch=8))
    x = jnp.zeros((2, 16, 24, 1))
    taps = jax.eval_shape(module.init_with_output, jax.random.key(0), x)[0]
    assert taps["embeddings"].shape == (2, 1 + 2 * 3, 16) and taps["pooled"].shape == (2, 4)
    assert module.classifier is None and module.clone(projection=None).classifier.kind == "linear"
    with pytest.raises(UserError, match="multiples of 8"):
        module.init(jax.random.key(0), jnp.zeros((2, 16, 20, 1)))
