"""MobileNet v1 to v3 and EfficientNet: sizes, cuts, forms, blocks alone, errors, their tables and descriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.models.efficientnet import EfficientNet
from transfer_jax.models.inverted_residual import (
    Form,
    Inverted,
    InvertedStage,
    SqueezeExcite,
    find_form,
    least_sizes,
    round_channels,
    strided_padding,
)
from transfer_jax.pretrained.architectures import from_timm, from_transformers
from transfer_jax.pretrained.conversion import STATISTICS, leaf_shapes, published_head, to_foreign, to_ours
from transfer_jax.pretrained.originals import _timm_name

# Published numbers of parameters with 1000 classes (torchvision 0.28; v1: Keras 3.15).
PARAMETERS = {"mobilenet_v1": 4_231_976, "mobilenet_v1_retinaface": 470_072, "mobilenet_v2": 3_504_872,
              "mobilenet_v3_small": 2_542_856, "mobilenet_v3_large": 5_483_032, "efficientnet_b0": 5_288_548}
SMALL = {"mobilenet_v1": {"width": 0.125}, "mobilenet_v2": {"width": 0.25}, "mobilenet_v3_small": {},
         "efficientnet_b0": {}}


def taps_of(kind, rows, columns=None, channels=3, dtype=jnp.float32, **arguments):
    """Shapes of taps for one image."""
    module = build_backbone(Component(kind=kind, **arguments), dtype=dtype)
    image = jax.ShapeDtypeStruct((1, rows, columns or rows, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], image)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_number_of_parameters_is_the_published_one(kind):
    module = build_backbone(Component(kind=kind))
    leaves = leaf_shapes(module, published_head(module, 1000))
    assert sum(np.prod(leaf.shape) for path, leaf in leaves.items()
               if path.rpartition("/")[2] not in STATISTICS) == PARAMETERS[kind]


@pytest.mark.parametrize("kind", SMALL)
def test_a_cut_network_has_no_parameters_behind_the_cut(kind):
    whole = build_backbone(Component(kind=kind, **SMALL[kind]))
    everything, before = leaf_shapes(whole), 0
    for tap in (whole.tap_names[0], *whole.tap_names[4::2], whole.tap_names[-1]):
        leaves = leaf_shapes(build_backbone(Component(kind=kind, until=tap, **SMALL[kind])))
        assert set(leaves) <= set(everything) and len(leaves) >= before
        before = len(leaves)
    assert before == len(everything)
    assert set(taps_of(kind, 64, **SMALL[kind])) == set(whole.tap_names)


@pytest.mark.parametrize(("kind", "form", "sides"), [
    ("mobilenet_v1", "keras", (37, 19, 9, 4, 2, 1)), ("mobilenet_v1", "pytorch", (37, 19, 10, 5, 3, 2)),
    ("mobilenet_v2", "keras", (37, 19, 10, 5, 3, 2)), ("mobilenet_v3_small", "torchvision", (37, 19, 10, 5, 3, 2)),
    ("efficientnet_b0", "transformers", (37, 18, 9, 4, 2, 1)), ("efficientnet_b0", "timm", (37, 19, 10, 5, 3, 2))])
def test_odd_images(kind, form, sides):
    shapes = taps_of(kind, 37, 64, channels=1, form=form, **SMALL[kind])
    assert sorted({value.shape[1] for value in shapes.values() if value.ndim == 4}, reverse=True) == list(sides[1:])
    assert {value.shape[2] for value in shapes.values() if value.ndim == 4} <= {32, 16, 8, 4, 2}


@pytest.mark.parametrize(("kind", "arguments", "side", "until"), [
    ("mobilenet_v1", {}, 31, None), ("mobilenet_v1", {}, 7, "stage3"),
    ("efficientnet_b0", {"form": "transformers"}, 32, None),
    ("efficientnet_b1", {"form": "transformers", "symmetric": (16,)}, 16, None),
    ("efficientnet_b0", {"form": "transformers"}, 4, "stage2")])
def test_images_that_are_too_small(kind, arguments, side, until):
    shapes = taps_of(kind, side, until=until, **arguments)
    assert all(0 not in value.shape for value in shapes.values())
    with pytest.raises(UserError, match=f"{side - 1} x {side - 1} pixels .* at least {side} x {side}"):
        taps_of(kind, side - 1, until=until, **arguments)


def test_other_forms_take_a_single_pixel():
    for kind in ("mobilenet_v1_retinaface", "mobilenet_v2", "mobilenet_v3_small"):
        assert len(taps_of(kind, 1)["pooled"].shape) == 2


@pytest.mark.parametrize(("kind", "arguments", "width"), [
    ("mobilenet_v1", {"width": 0.25}, 256), ("mobilenet_v2", {"width": 0.35}, 1280),
    ("mobilenet_v2", {"width": 1.4}, 1792), ("mobilenet_v3_large", {}, 1280), ("efficientnet_b2", {}, 1408)])
def test_width_of_the_vector(kind, arguments, width):
    assert taps_of(kind, 32, **arguments)["pooled"].shape == (1, width)


def test_bfloat16_computes_in_it_and_keeps_float32():
    assert all(value.dtype == jnp.bfloat16 for value in taps_of("mobilenet_v3_small", 32, dtype=jnp.bfloat16).values())
    module = build_backbone(Component(kind="mobilenet_v3_small"), dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in leaf_shapes(module).values())


def test_channels_are_rounded_to_eights_but_never_far_down():
    assert [round_channels(n) for n in (1, 11.2, 12, 16 * 1.4, 24 * 0.35, 44)] == [8, 16, 16, 24, 8, 48]


def test_paddings():
    assert [strided_padding("end", kernel, 2) for kernel in (3, 5)] == [((0, 1), (0, 1)), ((1, 2), (1, 2))]
    assert (strided_padding("end", 5, 1), strided_padding("half", 5, 2)) == (2, 2)
    assert strided_padding("same", 5, 2) == "SAME"
    assert least_sizes({"a": "half", "b": "end", "c": "end", "d": "same"}) == {"a": 1, "b": 3, "c": 7, "d": 7}


def test_recomputation_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 8))
    blocks = (Inverted(8, 16, 1, squeezed=4, drop_path=0.5),)  # a small kernel compiles fast
    outputs, gradients = [], []
    for remat in (False, True):
        stage = InvertedStage(blocks, Form(expand_momentum=0.5), remat, jnp.float32)
        variables = jax.jit(lambda x, stage=stage: stage.init(jax.random.key(1), x, False))(x)

        def loss(params, stage=stage, variables=variables):
            y, _ = stage.apply({**variables, "params": params}, x, True, mutable=["batch_stats"],
                               rngs={"dropout": jax.random.key(2)})
            return jnp.square(y).sum(), y

        (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        outputs.append(y)
        gradients.append(flatten(gradient))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for path, gradient in gradients[0].items():
        np.testing.assert_allclose(gradient, gradients[1][path], rtol=1e-4, atol=1e-4)


def test_squeeze_and_excitation_scales_channels():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
    layer = SqueezeExcite(3, "silu", "sigmoid", jnp.float32)
    factors = np.asarray(jax.jit(lambda x: layer.init_with_output(jax.random.key(1), x)[0])(x)) / np.asarray(x)
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1], factors.shape), rtol=1e-5)
    assert factors.min() > 0 and factors.max() < 1


def test_stochastic_depth_grows_with_the_depth():
    net = EfficientNet(drop_path=0.2)
    rates = [block.drop_path for stage in net._stages(net._scale()) for block in stage]
    np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)


def test_settings_of_batch_norm_can_be_replaced():
    forms = {"a": Form("same", 1e-3, 0.01, expand_momentum=0.9)}
    assert find_form(forms, "a", None, None, "it") == forms["a"]
    assert find_form(forms, "a", 1e-5, 0.8, "it") == Form("same", 1e-5, 0.8)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"kind": "mobilenet_v1", "form": "kera"}, "did you mean 'keras'"),
    ({"kind": "mobilenet_v1", "activation": "relu7"}, "did you mean 'relu'"),
    ({"kind": "mobilenet_v1", "width": 0.01}, "at least 1/32"),
    ({"kind": "mobilenet_v2", "width": 0.0}, "not positive"),
    ({"kind": "mobilenet_v3_small", "size": "smal"}, "did you mean 'small'"),
    ({"kind": "efficientnet_b0", "variant": 8}, "use 0 to 7"),
    ({"kind": "efficientnet_b0", "form": "timn"}, "did you mean 'timm'")])
def test_mistakes_become_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        taps_of(rows=64, **arguments)
    assert "\n" not in str(caught.value)


def written(kind, layout, **arguments):
    """(backbone, head, zeros of their leaves, the foreign tensors)."""
    module = build_backbone(Component(kind=kind, **arguments))
    head = published_head(module, 5)
    leaves = {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaf_shapes(module, head).items()}
    return module, head, leaves, to_foreign(leaves, module, layout)


@pytest.mark.parametrize(("kind", "names"), {
    "mobilenet_v1": {"conv1/kernel", "conv_dw_13/depthwise_kernel", "conv_pw_1_bn/gamma", "conv_preds/bias"},
    "mobilenet_v2": {"Conv1/kernel", "expanded_conv_depthwise/depthwise_kernel", "block_16_expand_BN/beta"},
    "mobilenet_v3_small": {"Conv/kernel", "Conv/BatchNorm/gamma", "expanded_conv/depthwise/depthwise_kernel",
                           "expanded_conv/squeeze_excite/Conv_1/bias", "expanded_conv_10/project/BatchNorm/gamma",
                           "Conv_2/bias", "Logits/kernel"},
    "efficientnet_b0": {"stem_conv/kernel", "block6d_dwconv/depthwise_kernel", "block1a_se_reduce/bias", "top_bn/beta",
                        "normalization/mean"}}.items())
def test_published_files_of_keras(kind, names):
    module, head, leaves, tensors = written(kind, "keras_old", form="keras")
    assert names <= set(tensors)
    back, report = to_ours(tensors, module, "keras_old", head)
    report.check()
    assert back.keys() == leaves.keys() and all(back[path].shape == leaf.shape for path, leaf in leaves.items())


def test_keras_normalises_images_in_the_network():
    tensors = written("efficientnet_b0", "keras", form="keras")[3]
    np.testing.assert_allclose(tensors["normalization/variance"], np.square([0.229, 0.224, 0.225]), rtol=1e-6)


@pytest.mark.parametrize(("name", "component"), {
    "efficientnet_b5.sw_in12k_ft_in1k": {"kind": "efficientnet_b5", "form": "timm"},
    "tf_efficientnet_b3.ns_jft_in1k": {"kind": "efficientnet_b3", "form": "timm_tf"},
    "mobilenetv2_100": {"kind": "mobilenet_v2"}, "mobilenetv2_140.ra_in1k": {"kind": "mobilenet_v2", "width": 1.4},
    "mobilenetv3_small_100": {"kind": "mobilenet_v3_small", "form": "timm"},
    "tf_mobilenetv3_large_100": {"kind": "mobilenet_v3_large", "form": "timm_tf"}, "mobilenetv2_110d": None}.items())
def test_names_of_timm(name, component):
    assert from_timm(name, {}) == component
    if component is not None:
        assert _timm_name(Component(**component)) == name.split(".")[0]


@pytest.mark.parametrize(("config", "component"), [
    ({"model_type": "mobilenet_v2", "depth_multiplier": 0.35}, {"kind": "mobilenet_v2", "width": 0.35}),
    ({"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "finegrained_output": False}, None),
    ({"model_type": "mobilenet_v2", "output_stride": 16}, None),
    ({"model_type": "mobilenet_v2", "tf_padding": False}, None),
    ({"model_type": "efficientnet", "width_coefficient": 1.0, "depth_coefficient": 1.1, "depthwise_padding": [16]},
     {"kind": "efficientnet_b1", "symmetric": (16,)}),
    ({"model_type": "efficientnet"}, {"kind": "efficientnet_b7", "symmetric": ()}),
    ({"model_type": "efficientnet", "width_coefficient": 1.5}, None),
    ({"model_type": "efficientnet", "hidden_act": "relu"}, None)])
def test_configs_of_transformers(config, component):
    expected = {**component, "form": "transformers", "epsilon": 1e-3} if component else None
    assert from_transformers(config, {}) == expected
