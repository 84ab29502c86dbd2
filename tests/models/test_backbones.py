"""Backbones: shapes of taps, where `until` cuts, parameter names, and strict arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten
from transfer_jax.core.spec import Component
from transfer_jax.layers.convolution import Conv
from transfer_jax.models import BACKBONES, build_backbone
from transfer_jax.models.taps import Resumed

IMAGE = jax.ShapeDtypeStruct((2, 16, 12, 3), jnp.float32)
SMALL = ["lenet", "small_cnn", "cifar_resnet8"]
# One of each family: the first of its names.
FAMILIES = {getattr(make, "func", make): kind for kind, make in reversed(BACKBONES.items())}.values()


def shapes(module, example=IMAGE):
    """Shapes of variables and taps, without computing anything."""
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), example)
    taps = jax.eval_shape(lambda v, x: module.apply(v, x), variables, example)
    return flatten(variables["params"]), taps


def flops(module):
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), IMAGE)
    compiled = jax.jit(lambda v, x: module.apply(v, x)).lower(variables, IMAGE).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_taps_are_the_declared_ones(kind):
    module = build_backbone(Component(kind=kind))
    _, taps = shapes(module, IMAGE if kind in SMALL else module.example)
    assert set(taps) == set(module.tap_names)
    assert len(taps["pooled"].shape) == 2 and all(tap.dtype == jnp.float32 for tap in taps.values())


def test_a_network_goes_on_behind_its_taps_or_says_that_it_cannot(request):
    """What `resumes` promises holds behind every tap but the last, wherever only shapes are asked for."""
    kinds = FAMILIES if request.config.getoption("--all") else (*SMALL, "vit_tiny", "clip_image_b32", "crepe_tiny")
    for kind in kinds:
        options = {"layers": 2} if kind.startswith(("vit", "clip")) else {}
        module = build_backbone(Component(kind=kind, **options))
        example = IMAGE if kind in SMALL else module.example
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), example)  # noqa: B023
        taps = jax.eval_shape(lambda v, x: module.apply(v, x), variables, example)  # noqa: B023
        for number, tap in enumerate(module.tap_names[:-1] if module.resumes else ()):
            later = jax.eval_shape(lambda v, x: module.apply(v, x), variables, Resumed(taps[tap], tap))  # noqa: B023
            assert later == {name: taps[name] for name in module.tap_names[number + 1:]}, (kind, tap)
        assert module.resumes or not jnp.issubdtype(jax.tree.leaves(example)[0].dtype, jnp.floating), kind


@pytest.mark.parametrize("kind", SMALL)
def test_until_leaves_no_parameters_beyond_it(kind):
    whole = build_backbone(Component(kind=kind))
    everything, _ = shapes(whole)
    before = -1
    for number, tap in enumerate(whole.tap_names):
        parameters, taps = shapes(build_backbone(Component(kind=kind, until=tap)))
        assert set(taps) == set(whole.tap_names[:number + 1])
        assert set(parameters) <= set(everything) and len(parameters) >= before
        before = len(parameters)
    assert before == len(everything)
    first = build_backbone(Component(kind=kind, until=whole.tap_names[0]))
    assert len(shapes(first)[0]) < len(everything) and flops(first) < 0.6 * flops(whole)


def test_parameter_names_and_shapes_of_the_residual_network():
    parameters, taps = shapes(build_backbone(Component(kind="cifar_resnet20", shortcut="B")))
    assert parameters["stage1/block0/conv1/kernel"].shape == (3, 3, 16, 16)
    assert parameters["stage3/block0/shortcut_conv/kernel"].shape == (1, 1, 32, 64)
    assert taps["stage2"].shape == (2, 8, 6, 32) and taps["stage3"].shape == (2, 4, 3, 64)
    plain, _ = shapes(build_backbone(Component(kind="cifar_resnet20")))
    assert not any("shortcut" in path for path in plain)
    # He et al. 2016, table 6: 0.27 million parameters for depth 20, with the classifier of 650.
    assert round((sum(np.prod(leaf.shape) for leaf in plain.values()) + 650) / 1e6, 2) == 0.27
    wide, _ = shapes(build_backbone(Component(kind="cifar_resnet8", width=2)))
    assert wide["stage3/block0/conv2/kernel"].shape == (3, 3, 128, 128)


def test_a_residual_block_equals_torch(torch):
    module = build_backbone(Component(kind="cifar_resnet8", until="stage2"))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    taps, variables = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x))(jnp.asarray(x))
    flat = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten(variables["params"]["stage2"]).items()}
    functional = torch.nn.functional

    def conv(y, name, strides):
        return functional.conv2d(y, flat[f"block0/{name}/kernel"].permute(3, 2, 0, 1), None, strides, 1)

    start = torch.tensor(np.asarray(taps["stage1"])).permute(0, 3, 1, 2)
    fresh = (1 + 1e-5) ** -0.5  # stored mean 0 and variance 1
    y = conv(functional.relu(conv(start, "conv1", 2) * fresh), "conv2", 1) * fresh
    y = functional.relu(y + functional.pad(start[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
    np.testing.assert_allclose(taps["stage2"], y.permute(0, 2, 3, 1).numpy(), atol=1e-4)


@pytest.mark.parametrize("norm", [None, "batch", "group"])
def test_small_network_norms(norm):
    module = build_backbone(Component(kind="small_cnn", widths=(4, 12), convolutions=2, norm=norm))
    parameters, taps = shapes(module)
    assert taps["stage2"].shape == (2, 8, 6, 12) and taps["pooled"].shape == (2, 12)
    assert ("stage1_norm2/scale" in parameters) == (norm is not None)
    assert ("stage1_conv1/bias" in parameters) == (norm is None)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    module = build_backbone(Component(kind="cifar_resnet8"), jnp.bfloat16)
    parameters, taps = shapes(module)
    assert all(tap.dtype == jnp.bfloat16 for tap in taps.values())
    assert all(leaf.dtype == jnp.float32 for leaf in parameters.values())


@pytest.mark.parametrize(("arguments", "words"), [
    ({"kind": "lenett"}, "lenet"),
    ({"kind": "lenet", "width": 3}, "widths"),
    ({"kind": "lenet", "until": "conv9"}, "conv"),
    ({"kind": "cifar_resnet8", "depth": 9}, "6n . 2"),
    ({"kind": "cifar_resnet8", "shortcut": "C"}, "'A' or 'B'"),
    ({"kind": "small_cnn", "norm": "layer"}, "'batch' or 'group'"),
])
def test_mistakes_become_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        shapes(build_backbone(Component(**arguments)))
    assert "\n" not in str(caught.value)


def test_backbones_use_the_fast_convolution():
    seen = []

    def note(next_function, args, kwargs, context):
        seen.append(type(context.module))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        for kind in SMALL:
            shapes(build_backbone(Component(kind=kind)))
    assert Conv in seen and nn.Conv not in seen
