"""What files of text models and of CLIP hold besides the tensors of one backbone, and how it is told apart."""

import jax
import numpy as np
import pytest

from tests.parity.oracle import framework
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import detect_layout, leaf_shapes, published_head, to_foreign, to_ours

TINY = {"width": 8, "layers": 12, "heads": 2}
TEXT = {**TINY, "vocabulary": 9, "mlp_width": 8, "positions": 6}


def tiny(kind, **arguments):
    return build_backbone(Component(kind=kind, **arguments))


def drawn(backbone, head=None):
    rng = np.random.default_rng(0)
    shapes = leaf_shapes(backbone, head)
    return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}


def read(tensors, backbone, layout):
    """Our leaves, with nothing missing and nothing left over."""
    leaves, report = to_ours(tensors, backbone, layout)
    report.check()
    return leaves


def same(one, two):
    return set(one) == set(two) and all(np.array_equal(one[path], two[path]) for path in one)


@pytest.mark.parametrize("layout", ["transformers", "openai"])
def test_each_tower_of_clip_takes_its_own_part_of_a_file(layout):
    towers = (tiny("clip_image_b32", **TINY, projection=4), tiny("clip_text_b32", **TEXT, projection=4))
    leaves = [drawn(tower) for tower in towers]
    both = {name: tensor for tower, own in zip(towers, leaves, strict=True)
            for name, tensor in to_foreign(own, tower, layout).items()}
    both |= {"logit_scale": np.float32(4.6), "text_model.embeddings.position_ids": np.arange(6)[None]} \
        if layout == "transformers" else {"logit_scale": np.float32(4.6), "input_resolution": np.int64(224),
                                          "context_length": np.int64(77), "vocab_size": np.int64(9)}
    for tower, own in zip(towers, leaves, strict=True):
        assert same(read(both, tower, layout), own)


def test_the_projection_of_clip_is_the_head_of_timm():
    projecting = tiny("clip_image_b32", **TINY, projection=4)
    leaves = drawn(projecting)
    written = to_foreign(leaves, projecting, "timm")
    assert not written["head.bias"].any() and written["head.bias"].shape == (4,)
    assert same(read(written, projecting, "timm"), leaves)
    linear = projecting.clone(projection=None)
    back, report = to_ours(written, linear, "timm", published_head(linear, 4))
    report.check()
    assert np.array_equal(back["head/dense/kernel"], leaves["projection/kernel"])


def test_every_layout_of_clip_gives_the_same_leaves(request):
    """timm has a converter of its own for the files of OpenAI: it makes of ours what we write for timm."""
    backbone = tiny("clip_image_b32", layers=1, projection=16)
    shapes = leaf_shapes(backbone, None, jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    written = {layout: to_foreign(leaves, backbone, layout) for layout in ("transformers", "timm", "openai")}
    for layout, tensors in written.items():
        back, report = to_ours(tensors, backbone, layout, None, jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
        report.check()
        assert detect_layout(tensors, backbone) == layout and same(back, leaves)
    if not request.config.getoption("--parity"):
        pytest.skip("asks timm for the rest; run with --parity")
    torch, timm = framework("torch"), framework("timm")
    model = timm.create_model("vit_base_patch32_clip_quickgelu_224", img_size=64, depth=1, num_classes=16)
    openai = {name: torch.from_numpy(tensor) for name, tensor in written["openai"].items()}
    theirs = timm.models.vision_transformer.checkpoint_filter_fn(openai, model)
    assert same({name: tensor.numpy() for name, tensor in theirs.items()}, written["timm"])


def test_the_first_files_of_gpt2():
    """Without prefix, with the masks of attention, or with the tied head of tokens."""
    backbone = tiny("gpt2", **TEXT)
    leaves = drawn(backbone)
    written = to_foreign(leaves, backbone, "transformers")
    assert written["transformer.h.3.attn.c_attn.weight"].shape == (8, 24)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in written.items()}
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 6, 6), np.float32)) for i in range(12)}
    assert same(read(bare | masks, backbone, "transformers"), leaves)
    assert same(read(written | {"lm_head.weight": written["transformer.wte.weight"]}, backbone, "transformers"), leaves)
    with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn\.bias"):
        read({name: tensor for name, tensor in written.items() if not name.endswith("h.0.attn.c_attn.bias")}, backbone,
             "transformers")


@pytest.mark.parametrize(("kind", "prefix", "heads"), [
    ("bert", "bert.", ("cls.predictions.bias", "cls.seq_relationship.weight", "bert.embeddings.position_ids")),
    ("roberta", "roberta.", ("lm_head.dense.weight", "roberta.embeddings.position_ids", "roberta.pooler.dense.bias")),
    ("distilbert", "distilbert.", ("vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias")),
])
def test_heads_of_pretraining_stay_behind(kind, prefix, heads):
    for pool in ("mean", "pooler" if kind == "bert" else "hidden"):
        backbone = tiny(kind, **TEXT, pool=pool)
        leaves = drawn(backbone)
        written = to_foreign(leaves, backbone, "transformers")
        inside = {name if name.startswith((prefix, "classifier", "pre_")) else prefix + name: tensor
                  for name, tensor in written.items()}
        assert (inside == written) == (pool != "mean")
        assert same(read(inside | dict.fromkeys(heads, np.zeros(3)), backbone, "transformers"), leaves)
        assert same(read(written, backbone, "transformers"), leaves)
