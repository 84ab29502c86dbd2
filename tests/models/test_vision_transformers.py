"""ViT, DeiT, DINOv2 and Swin: cuts, loops over blocks, recomputation, precision, sizes, windows, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.applying import applied, drawn
from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.core.spec import Component
from transfer_jax.layers.attention import attention
from transfer_jax.layers.window_attention import WindowAttention, relative_position_index, shifted_mask
from transfer_jax.models import build_backbone, build_head
from transfer_jax.models.blocks import stack_blocks
from transfer_jax.models.swin import PatchMerging
from transfer_jax.pretrained.conversion import leaf_shapes, published_head

TOKENS = {"width": 16, "layers": 3, "heads": 2, "mlp_width": 24, "patch": 8}
WINDOWS = {"width": 8, "depths": (2, 2), "heads": (2, 4), "window": 3}
FORMS = {"vit": ("vit_tiny", TOKENS), "mean": ("vit_tiny", {**TOKENS, "pool": "mean", "class_token": False}),
         "map": ("vit_tiny", {**TOKENS, "pool": "map"}), "distilled": ("deit_tiny_distilled", TOKENS),
         "dinov2": ("dinov2_small", {**TOKENS, "registers": 2}), "swin": ("swin_tiny", WINDOWS)}
# Published numbers of parameters with 1000 classes (torchvision 0.28, timm 1.0.31); DINOv2 without classifier and
# without the token for hidden patches, which only its training had.
PARAMETERS = {"vit_tiny": 5_717_416, "vit_small": 22_050_664, "vit_base": 86_567_656, "vit_large": 304_326_632,
              "deit_tiny": 5_717_416, "deit_tiny_distilled": 5_910_800, "deit_small_distilled": 22_436_432,
              "deit_base_distilled": 87_338_192, "dinov2_small": 22_056_192, "dinov2_base": 86_579_712,
              "dinov2_large": 304_367_616, "swin_tiny": 28_288_354, "swin_small": 49_606_258, "swin_base": 87_768_224}


def tiny(form, **arguments):
    kind, sizes = FORMS[form]
    return build_backbone(Component(kind=kind, **{**sizes, **arguments}))


def images(rows=24, columns=16, batch=2):
    return np.random.default_rng(0).normal(size=(batch, rows, columns, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_number_of_parameters_is_the_published_one(kind):
    module = build_backbone(Component(kind=kind))
    leaves = leaf_shapes(module, published_head(module, 1000))
    assert sum(np.prod(leaf.shape) for leaf in leaves.values()) == PARAMETERS[kind]


@pytest.mark.parametrize("form", FORMS)
def test_until_leaves_no_parameters_beyond_it(form):
    whole = tiny(form)
    everything, before = set(leaf_shapes(whole, None, images())), 0
    for number, tap in enumerate(whole.tap_names):
        cut = tiny(form, until=tap)
        taps = jax.eval_shape(lambda x, cut=cut: cut.init_with_output(jax.random.key(0), x)[0], images())
        leaves = set(leaf_shapes(cut, None, images()))
        assert set(taps) == set(whole.tap_names[:number + 1]) and leaves <= everything and before <= len(leaves)
        before = len(leaves)
    assert before == len(everything)


@pytest.mark.parametrize("form", ["vit", "dinov2"])
def test_stacked_blocks_are_the_same_function(form):
    plain, x = tiny(form), images()
    variables = drawn(plain, x)
    taps = applied(plain, variables, x)
    stacked = stack_blocks({path: np.asarray(leaf) for path, leaf in flatten(variables["params"]).items()})
    for until in ("pooled", "block1"):
        scanned = tiny(form, scan=True, remat=True, until=until)
        shapes = leaf_shapes(scanned, None, x)
        own = {path: stacked[path][:leaf.shape[0]] if path.startswith("blocks/") else stacked[path]
               for path, leaf in shapes.items()}
        assert all(own[path].shape == leaf.shape for path, leaf in shapes.items())
        found = applied(scanned, {"params": unflatten(own)}, x)
        assert set(found) == set(plain.tap_names[:plain.tap_names.index(until) + 1])
        for tap, value in found.items():
            np.testing.assert_allclose(value, taps[tap], atol=2e-5)


@pytest.mark.parametrize("form", ["map", "distilled", "swin"])
def test_recomputation_changes_nothing(form):
    x = images()
    variables = drawn(tiny(form), x)

    def gradients(remat):
        module = tiny(form, remat=remat)
        return jax.jit(jax.value_and_grad(lambda v: jnp.sin(module.apply(v, x, train=True)["pooled"]).sum()))(variables)

    (one, first), (two, second) = gradients(False), gradients(True)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), first, second)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_keeps_parameters_and_is_close(form):
    module, x = tiny(form), images()
    half = module.clone(dtype=jnp.bfloat16)
    variables = drawn(module, x)
    taps = applied(half, variables, x)
    assert all(tap.dtype == jnp.bfloat16 for tap in taps.values())
    assert all(leaf.dtype == jnp.float32 for leaf in leaf_shapes(half, None, x).values())
    whole = applied(module, variables, x)["pooled"]
    assert np.abs(taps["pooled"].astype(jnp.float32) - whole).max() < 0.06 * np.abs(whole).max()


def test_tokens_and_what_is_pooled():
    x = images()  # 3 x 2 patches
    shapes = {form: jax.eval_shape(lambda x, form=form: tiny(form).init_with_output(jax.random.key(0), x)[0], x)
              for form in FORMS if form != "swin"}
    assert {form: taps["tokens"].shape[1] for form, taps in shapes.items()} == {
        "vit": 7, "mean": 6, "map": 7, "distilled": 8, "dinov2": 9}
    module = tiny("vit", pool="mean", registers=2)
    taps = applied(module, drawn(module, x), x)
    np.testing.assert_allclose(taps["pooled"], taps["tokens"][:, 3:].mean(1), atol=1e-6)
    module = tiny("distilled")
    taps = applied(module, drawn(module, x), x)
    np.testing.assert_allclose(taps["pooled"], taps["tokens"][:, :2].mean(1), atol=1e-6)
    assert tiny("dinov2").classifier is None and tiny("distilled", pool="token").classifier.kind == "linear"
    first = applied(tiny("distilled", pool="token"), drawn(module, x), x)["pooled"]
    np.testing.assert_allclose(first, taps["tokens"][:, 0], atol=1e-5)


def test_positions_are_a_grid_and_belong_to_their_places():
    """Moving image and positions together changes nothing but the order of the tokens."""
    module, x = tiny("mean"), images(16, 16)
    variables = drawn(module, x)
    params = variables["params"]
    assert params["grid_positions"].shape == (2, 2, 16) and "token_positions" not in params
    moved = {**params, "grid_positions": params["grid_positions"].swapaxes(0, 1)}
    blocks = x.reshape(2, 2, 8, 2, 8, 3).swapaxes(1, 3).reshape(x.shape)
    np.testing.assert_allclose(applied(module, {"params": moved}, blocks)["pooled"],
                               applied(module, variables, x)["pooled"], atol=1e-5)


def test_class_position_is_a_part_of_the_class_token():
    x = images()
    with_position, without = tiny("vit"), tiny("vit", class_position=False)
    params = drawn(with_position, x)["params"]
    merged = {path: leaf for path, leaf in params.items() if path != "token_positions"}
    merged["class_token"] = params["class_token"] + params["token_positions"][0]
    np.testing.assert_allclose(applied(without, {"params": merged}, x)["pooled"],
                               applied(with_position, {"params": params}, x)["pooled"], atol=1e-6)


def test_the_distilled_head_is_the_mean_of_two_classifiers():
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 4))
    head = build_head(Component(kind="distilled", classes=3))
    variables = head.init(jax.random.key(1), {"tokens": tokens})
    params = variables["params"]
    one, two = (tokens[:, i] @ params[name]["kernel"] for i, name in enumerate(("dense", "distillation")))
    np.testing.assert_allclose(head.apply(variables, {"tokens": tokens}), (one + two) / 2, atol=1e-6)
    with pytest.raises(UserError, match="at least two tokens"):
        head.init(jax.random.key(1), tokens[:, 0])


@pytest.mark.parametrize("form", ["vit", "swin"])
def test_random_layers_act_in_training_only(form):
    module, x = tiny(form, dropout=0.3, drop_path=0.5), images()
    variables = drawn(module, x)
    run = jax.jit(lambda key, train: module.apply(variables, x, train=train, rngs={"dropout": key})["pooled"],
                  static_argnums=1)
    keys = jax.random.split(jax.random.key(0))
    assert np.abs(run(keys[0], True) - run(keys[1], True)).max() > 0.01
    assert np.array_equal(run(keys[0], False), run(keys[1], False))


@pytest.mark.parametrize("size", [(4, 4), (5, 31), (33, 20), (64, 64)])
def test_swin_takes_any_size(size):
    taps = jax.eval_shape(lambda x: tiny("swin").init_with_output(jax.random.key(0), x)[0], images(*size))
    first = tuple(side // 4 for side in size)
    assert taps["stage1"].shape == (2, *first, 8) and taps["pooled"].shape == (2, 16)
    assert taps["stage2"].shape == (2, *((side + 1) // 2 for side in first), 16)


@pytest.mark.parametrize(("size", "shifted"), [((6, 9), False), ((6, 9), True), ((5, 7), True), ((3, 8), True)])
def test_windows_by_definition(size, shifted):
    """Every place against every other one: who shares a window (and an origin) attends, by the bias of the distance."""
    window, heads, width = 3, 2, 8
    module = WindowAttention(heads, window, shifted)
    x = np.random.default_rng(0).normal(size=(2, *size, width)).astype(np.float32)
    variables = drawn(module, x)
    params = jax.tree.map(np.asarray, variables["params"])
    rows, columns = (-(-side // window) * window for side in size)
    filled = np.pad(x, ((0, 0), (0, rows - size[0]), (0, columns - size[1]), (0, 0))).reshape(2, -1, width)
    place = np.stack(np.divmod(np.arange(rows * columns), columns), 1)
    shift = np.array([window // 2 if shifted and side > window else 0 for side in (rows, columns)])
    number = (place - shift) // window  # windows that begin behind the shift; those before it are cut off at the edge
    together = (number[:, None] == number[None]).all(-1)
    distance = (place[:, None] - place[None]).clip(1 - window, window - 1) + window - 1
    bias = params["relative_positions"][distance[..., 0], distance[..., 1]].transpose(2, 0, 1)
    q, k, v = ((filled @ params[name]["kernel"] + params[name]["bias"]).reshape(2, -1, heads, width // heads)
               for name in ("query", "key", "value"))
    mixed = np.asarray(attention(q, k, v, together, bias)).reshape(2, rows, columns, width)[:, :size[0], :size[1]]
    wanted = mixed @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(applied(module, variables, x), wanted, atol=1e-5)


def test_index_and_mask_of_small_windows():
    assert np.array_equal(relative_position_index(1), [[0]])
    assert np.array_equal(relative_position_index(2), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]])
    mask = shifted_mask((4, 2), 2, (1, 0))
    assert mask.shape == (2, 4, 4) and mask[0].all()
    assert np.array_equal(mask[1], np.kron(np.eye(2), np.ones((2, 2))).astype(bool))


def test_patches_are_merged_in_the_published_order():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1) + 1
    module = PatchMerging(jnp.float32)
    variables = module.init(jax.random.key(0), x)
    kernel = jnp.zeros((4, 2)).at[2, 0].set(1.0)  # the third of the four places
    y = applied(module, {"params": {**variables["params"], "reduction": {"kernel": kernel}}}, x)
    assert y.shape == (1, 1, 2, 2)
    square = np.array([1, 4, 2, 5])  # top left, bottom left, top right, bottom right
    np.testing.assert_allclose(y[0, 0, 0, 0], (square[2] - 3) / np.sqrt(square.var() + 1e-5), rtol=1e-5)
    filled = np.array([3, 6, 0, 0])
    np.testing.assert_allclose(y[0, 0, 1, 0], -filled.mean() / np.sqrt(filled.var() + 1e-5), rtol=1e-5)


@pytest.mark.parametrize(("form", "arguments", "size", "message"), [
    ("vit", {}, (24, 20), "24 x 20 pixels do not split into patches of 8"),
    ("vit", {"pool": "avg"}, (16, 16), "unknown pool 'avg'"),
    ("vit", {"class_token": False}, (16, 16), "pool='token' needs the class token"),
    ("vit", {"heads": 3}, (16, 16), "3 attention heads do not divide the width 16"),
    ("vit", {"scan": True, "drop_path": 0.1}, (16, 16), "scan=True needs equal blocks"),
    ("vit", {"activation": "gelus"}, (16, 16), "unknown activation 'gelus'"),
    ("swin", {}, (3, 8), "3 x 8 is too small"),
    ("swin", {"heads": (3, 4)}, (8, 8), "3 attention heads do not divide the width 8"),
    ("swin", {"heads": (2,)}, (8, 8), "different numbers of stages"),
    ("swin", {"window": 0}, (8, 8), "holds nothing"),
])
def test_user_errors(form, arguments, size, message):
    module = tiny(form, **arguments)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), images(*size))
