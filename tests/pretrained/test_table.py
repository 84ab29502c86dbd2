"""The language of rule tables: templates, operations and their inverses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_jax.pretrained.rules.table import (
    AS_IS,
    DEPTHWISE_HWCM,
    FLAX,
    KERAS,
    OIHW,
    POINTWISE,
    TORCH,
    TRANSPOSE,
    Layout,
    Rule,
    chained,
    dense_after_flatten,
    part,
    permuted,
    reshaped,
    rules,
)

OPS = [(AS_IS, (3,)), (TRANSPOSE, (3, 5)), (OIHW, (4, 3, 2, 5)), (DEPTHWISE_HWCM, (2, 3, 6, 1)),
       (POINTWISE, (4, 5, 1, 1)), (dense_after_flatten(3, 2, 4), (7, 24)), (permuted(2, 0, 1), (2, 3, 4)),
       (reshaped((6, 4), (2, 3, 4)), (2, 3, 4)), (chained(reshaped((2, 12), (24,)), TRANSPOSE), (24,))]


@pytest.mark.parametrize(("op", "shape"), OPS, ids=[op.name for op, _ in OPS])
def test_every_operation_has_its_inverse(op, shape):
    theirs = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(op.inverse(op.forward(theirs)), theirs)
    ours = op.forward(theirs)
    np.testing.assert_array_equal(op.forward(op.inverse(ours)), ours)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(4)))
def test_any_permutation_has_its_inverse(axes):
    a = np.arange(120).reshape(2, 3, 4, 5)
    op = permuted(*axes)
    assert op.forward(a).shape == tuple(a.shape[i] for i in axes)
    np.testing.assert_array_equal(op.inverse(op.forward(a)), a)


def test_dense_after_flatten_gives_the_same_answer_on_channels_last():
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(7, 60))  # N, C, H, W and F, C * H * W
    ours = image.transpose(0, 2, 3, 1).reshape(2, -1) @ dense_after_flatten(3, 4, 5).forward(kernel)
    np.testing.assert_allclose(ours, image.reshape(2, -1) @ kernel.T)


def test_convolution_kernel_is_read_as_torch_writes_it(torch):
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(2, 5, 6, 4)).astype(np.float32), rng.normal(size=(8, 2, 3, 3)).astype(np.float32)
    from transfer_jax.layers.convolution import convolve

    theirs = torch.nn.functional.conv2d(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), torch.from_numpy(kernel),
                                        padding=1, groups=2).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(convolve(image, OIHW.forward(kernel), padding=1, groups=2), theirs, atol=1e-5)


def test_templates():
    rule = Rule("stage{s}/block{b}/conv{c}/kernel", "layer{s}.{b+1}.conv{c-1}.weight")
    assert rule.name("stage2/block10/conv3/kernel") == "layer2.11.conv2.weight"
    assert rule.name("stage2/block10/conv3/bias") is None
    assert rule.name("x/stage2/block10/conv3/kernel") is None
    assert Rule("a/{q:query|key}/w", "b.{q}.w").name("a/key/w") == "b.key.w"
    assert Rule("a/{q:query|key}/w", "b.{q}.w").name("a/value/w") is None
    irregular = Rule("conv{i}/kernel", lambda i: f"features.{[0, 3, 6][i]}.weight")
    assert irregular.name("conv2/kernel") == "features.6.weight"


def test_first_rule_wins_and_unknown_leaves_have_no_name():
    layout = Layout(rules(Rule("head/bias", "special"), TORCH.dense("{n:head|tail}", "{n}")))
    assert layout.find("head/bias") == ("special", AS_IS)
    assert layout.find("tail/bias") == ("tail.bias", AS_IS)
    assert layout.find("tail/kernel") == ("tail.weight", TRANSPOSE)
    assert layout.find("body/kernel") is None


def test_styles_name_all_leaves_of_a_layer():
    assert [rule.name("n/" + leaf) for rule, leaf in zip(TORCH.norm("n", "bn"), ("scale", "bias", "mean", "var"),
                                                         strict=True)] == [
        "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    assert [rule.name("n/" + leaf) for rule, leaf in zip(KERAS.norm("n", "bn"), ("scale", "bias", "mean", "var"),
                                                         strict=True)] == [
        "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    assert FLAX.embedding("e", "wte")[0].name("e/embedding") == "wte/embedding"
    assert TORCH.conv("c", lambda: "features.0")[0].name("c/kernel") == "features.0.weight"


def test_parts_say_which_and_along_what():
    op = part(1, 3, TRANSPOSE)
    assert (op.index, op.count, op.axis) == (1, 3, 0)
    assert op.forward(np.zeros((2, 5))).shape == (5, 2)
