"""AlexNet, VGG, SqueezeNet, GoogLeNet, Inception-v3, DenseNet: sizes, cuts, blocks alone, errors, and their tables."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone, build_head
from transfer_jax.models.densenet import FORMS as DENSENET_FORMS
from transfer_jax.models.densenet import DenseBlock, DenseLayer, Transition
from transfer_jax.models.googlenet import Inception, to_half_range
from transfer_jax.models.inception import FORMS, MODULES, InceptionModule
from transfer_jax.models.squeezenet import Fire
from transfer_jax.models.vgg import VGGStage
from transfer_jax.pretrained.conversion import STATISTICS, leaf_shapes, published_head, to_foreign, to_ours

# Published numbers of parameters with 1000 classes, without auxiliary classifiers (torchvision 0.28, timm 1.0.31).
PARAMETERS = {"alexnet": 61_100_840, "vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544,
              "vgg19": 143_667_240, "vgg11_bn": 132_868_840, "vgg13_bn": 133_053_736, "vgg16_bn": 138_365_992,
              "vgg19_bn": 143_678_248, "squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496,
              "googlenet": 6_624_904, "inception_v3": 23_834_568, "densenet121": 7_978_856, "densenet169": 14_149_480,
              "densenet201": 20_013_928}
# Least side of an image for a tap; the last is that of the whole network.
LEAST = {"alexnet": {"conv1": 7, "conv2": 15, "conv5": 31, "pool5": 63}, "vgg11": {"stage1": 2, "stage5": 32},
         "squeezenet1_0": {"conv1": 7, "fire4": 9, "fire8": 13, "fire9": 21},
         "squeezenet1_1": {"conv1": 3, "fire3": 5, "fire5": 9, "fire6": 17},
         "googlenet": {"conv1": 1, "conv3": 3, "inception3b": 7, "inception5b": 15},
         "inception_v3": {"conv_1a": 3, "conv_2b": 7, "conv_3b": 11, "conv_4a": 19, "mixed_5d": 27, "mixed_6e": 43,
                          "mixed_7c": 75},
         "densenet121": {"stem": 1, "transition1": 5, "transition2": 13, "denseblock4": 29}}
FILES = {"vgg11": "vgg", "squeezenet1_0": "squeezenet", "squeezenet1_1": "squeezenet", "inception_v3": "inception",
         "densenet121": "densenet"}


def taps_of(kind, side, **arguments):
    """Shapes of taps for square images."""
    module = build_backbone(Component(kind=kind, **arguments))
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], image)


def breaks_down(kind, side, tap):
    """Whether a map becomes empty, a window does not fit, or a mean has nothing to average."""
    try:
        return any(0 in value.shape for value in taps_of(kind, side, until=tap).values())
    except (ValueError, TypeError, ZeroDivisionError):
        return True


@pytest.mark.parametrize("kind", PARAMETERS)
def test_number_of_parameters_is_the_published_one(kind):
    module = build_backbone(Component(kind=kind))
    leaves = leaf_shapes(module, published_head(module, 1000))
    assert sum(np.prod(leaf.shape) for path, leaf in leaves.items()
               if path.rpartition("/")[2] not in STATISTICS) == PARAMETERS[kind]


@pytest.mark.parametrize(("kind", "tap", "side"), [(k, tap, side) for k, sizes in LEAST.items()
                                                   for tap, side in sizes.items()])
def test_least_sizes(kind, tap, side, monkeypatch):
    assert all(0 not in value.shape for value in taps_of(kind, side, until=tap).values())
    if side == 1:
        return
    with pytest.raises(UserError, match=f"{side - 1} x {side - 1} pixels .* at least {side} x {side}"):
        taps_of(kind, side - 1, until=tap)
    name = f"transfer_jax.models.{FILES.get(kind, kind)}"
    monkeypatch.setattr(importlib.import_module(name), "require_size", lambda *_: None)
    assert breaks_down(kind, side - 1, tap)


@pytest.mark.parametrize("kind", LEAST)
def test_a_cut_network_has_no_parameters_behind_the_cut(kind):
    whole = build_backbone(Component(kind=kind))
    everything, before = leaf_shapes(whole), -1
    for number, tap in enumerate(whole.tap_names):
        leaves = leaf_shapes(build_backbone(Component(kind=kind, until=tap)))
        assert set(leaves) <= set(everything) and len(leaves) >= before
        before = len(leaves)
        if number == 0:
            assert len(leaves) < len(everything) / 2
    assert before == len(everything)
    shapes = taps_of(kind, whole.example.shape[1])
    assert set(shapes) == set(whole.tap_names) and len(shapes["pooled"].shape) == 2


def test_any_image_gives_alexnet_and_vgg_the_same_vector():
    for side in (63, 100, 300):
        shapes = taps_of("alexnet", side)
        assert shapes["pool5"].shape == (1, 6, 6, 256) and shapes["fc6"].shape == (1, 4096)
    assert taps_of("vgg11", 32)["pooled"].shape == (1, 4096)
    assert taps_of("vgg11", 40, pool_size=1, until="fc6")["fc6"].shape == (1, 4096)


@pytest.mark.parametrize(("block", "channels", "shape"), [
    (Fire(16, jnp.float32), 64, (1, 8, 8, 128)),
    (VGGStage(2, 24, True, jnp.float32), 5, (1, 4, 4, 24)),
    (Inception((64, 96, 128, 16, 32, 32), 5, jnp.float32), 192, (1, 8, 8, 256)),
    (InceptionModule(MODULES["6a"], FORMS["keras"], jnp.float32), 288, (1, 3, 3, 768)),
    (InceptionModule(MODULES["7b"], FORMS["pytorch"], jnp.float32), 1280, (1, 8, 8, 2048)),
    (DenseLayer(32, DENSENET_FORMS["pytorch"], jnp.float32), 64, (1, 8, 8, 32)),
    (Transition(DENSENET_FORMS["pytorch"], jnp.float32), 64, (1, 4, 4, 32))])
def test_blocks_stand_alone(block, channels, shape):
    image = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    assert jax.eval_shape(lambda x: block.init_with_output(jax.random.key(0), x, False)[0], image).shape == shape


def test_a_dense_block_keeps_its_input_and_recomputation_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    outputs, gradients = [], []
    for remat in (False, True):
        block = DenseBlock(2, 4, DENSENET_FORMS["pytorch"], remat, jnp.float32)
        variables = jax.jit(block.init, static_argnums=2)(jax.random.key(1), x, False)

        def loss(params, block=block, variables=variables):
            y, _ = block.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.square(y).sum(), y

        (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        outputs.append(y)
        gradients.append(flatten(gradient))
    np.testing.assert_array_equal(outputs[0][..., :8], x)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for path, gradient in gradients[0].items():
        np.testing.assert_allclose(gradient, gradients[1][path], rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
    module = build_backbone(Component(kind="vgg11", pool_size=1, dropout=0.5))
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    @jax.jit
    def run(x):
        variables = module.init(jax.random.key(1), x)
        return [module.apply(variables, x, train=train, rngs={"dropout": jax.random.key(2)}) for train in (False, True)]

    still, thinned = run(x)
    np.testing.assert_array_equal(still["pooled"], still["fc7"])
    kept = np.asarray(thinned["pooled"] != 0)
    np.testing.assert_allclose(np.asarray(thinned["pooled"])[kept], 2 * np.asarray(thinned["fc7"])[kept], rtol=1e-6)
    positive = np.asarray(thinned["fc7"] > 0)
    assert 0.4 < kept[positive].mean() < 0.6


def test_transformed_inputs():
    value = jax.random.uniform(jax.random.key(0), (2, 3, 3, 3))
    mean, std = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(to_half_range((value - mean) / std), (value - 0.5) / 0.5, atol=1e-6)
    with pytest.raises(UserError, match="3 channels, these have 1"):
        to_half_range(value[..., :1])


@pytest.mark.parametrize(("arguments", "words"), [
    ({"kind": "vgg11", "depth": 12}, "11, 13, 16, 19"), ({"kind": "densenet121", "depth": 161}, "121, 169, 201"),
    ({"kind": "densenet121", "form": "kera"}, "did you mean 'keras'"),
    ({"kind": "inception_v3", "form": "torch"}, "did you mean 'pytorch'"),
    ({"kind": "squeezenet1_0", "version": "2"}, "'1.0' or '1.1'")])
def test_mistakes_become_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        taps_of(side=96, **arguments)
    assert "\n" not in str(caught.value)


def test_the_head_of_squeezenet():
    head = build_head(Component(kind="conv_relu_mean", classes=3))
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
    output, variables = head.init_with_output(jax.random.key(1), {"fire9": x})
    kernel = np.asarray(variables["params"]["conv"]["kernel"])[0, 0]
    np.testing.assert_allclose(output, np.maximum(np.asarray(x) @ kernel, 0).mean((1, 2)), atol=1e-6)
    trained = [head.apply(variables, x, train=True, rngs={"dropout": jax.random.key(i)}) for i in (2, 3)]
    assert not np.allclose(*trained)
    with pytest.raises(UserError, match="needs a map"):
        head.apply(variables, {"fire9": x[:, 0, 0]})


def written(kind, layout, **arguments):
    """Foreign names with stand-ins for the tensors."""
    module = build_backbone(Component(kind=kind, **arguments))
    leaves = leaf_shapes(module, published_head(module, 7))
    return module, to_foreign({path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}, module, layout)


def places(names):
    return sorted({int(name.split(".")[1]) for name in names if name.startswith("features.")})


def test_numbers_in_the_sequences_of_vgg():
    assert places(written("vgg16", "torchvision", pool_size=1)[1]) == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert places(written("vgg11_bn", "timm", pool_size=1)[1]) == [0, 1, 4, 5, 8, 9, 11, 12, 15, 16, 18, 19, 22, 23, 25,
                                                                   26]


@pytest.mark.parametrize(("layout", "first"), [("keras", 0), ("keras_from_1", 1)])
def test_keras_numbers_the_layers_of_inception(layout, first):
    names = {name.split("/")[0] for name in written("inception_v3", layout, form="keras")[1]}
    numbers = [f"_{i}" if i else "" for i in range(first, first + 94)]
    assert names == {f"{kind}{i}" for kind in ("conv2d", "batch_normalization") for i in numbers} | {"predictions"}


@pytest.mark.parametrize(("kind", "tensor"), [("googlenet", "aux2.fc1.weight"),
                                              ("inception_v3", "AuxLogits.conv0.conv.weight")])
def test_auxiliary_classifiers_are_left_aside(kind, tensor):
    module, tensors = written(kind, "torchvision")
    leaves, report = to_ours({**tensors, tensor: np.zeros((3, 3))}, module, "torchvision", published_head(module, 7))
    report.check()
    assert len(leaves) == len(leaf_shapes(module, published_head(module, 7)))


def test_names_of_old_files_of_densenet():
    names = written("densenet121", "torchvision_old")[1]
    assert {"features.denseblock1.denselayer1.norm.1.running_mean", "features.transition3.norm.weight",
            "features.denseblock4.denselayer16.conv.2.weight", "classifier.bias"} <= set(names)
    names = written("densenet121", "keras_old", form="keras")[1]
    assert {"conv1/conv/kernel", "conv1/bn/gamma", "conv5_block16_2_conv/kernel", "pool4_bn/beta",
            "fc1000/bias"} <= set(names)
