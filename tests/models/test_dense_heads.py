"""Heads for every pixel: sizes on several backbones, FCN-8s by hand, the pyramid beside torch, gradients, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone, build_head
from transfer_jax.models.dense_heads import doublings
from transfer_jax.models.pyramid import resize

RNG = np.random.default_rng(0)
MAPS = {"fine": (7, 5, 4), "middle": (4, 3, 6), "coarse": (1, 1, 8)}
TAPS = {name: RNG.normal(size=(2, *shape)).astype(np.float32) for name, shape in MAPS.items()}
SIZE = (27, 19)
KINDS = {"fcn": dict(hidden=8), "feature_pyramid": dict(width=8, branch=8, groups=2)}


def head_of(kind, taps=tuple(MAPS), classes=3, **more):
    return build_head(Component(kind=kind, classes=classes, taps=taps, **{**KINDS[kind], **more}))


def drawn(head):
    """Variables of which no leaf is 0, nor alike."""
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), TAPS, SIZE))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.2, 1.0, leaf.shape) * rng.choice([-1, 1], leaf.shape)
                                                 if leaf.ndim > 1 else rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype),
                        shapes)


@pytest.mark.parametrize(("backbone", "taps"), [
    (dict(kind="resnet18"), ("stage1", "stage2", "stage3", "stage4")),
    (dict(kind="mobilenet_v1", width=0.25), ("stage1", "stage3", "stage5")),
    (dict(kind="densenet121"), ("denseblock1", "norm5")),
    (dict(kind="vit_tiny", layers=2, patch=8, registers=4), ("tokens",)),
])
@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_is_answered_pixel_by_pixel(backbone, taps, kind):
    network, head = build_backbone(Component(**backbone)), head_of(kind, taps, classes=5)
    image = jax.ShapeDtypeStruct((2, 72, 104, 3), jnp.float32)

    def forward(image):
        found, _ = network.init_with_output(jax.random.key(0), image)
        return head.init_with_output(jax.random.key(0), found, image.shape[1:3])[0]

    output = jax.eval_shape(forward, image)
    assert output.shape == (2, 72, 104, 5) and output.dtype == jnp.float32


def weights(size, target):
    """[target, size]: bilinear interpolation with half-pixel centres, beyond the last ones constant."""
    rows = np.zeros((target, size))
    for i in range(target):
        place = np.clip((i + 0.5) * size / target - 0.5, 0, size - 1)
        low = min(int(place), max(size - 2, 0))
        rows[i, low] += 1 - (place - low)
        if size > 1:
            rows[i, low + 1] += place - low
    return rows


def enlarged(x, size):
    return np.einsum("yh,bhwc,xw->byxc", weights(x.shape[1], size[0]), x, weights(x.shape[2], size[1]))


def test_resizing_is_bilinear_also_in_torch(torch):
    x = TAPS["middle"]
    theirs = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), (9, 13), mode="bilinear",
                                             align_corners=False).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize(jnp.asarray(x), (9, 13)), theirs.numpy(), atol=1e-5)
    np.testing.assert_allclose(enlarged(x, (9, 13)), theirs.numpy(), atol=1e-5)


def test_fcn_8s_by_hand():
    head = head_of("fcn", hidden=0)
    variables = drawn(head)
    scores = [np.asarray(TAPS[name], np.float64) @ np.asarray(variables["params"][f"score{i}"]["kernel"][0, 0])
              + np.asarray(variables["params"][f"score{i}"]["bias"]) for i, name in enumerate(MAPS)]
    total = scores[2]
    for own in (scores[1], scores[0]):
        total = enlarged(total, own.shape[1:3]) + own
    np.testing.assert_allclose(head.apply(variables, TAPS, SIZE), enlarged(total, SIZE), rtol=1e-5, atol=1e-5)


def test_fcn_starts_with_the_coarse_answer():
    head, coarse = (head_of("fcn", taps) for taps in (tuple(MAPS), ("coarse",)))
    variables = head.init(jax.random.key(0), TAPS, SIZE)
    alone = {"params": {"conv": variables["params"]["conv"], "bn": variables["params"]["bn"],
                        "score0": variables["params"]["score2"]}, "batch_stats": variables["batch_stats"]}
    np.testing.assert_allclose(head.apply(variables, TAPS, SIZE), coarse.apply(alone, TAPS, SIZE), atol=1e-6)


def test_the_feature_pyramid_is_that_of_torch(torch):
    functional = torch.nn.functional
    head = head_of("feature_pyramid")
    variables = drawn(head)
    params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), variables["params"])

    def conv(x, name):
        kernel = params[name]["kernel"].permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, params[name]["bias"], padding=kernel.shape[-1] // 2)

    def bilinear(x, size):
        return functional.interpolate(x, size, mode="bilinear", align_corners=False)

    laterals = [conv(torch.tensor(TAPS[name]).permute(0, 3, 1, 2), f"lateral{i}") for i, name in enumerate(MAPS)]
    for i in (1, 0):
        # jax's nearest takes centres, as torch's 'nearest-exact'.
        laterals[i] = laterals[i] + functional.interpolate(laterals[i + 1], laterals[i].shape[2:], mode="nearest-exact")
    total = 0
    for i, (lateral, sizes) in enumerate(zip(laterals, [[(7, 5)], [(7, 5)], [(2, 2), (4, 3), (7, 5)]], strict=True)):
        x = conv(lateral, f"smooth{i}")
        for j, size in enumerate(sizes):
            norm = params[f"norm{i}_{j}"]
            x = functional.group_norm(conv(x, f"branch{i}_{j}"), 2, norm["scale"], norm["bias"], eps=1e-6)
            x = bilinear(torch.relu(x), size)
        total = total + x
    theirs = bilinear(conv(total, "classify"), SIZE).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(jax.jit(functools.partial(head.apply, image_size=SIZE))(variables, TAPS), theirs,
                               rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_each_tap(kind):
    head = head_of(kind)
    variables = drawn(head)
    pull = jax.jit(jax.grad(lambda taps: jnp.sum(head.apply(variables, taps, SIZE)[:, 13, 9] ** 2)))
    for name, slope in pull(TAPS).items():
        slope = np.asarray(slope)
        assert np.isfinite(slope).all() and (np.abs(slope).sum((1, 2, 3)) > 1e-4).all(), name


def test_sizes_on_the_way_to_the_finest():
    assert doublings((30, 40), (30, 40)) == []
    assert doublings((4, 5), (30, 40)) == [(8, 10), (15, 20), (30, 40)]
    assert doublings((25, 33), (30, 40)) == [(30, 40)]


def test_dropout_and_batchnorm_act_in_training():
    head = head_of("fcn", dropout=0.5)
    variables = head.init(jax.random.key(0), TAPS, SIZE)
    noisy, moved = head.apply(variables, TAPS, SIZE, train=True, rngs={"dropout": jax.random.key(1)},
                              mutable=["batch_stats"])
    assert float(jnp.abs(noisy - head.apply(variables, TAPS, SIZE)).max()) > 1e-3
    assert float(jnp.abs(moved["batch_stats"]["bn"]["mean"]).max()) > 0


@pytest.mark.parametrize(("taps", "more", "words"), [
    (("coarse", "fine"), {}, "must go from fine to coarse, their maps have 1, 35 points"),
    (("fine", "fine"), {}, "leave one out of equal ones"),
    (("fine", "pooled"), {}, "needs maps, but the tap 'pooled' has shape \\(2, 8\\)"),
    (("fine", "words"), {}, "needs maps, but the tap 'words'"),
    (("fine", "stage9"), {}, "asks for the tap 'stage9'"),
    ((), {}, "reads no tap"),
    (("fine",), {"branch": 9}, "no multiple of groups=2"),
])
def test_mistakes_become_one_sentence(taps, more, words):
    taps_and_more = {**TAPS, "pooled": jnp.ones((2, 8)), "words": jnp.ones((2, 40, 8))}
    for kind in ("feature_pyramid",) if more else KINDS:
        with pytest.raises(UserError, match=words):
            head_of(kind, taps, **more).init(jax.random.key(0), taps_and_more, SIZE)
