"""Conversion of a toy network: every tensor accounted for, every difference named, and the way back."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import global_average
from transfer_jax.models.blocks import block_steps, stack_blocks
from transfer_jax.models.taps import Backbone, walk
from transfer_jax.pretrained import conversion
from transfer_jax.pretrained.channels import adapt_channels
from transfer_jax.pretrained.conversion import (
    Options,
    detect_layout,
    leaf_shapes,
    published_head,
    source_classes,
    to_foreign,
    to_ours,
)
from transfer_jax.pretrained.report import LoadError
from transfer_jax.pretrained.rules.table import TORCH, TRANSPOSE, Layout, Rule, part, rules


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        q, k = (nn.Dense(x.shape[-1], use_bias=False, name=name)(x) for name in ("query", "key"))
        return x + jnp.tanh(q * k)


class Toy(Backbone):
    """A convolution, a BatchNorm, two blocks with packed projections, a mean."""

    scan: bool = False

    @property
    def tap_names(self):
        return ("stem", "block0", "block1", "pooled")

    @property
    def example(self):
        return jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)

    @nn.compact
    def __call__(self, x, train=False):
        def stem(x):
            return BatchNorm(name="bn")(Conv(4, name="conv")(x), train)

        blocks = block_steps(lambda name, i: Mixer(name=name), 2, train, until=self.until, scan=self.scan)
        return walk(x, self.until, {"stem": stem, **blocks, "pooled": global_average})


def torch_like(backbone):
    return Layout(rules(TORCH.conv("conv", "body.stem.0"), TORCH.norm("bn", "body.stem.1"),
                        [Rule(f"block{{b}}/{name}/kernel", "body.blocks.{b+1}.qk.weight", part(i, 2, TRANSPOSE))
                         for i, name in enumerate(("query", "key"))],
                        TORCH.dense("head/dense", "fc")),
                  ignore=(r".*num_batches_tracked",), prefix="body.", input_kernels=("conv/kernel",))


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    monkeypatch.setitem(conversion.LAYOUTS, Toy, {"torch_like": torch_like,
                                                  "other": lambda backbone: Layout(rules(TORCH.conv("conv", "x")))})


@pytest.fixture
def leaves():
    rng = np.random.default_rng(0)
    shapes = leaf_shapes(Toy(), published_head(Toy(), 5))
    return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}


@pytest.fixture
def tensors(leaves):
    return to_foreign(leaves, Toy(), "torch_like")


def test_shapes_name_every_leaf_of_backbone_and_head(leaves):
    assert set(leaves) == {"conv/kernel", "conv/bias", "bn/scale", "bn/bias", "bn/mean", "bn/var",
                           "block0/query/kernel", "block0/key/kernel", "block1/query/kernel", "block1/key/kernel",
                           "head/dense/kernel", "head/dense/bias"}


def test_there_and_back_is_the_identity(leaves, tensors):
    assert tensors["body.blocks.1.qk.weight"].shape == (8, 4)
    np.testing.assert_array_equal(tensors["body.blocks.2.qk.weight"][4:], leaves["block1/key/kernel"].T)
    back, report = to_ours(tensors, Toy(), "torch_like", published_head(Toy(), 5))
    assert not report.faults and len(report.of("loaded")) == len(leaves)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(back[path], leaf)


@pytest.mark.parametrize("wrapper", ["", "module.", "module.encoder_q.", "_orig_mod."])
@pytest.mark.parametrize("prefix", [True, False])
def test_wrappers_and_prefixes_of_names_are_seen_through(tensors, wrapper, prefix):
    named = {wrapper + (name if prefix else name.removeprefix("body.")): leaf for name, leaf in tensors.items()}
    back, report = to_ours(named, Toy(), "torch_like", published_head(Toy(), 5))
    assert not report.faults
    assert detect_layout(named, Toy()) == "torch_like"
    assert source_classes(named, Toy(), "torch_like") == 5


def test_head_outside_of_the_wrapper(tensors):
    named = {name if name.startswith("fc") else f"backbone.{name}": leaf for name, leaf in tensors.items()}
    assert not to_ours(named, Toy(), "torch_like", published_head(Toy(), 5))[1].faults


def test_without_a_head_the_published_one_is_left_out(tensors):
    back, report = to_ours(tensors, Toy(), "torch_like")
    assert not report.faults and not any(path.startswith("head/") for path in back)
    assert {entry.theirs for entry in report.of("left out")} == {"fc.weight", "fc.bias"}


def test_what_lies_behind_the_cut_is_left_out(tensors):
    back, report = to_ours(tensors, Toy(until="block0"), "torch_like")
    assert not report.faults and "block1/key/kernel" not in back
    assert any(entry.note == "behind the cut" for entry in report.of("left out"))


def test_scanned_blocks_come_out_stacked_and_go_back(leaves, tensors):
    back, report = to_ours(tensors, Toy(scan=True), "torch_like", published_head(Toy(), 5))
    assert not report.faults and back["blocks/query/kernel"].shape == (2, 4, 4)
    for path, leaf in stack_blocks(leaves).items():
        np.testing.assert_array_equal(back[path], leaf)
    again = to_foreign(back, Toy(scan=True), "torch_like")
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def test_missing_unused_and_misshapen_tensors_stop_with_the_report(tensors):
    del tensors["body.stem.1.weight"]
    tensors["body.extra"] = np.zeros(3, np.float32)
    tensors["body.stem.0.bias"] = np.zeros(9, np.float32)
    tensors["body.stem.1.num_batches_tracked"] = np.array(7)
    _, report = to_ours(tensors, Toy(), "torch_like")
    assert [entry.ours for entry in report.of("missing")] == ["bn/scale"]
    assert [entry.theirs for entry in report.of("unused")] == ["body.extra"]
    assert [entry.theirs for entry in report.of("mismatch")] == ["body.stem.0.bias"]
    assert [entry.theirs for entry in report.of("ignored")] == ["body.stem.1.num_batches_tracked"]
    with pytest.raises(LoadError, match="1 missing .bn/scale.*1 unused .*1 mismatch") as raised:
        report.check()
    assert "\n" not in str(raised.value) and raised.value.report is report


def test_intended_differences_are_named(tensors):
    del tensors["body.stem.1.weight"]
    tensors["body.extra"] = np.zeros(3, np.float32)
    back, report = to_ours(tensors, Toy(), "torch_like",
                           options=Options(allow_missing=("bn/.*",), allow_unused=(r"body\.extra",)))
    assert not report.faults and "bn/scale" not in back
    assert [entry.ours for entry in report.of("new")] == ["bn/scale"]


@pytest.mark.parametrize("method", ["sum", "mean", "repeat"])
def test_another_number_of_channels_is_adapted_by_name_only(tensors, method):
    grey = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    _, report = to_ours(tensors, Toy(), "torch_like", example=grey)
    assert "set channels" in report.of("mismatch")[0].note
    back, report = to_ours(tensors, Toy(), "torch_like", example=grey, options=Options(channels=method))
    assert not report.faults and back["conv/kernel"].shape == (3, 3, 1, 4)
    assert [entry.ours for entry in report.of("adapted")] == ["conv/kernel"]


def test_another_width_is_no_matter_of_channels(tensors):
    tensors["body.stem.0.weight"] = np.concatenate([tensors["body.stem.0.weight"]] * 2)  # twice the features
    for options in (Options(), Options(channels="mean")):
        back, report = to_ours(tensors, Toy(), "torch_like", options=options)
        fault, = report.of("mismatch")
        assert fault.ours == "conv/kernel" and "conv/kernel" not in back
        assert "[3, 3, 3, 8]" in fault.note and "channels" not in fault.note


def test_channel_adaptations_keep_what_they_promise():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    grey = np.random.default_rng(1).normal(size=(1, 3, 3, 1)).astype(np.float32)

    def answer(image, kernel):
        return np.einsum("bhwc,hwcf->bf", image, kernel)

    np.testing.assert_allclose(answer(grey, adapt_channels(kernel, 1, "sum")), answer(np.repeat(grey, 3, -1), kernel),
                               rtol=1e-5)
    for method in ("repeat", "mean"):
        for channels in (1, 2, 4, 6):
            constant = adapt_channels(kernel, channels, method)
            assert constant.shape == (3, 3, channels, 4)
            if channels == 6 or method == "mean":
                np.testing.assert_allclose(answer(np.ones((1, 3, 3, channels)), constant),
                                           answer(np.ones((1, 3, 3, 3)), kernel), rtol=1e-4)
    with pytest.raises(UserError, match="makes one input channel"):
        adapt_channels(kernel, 4, "sum")
    with pytest.raises(UserError, match="did you mean 'repeat'"):
        adapt_channels(kernel, 4, "repeats")


def test_half_precision_is_widened_exactly_and_double_is_reported(tensors):
    half = {name: leaf.astype(np.float16) for name, leaf in tensors.items()}
    back, report = to_ours(half, Toy(), "torch_like")
    assert back["conv/kernel"].dtype == np.float32 and not report.of("adapted")
    np.testing.assert_array_equal(back["conv/bias"].astype(np.float16), half["body.stem.0.bias"])
    double = {name: leaf.astype(np.float64) + 1e-12 for name, leaf in tensors.items()}
    assert "rounded" in to_ours(double, Toy(), "torch_like")[1].of("adapted")[0].note


def test_foreign_names_give_a_helpful_error(tensors):
    with pytest.raises(UserError, match="names of no layout of Toy .found of each: torch_like 0%, other 0%"):
        detect_layout({"a.weight": np.zeros(1)}, Toy())
    with pytest.raises(UserError, match="did you mean 'torch_like'"):
        to_ours(tensors, Toy(), "torchlike")


def test_writing_needs_a_name_for_every_leaf(leaves):
    with pytest.raises(UserError, match="no name for our leaf 'new/kernel'"):
        to_foreign({**leaves, "new/kernel": np.zeros(1)}, Toy(), "torch_like")
    del leaves["block1/key/kernel"]
    with pytest.raises(UserError, match="needs 2 leaves"):
        to_foreign(leaves, Toy(), "torch_like")


def test_report_tables_and_summaries(tensors):
    del tensors["body.stem.1.weight"]
    _, report = to_ours(tensors, Toy(), "torch_like", source="toy.pth")
    console = Console(width=120, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    assert "toy.pth (torch_like) -> Toy" in text and "missing" in text and "bn/scale" in text
    summary = report.summary()
    assert summary["tensors"]["loaded"] == 9 and summary["not_loaded"][0]["ours"] == "bn/scale"


def test_component_of_the_classifier():
    assert Toy().classifier == Component(kind="linear", tap="pooled")
