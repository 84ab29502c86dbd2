"""The blocks of a backbone hold every parameter once, in the order in which the network computes."""

import pytest

from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.models.depth import parameter_blocks
from transfer_jax.pretrained.conversion import leaf_shapes

SMALL = {"small_cnn": {}, "cifar_resnet8": {}, "lenet": {}, "mobilenet_v3_small": {}, "bert": {"layers": 2},
         "vit_tiny": {"layers": 2}, "dinov2_small": {"layers": 2, "registers": 2}, "bit_resnet50": {},
         "swin_tiny": {"depths": (1, 1), "heads": (1, 2)}, "gpt2": {"layers": 2}, "convnext_tiny": {},
         "clip_image_b32": {"layers": 2}, "densenet121": {}}


def learned(backbone):
    return {path for path in leaf_shapes(backbone) if path.rpartition("/")[2] not in ("mean", "var")}


@pytest.mark.parametrize("kind", SMALL)
def test_blocks_are_what_cutting_the_network_behind_their_tap_adds(kind):
    backbone = build_backbone(Component(kind=kind, **SMALL[kind]))
    blocks = parameter_blocks(backbone)
    assert [block.tap for block in blocks] == sorted({b.tap for b in blocks}, key=backbone.tap_names.index)
    modules = [module for block in blocks for module in block.modules]
    assert len(modules) == len(set(modules)) and set(modules) == {path.split("/")[0] for path in learned(backbone)}
    before = set()
    for block in blocks[:-1]:
        cut = {path.split("/")[0] for path in learned(build_backbone(
            Component(kind=kind, until=block.tap, **SMALL[kind])))}
        assert cut - before == set(block.modules), block
        before = cut


def test_norms_and_nameless_parts_belong_where_they_are_computed():
    vit = parameter_blocks(build_backbone(Component(kind="vit_tiny", layers=2)))
    assert [block.tap for block in vit] == ["embeddings", "block0", "block1"]
    assert "patches" in vit[0].modules and vit[-1].modules == ("block1", "norm")
    resnet = parameter_blocks(build_backbone(Component(kind="resnet18")))
    assert resnet[0].tap == "stem" and set(resnet[0].modules) == {"conv1", "bn1"}
    cut = parameter_blocks(build_backbone(Component(kind="resnet18", until="stage2")))
    assert cut == resnet[:3]


def test_a_block_s_pattern_is_a_rule_for_its_parameters():
    import re
    block = parameter_blocks(build_backbone(Component(kind="resnet18")))[0]
    assert re.fullmatch(block.pattern(), "backbone/bn1/scale") and re.fullmatch(block.pattern("b"), "b/conv1/kernel")
    assert not re.fullmatch(block.pattern(), "backbone/conv10/kernel")
