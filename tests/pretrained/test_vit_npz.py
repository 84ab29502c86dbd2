"""The archives of vit_jax and big_vision: round trips, wrappers, and timm's own reader of them as an oracle."""

import jax
import numpy as np
import pytest

from tests.parity.harness import draw, variables_of
from tests.parity.oracle import framework
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import (
    HEAD,
    detect_layout,
    leaf_shapes,
    published_head,
    source_classes,
    to_foreign,
    to_ours,
)
from transfer_jax.pretrained.formats import read_tensors, write_tensors

TINY = {"width": 24, "layers": 3, "heads": 2, "mlp_width": 48, "patch": 8}
SIDE, CLASSES = 32, 5
FORMS = {"token": {"class_position": False}, "mean": {"pool": "mean", "class_token": False},
         "map": {"pool": "map", "class_token": False}}
CASES = [("vit_jax", {}), *((layout, FORMS[form]) for layout in ("big_vision", "big_vision_scan") for form in FORMS)]
EXAMPLE = np.zeros((1, SIDE, SIDE, 3), np.float32)


def tiny(**arguments):
    return build_backbone(Component(kind="vit_tiny", **TINY, **arguments))


def drawn(backbone):
    """A head for five classes and seeded leaves of both."""
    head = published_head(backbone, CLASSES)
    return head, {path: draw(path, leaf.shape) for path, leaf in leaf_shapes(backbone, head, EXAMPLE).items()}


def run(backbone, head, leaves, image):
    taps = jax.jit(backbone.apply)(variables_of(leaves), image)
    return taps, head.apply(variables_of(leaves, HEAD), taps)


@pytest.mark.parametrize(("layout", "arguments"), CASES)
def test_there_and_back(layout, arguments, tmp_path):
    backbone = tiny(**arguments)
    head, leaves = drawn(backbone)
    write_tensors(tmp_path / "model.npz", to_foreign(leaves, backbone, layout))
    tensors = read_tensors(tmp_path / "model.npz").tensors
    assert detect_layout(tensors, backbone) == layout and source_classes(tensors, backbone, layout) == CLASSES
    back, report = to_ours(tensors, backbone, layout, head, EXAMPLE)
    report.check()
    assert back.keys() == leaves.keys()
    assert all(np.array_equal(back[path], leaf) for path, leaf in leaves.items())


def test_names_and_shapes_are_those_of_the_archives():
    backbone = tiny()
    written = to_foreign(drawn(backbone)[1], backbone, "vit_jax")
    block = "Transformer/encoderblock_2/"
    assert {name: written[name].shape for name in (
        "cls", "embedding/kernel", "Transformer/posembed_input/pos_embedding", "Transformer/encoder_norm/scale",
        f"{block}LayerNorm_2/bias", f"{block}MultiHeadDotProductAttention_1/query/kernel",
        f"{block}MultiHeadDotProductAttention_1/key/bias", f"{block}MultiHeadDotProductAttention_1/out/kernel",
        f"{block}MlpBlock_3/Dense_1/kernel", "head/kernel")} == {
        "cls": (1, 1, 24), "embedding/kernel": (8, 8, 3, 24), "Transformer/posembed_input/pos_embedding": (1, 17, 24),
        "Transformer/encoder_norm/scale": (24,), f"{block}LayerNorm_2/bias": (24,),
        f"{block}MultiHeadDotProductAttention_1/query/kernel": (24, 2, 12),
        f"{block}MultiHeadDotProductAttention_1/key/bias": (2, 12),
        f"{block}MultiHeadDotProductAttention_1/out/kernel": (2, 12, 24),
        f"{block}MlpBlock_3/Dense_1/kernel": (48, 24), "head/kernel": (24, 5)}
    backbone = tiny(**FORMS["map"])
    written = to_foreign(drawn(backbone)[1], backbone, "big_vision_scan")
    assert written["params/pos_embedding"].shape == (1, 16, 24)
    assert written["params/MAPHead_0/probe"].shape == (1, 1, 24)
    stack = "params/Transformer/encoderblock/"
    assert written[f"{stack}MultiHeadDotProductAttention_0/value/kernel"].shape == (3, 24, 2, 12)
    assert written[f"{stack}MlpBlock_0/Dense_0/bias"].shape == (3, 48)
    assert len([name for name in written if name.startswith(stack)]) == 16


@pytest.mark.parametrize("wrapper", ["opt/target/", "params/", ""])
def test_wrappers_are_taken_off(wrapper):
    for layout, arguments in CASES:
        backbone = tiny(**arguments)
        head, leaves = drawn(backbone)
        tensors = {wrapper + name.removeprefix("params/"): tensor
                   for name, tensor in to_foreign(leaves, backbone, layout).items()}
        back, report = to_ours(tensors, backbone, layout, head, EXAMPLE)
        report.check()
        assert all(np.array_equal(back[path], leaf) for path, leaf in leaves.items())


@pytest.mark.parametrize(("layout", "arguments"), CASES)
def test_timm_reads_what_we_write(layout, arguments, tmp_path, torch):
    """Logits and tokens of timm's own reader of these archives are ours."""
    timm = framework("timm")
    backbone = tiny(**arguments)
    head, leaves = drawn(backbone)
    write_tensors(tmp_path / "model.npz", to_foreign(leaves, backbone, layout))
    pool = arguments.get("pool", "token")
    model = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=24, depth=3, num_heads=2, mlp_ratio=2, num_classes=CLASSES,
        global_pool={"mean": "avg"}.get(pool, pool), class_token=arguments.get("class_token", True), fc_norm=False,
        no_embed_class=not arguments.get("class_position", True)).eval()
    model.load_pretrained(str(tmp_path / "model.npz"))
    image = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    with torch.no_grad():
        tokens = model.forward_features(torch.tensor(image.transpose(0, 3, 1, 2)))
        logits = model.forward_head(tokens)
    taps, ours = run(backbone, head, leaves, image)
    np.testing.assert_allclose(taps["tokens"], tokens.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4 * np.abs(logits.numpy()).max())


def test_a_representation_layer_is_not_lost_without_a_word():
    """The first archives of ImageNet-21k have a dense layer between the class token and the classifier."""
    backbone = tiny()
    head, leaves = drawn(backbone)
    tensors = to_foreign(leaves, backbone, "vit_jax")
    tensors |= {"pre_logits/kernel": np.zeros((24, 24), np.float32), "pre_logits/bias": np.zeros(24, np.float32)}
    with pytest.raises(UserError, match="pre_logits"):
        to_ours(tensors, backbone, "vit_jax", head, EXAMPLE)[1].check()
