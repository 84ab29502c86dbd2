"""Attention against PyTorch and jax.nn: values, gradients, masks, rows without any key, dtypes, loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.layers.attention import SelfAttention, attention

B, T, S, H, D = 2, 5, 7, 3, 4


def operands(queries=T, keys=S):
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    return (jax.random.normal(a, (B, queries, H, D)), jax.random.normal(b, (B, keys, H, D)),
            jax.random.normal(c, (B, keys, H, D)), jax.random.normal(d, (B, queries, H, D)))


def some_mask(queries=T, keys=S):
    mask = jax.random.bernoulli(jax.random.key(7), 0.6, (B, 1, queries, keys))
    return mask.at[..., 0].set(True)


def value_and_gradients(function, q, k, v, cotangent):
    def run(q, k, v, cotangent):
        y, pull = jax.vjp(function, q, k, v)
        return (y, *pull(cotangent.astype(y.dtype)))

    return jax.jit(run)(q, k, v, cotangent)


@pytest.mark.parametrize("extra", ["nothing", "mask", "bias", "causal", "scale", "mask and bias"])
def test_equals_torch_in_value_and_gradients(extra, torch):
    q, k, v, g = operands(keys=T) if extra == "causal" else operands()
    mask = some_mask() if "mask" in extra else None
    bias = jax.random.normal(jax.random.key(3), (1, H, T, S)) if "bias" in extra else None
    scale = 0.3 if extra == "scale" else None
    ours = value_and_gradients(lambda *a: attention(*a, mask, bias, extra == "causal", scale), q, k, v, g)

    added = None
    if mask is not None or bias is not None:
        added = jnp.zeros((B, H, T, S)) if bias is None else jnp.broadcast_to(bias, (B, H, T, S))
        added = added if mask is None else jnp.where(mask, added, -jnp.inf)
        added = torch.tensor(np.asarray(added))
    theirs = [torch.tensor(np.asarray(a)).transpose(1, 2).requires_grad_(True) for a in (q, k, v)]
    y = torch.nn.functional.scaled_dot_product_attention(*theirs, added, is_causal=extra == "causal", scale=scale)
    y.backward(torch.tensor(np.asarray(g)).transpose(1, 2))
    for one, other in zip(ours, (y, *(a.grad for a in theirs)), strict=True):
        np.testing.assert_allclose(one, other.detach().transpose(1, 2).numpy(), atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_jax(causal, masked):
    *qkv, g = operands()
    mask = some_mask() if masked else None
    ours = value_and_gradients(lambda *a: attention(*a, mask, causal=causal), *qkv, g)
    jaxs = value_and_gradients(lambda *a: jax.nn.dot_product_attention(*a, mask=mask, is_causal=causal), *qkv, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, jaxs)


@pytest.mark.parametrize("by", ["mask", "bias"])
def test_a_query_that_may_attend_nowhere_gives_zeros_and_finite_gradients(by):
    *qkv, g = operands()
    mask = some_mask().at[0, 0, 2].set(False)
    more = {"mask": mask} if by == "mask" else {"bias": jnp.where(mask, 0.0, -jnp.inf)}
    results = value_and_gradients(lambda *a: attention(*a, **more), *qkv, g)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in results)
    np.testing.assert_array_equal(results[0][0, 2], np.zeros((H, D)))
    np.testing.assert_array_equal(results[1][0, 2], np.zeros((H, D)))
    assert float(jnp.abs(results[0][1, 2]).max()) > 0


def test_large_scores_do_not_overflow():
    q, k, v, g = operands()
    results = value_and_gradients(attention, 1e4 * q, 1e4 * k, v, g)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in results)


@pytest.mark.usefixtures("quick_unless_all")
def test_bfloat16_is_close_to_float32():
    q, k, v, g = operands()
    low = value_and_gradients(attention, *(a.astype(jnp.bfloat16) for a in (q, k, v)), g)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in low)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05), low,
                 value_and_gradients(attention, q, k, v, g))


@pytest.mark.usefixtures("quick_unless_all")
def test_vmap_scan_and_remat_equal_plain_calls():
    *qkv, g = operands()
    stacked = [jnp.stack([a, 2 * a, -a]) for a in (*qkv, g)]

    def run(q, k, v, g):
        return value_and_gradients(jax.checkpoint(attention), q, k, v, g)

    apart = [run(*(a[i] for a in stacked)) for i in range(3)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart)
    together = jax.jit(jax.vmap(run))(*stacked)
    scanned = jax.jit(lambda *arrays: jax.lax.scan(lambda _, a: (0, run(*a)), 0, arrays)[1])(*stacked)
    for result in (together, scanned):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), result, expected)


@pytest.mark.usefixtures("quick_unless_all")
@pytest.mark.parametrize("cross", [False, True])
def test_module_equals_torch(cross, torch):
    width = H * D
    x, source = (jax.random.normal(jax.random.key(i), (B, n, width)) for i, n in enumerate((T, S)))
    source = source if cross else None
    layer = SelfAttention(H)
    params = layer.init(jax.random.key(2), x, source=source)["params"]
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.ndim), a.shape), params)
    assert {name: {leaf: a.shape for leaf, a in sub.items()} for name, sub in params.items()} == {
        name: {"kernel": (width, width), "bias": (width,)} for name in ("query", "key", "value", "out")}

    theirs = torch.nn.MultiheadAttention(width, H, batch_first=True)
    packed = {leaf: np.concatenate([np.asarray(params[n][leaf]).T for n in ("query", "key", "value")])
              for leaf in ("kernel", "bias")}
    theirs.load_state_dict({"in_proj_weight": torch.tensor(packed["kernel"]),
                            "in_proj_bias": torch.tensor(packed["bias"]),
                            "out_proj.weight": torch.tensor(np.array(params["out"]["kernel"]).T),
                            "out_proj.bias": torch.tensor(np.array(params["out"]["bias"]))})
    a, b = (torch.tensor(np.asarray(v)) for v in (x, x if source is None else source))
    np.testing.assert_allclose(layer.apply({"params": params}, x, source=source),
                               theirs(a, b, b)[0].detach().numpy(), atol=2e-6)


@pytest.mark.usefixtures("quick_unless_all")
def test_dropout_acts_in_training_only_and_keeps_the_mean():
    x = jax.random.normal(jax.random.key(0), (B, T, 12))
    layer, plain = SelfAttention(3, dropout=0.5), SelfAttention(3)
    variables = layer.init(jax.random.key(1), x)
    np.testing.assert_array_equal(layer.apply(variables, x), plain.apply(variables, x))
    draws = jax.jit(jax.vmap(lambda key: layer.apply(variables, x, train=True, rngs={"dropout": key})))(
        jax.random.split(jax.random.key(2), 4000))
    assert float(draws.std(0).min()) > 1e-3
    np.testing.assert_allclose(draws.mean(0), plain.apply(variables, x), atol=0.06)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(UserError, match="5 attention heads do not divide the width 12"):
        SelfAttention(5).init(jax.random.key(0), jnp.zeros((1, 2, 12)))
