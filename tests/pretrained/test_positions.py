"""Positions of another size: what holds of every method, and the functions of the originals."""

import math

import numpy as np
import pytest
from scipy import ndimage

from tests.parity.oracle import framework
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import Options, leaf_shapes, to_foreign, to_ours
from transfer_jax.pretrained.positions import (
    bicubic,
    bicubic_align_corners,
    bicubic_antialias,
    bilinear_align_corners,
    bilinear_geometric,
    of_square,
)

METHODS = [bicubic, bicubic_antialias, bicubic_align_corners, bilinear_align_corners, bilinear_geometric]
SIZES = [(14, 24, 24), (14, 5, 5), (7, 12, 9), (3, 1, 2), (13, 7, 7)]  # old side, new rows, new columns
TINY = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}


def grid(side, channels=3):
    return np.random.default_rng(side).normal(size=(side, side, channels)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_constants_stay_and_the_same_size_changes_nothing(method):
    x = grid(7)
    assert np.array_equal(method(x, x.shape), x)
    for side, rows, columns in [(13, 23, 7), (7, 1, 3)] if method is bilinear_geometric else SIZES:
        y = method(np.full((side, side, 2), 3, np.float32), (rows, columns, 2))
        assert y.dtype == np.float32 and y.shape == (rows, columns, 2)
        np.testing.assert_allclose(y, 3, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_rows_and_columns_are_treated_alike_and_a_plain_slope_stays_one(method):
    x = grid(9)
    np.testing.assert_allclose(method(x.swapaxes(0, 1), (5, 13, 3)), method(x, (13, 5, 3)).swapaxes(0, 1), atol=1e-6)
    slope = np.broadcast_to(np.arange(9, dtype=np.float32)[:, None, None], (9, 9, 1))
    up = method(slope, (21, 9, 1))[:, 0, 0]
    assert (np.diff(up) > 0).sum() >= 17
    np.testing.assert_allclose(up + up[::-1], 8, atol=1e-5)  # the middle stays the middle
    if method in (bicubic_align_corners, bilinear_align_corners):
        np.testing.assert_allclose(up[[0, -1]], [0, 8], atol=1e-6)
    if method is bilinear_align_corners:
        np.testing.assert_allclose(up, np.linspace(0, 8, 21), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_the_functions_of_torch(size, torch):
    x, shape = grid(size[0]), (*size[1:], 3)

    def interpolated(**arguments):
        y = torch.nn.functional.interpolate(torch.tensor(x).double().permute(2, 0, 1)[None], size=size[1:], **arguments)
        return y[0].permute(1, 2, 0).numpy()

    for method, arguments in ((bicubic, {"mode": "bicubic", "align_corners": False}),
                              (bicubic_align_corners, {"mode": "bicubic", "align_corners": True}),
                              (bilinear_align_corners, {"mode": "bilinear", "align_corners": True}),
                              (bicubic_antialias, {"mode": "bicubic", "antialias": True})):
        np.testing.assert_allclose(method(x, shape), interpolated(**arguments), atol=1e-6, err_msg=method.__name__)


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_zoom_of_scipy(size):
    x = grid(size[0])
    zoomed = ndimage.zoom(x.astype(np.float64), (size[1] / size[0], size[2] / size[0], 1), order=1)
    np.testing.assert_allclose(bilinear_align_corners(x, (*size[1:], 3)), zoomed, atol=1e-6)


def test_equal_to_the_functions_of_timm_and_torchvision(torch):
    layers = framework("timm").layers
    x, table = grid(14), grid(13)
    positions = np.concatenate([np.ones((1, 1, 3), np.float32), x.reshape(1, -1, 3)], 1)
    theirs = layers.resample_abs_pos_embed(torch.tensor(positions), [9, 12], verbose=False)[0].numpy()
    np.testing.assert_allclose(bicubic_antialias(x, (9, 12, 3)).reshape(-1, 3), theirs[1:], atol=1e-5)
    for window in (4, 7, 12, 16):
        side = 2 * window - 1
        wanted = layers.resize_rel_pos_bias_table(torch.tensor(table.reshape(-1, 3)), (window, window), (side**2, 3))
        np.testing.assert_allclose(bilinear_geometric(table, (side, side, 3)).reshape(-1, 3), wanted, atol=1e-5)
    resize = framework("torchvision").models.vision_transformer.interpolate_embeddings
    theirs = resize(80, 16, {"encoder.pos_embedding": torch.tensor(positions)})["encoder.pos_embedding"][0].numpy()
    np.testing.assert_allclose(of_square(bicubic_align_corners, 1)(positions[0], (26, 3)), theirs, atol=1e-5)


@pytest.mark.parametrize(("model", "tokens", "method"), [("ViT", 1, bicubic), ("DeiT", 2, bicubic),
                                                         ("Dinov2", 1, bicubic),
                                                         ("Dinov2WithRegisters", 1, bicubic_antialias)])
def test_equal_to_transformers(model, tokens, method, torch):
    transformers = framework("transformers")
    config = getattr(transformers, f"{model}Config")(hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
                                                     patch_size=16, image_size=112)
    embeddings = getattr(transformers, f"{model}Model")(config).embeddings
    rows = np.random.default_rng(0).normal(size=(1, tokens + 49, 12)).astype(np.float32)
    embeddings.position_embeddings.data = torch.tensor(rows)
    with torch.no_grad():
        theirs = embeddings.interpolate_pos_encoding(torch.zeros(1, tokens + 5 * 9, 12), 80, 144)[0].numpy()
    ours = method(rows[0, tokens:].reshape(7, 7, 12), (5, 9, 12))
    np.testing.assert_allclose(ours.reshape(-1, 12), theirs[tokens:], atol=1e-5)


@pytest.mark.parametrize(("layout", "method"), [("torchvision", bicubic_align_corners), ("timm", bicubic_antialias),
                                                ("transformers", bicubic), ("vit_jax", bilinear_align_corners)])
def test_a_source_of_another_size_is_resized_as_its_framework_does(layout, method):
    backbone = build_backbone(Component(kind="vit_tiny", patch=8, **TINY))
    square, wide = (np.zeros((1, *size, 3), np.float32) for size in ((24, 24), (16, 40)))
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=leaf.shape).astype(np.float32)
              for path, leaf in leaf_shapes(backbone, None, square).items()}
    found, report = to_ours(to_foreign(leaves, backbone, layout), backbone, layout, None, wide)
    report.check()
    assert np.array_equal(found["grid_positions"], method(leaves["grid_positions"], (2, 5, 8)))
    assert np.array_equal(found["token_positions"], leaves["token_positions"])
    entry = next(entry for entry in report.entries if entry.ours == "grid_positions")
    assert entry.status == "adapted" and method.__name__ in entry.note
    # A file with our own wide grid comes back as it is; its rows are no square.
    again, report = to_ours(to_foreign(found, backbone, layout), backbone, layout, None, wide)
    report.check()
    assert np.array_equal(again["grid_positions"], found["grid_positions"])
    with pytest.raises(UserError, match="10 patches, which is neither a square nor the model's grid of 3 x 3"):
        to_ours(to_foreign(found, backbone, layout), backbone, layout, None, square)


def test_windows_of_another_size():
    sizes = {"width": 8, "depths": (1, 1), "heads": (2, 2)}
    seven, four = (build_backbone(Component(kind="swin_tiny", window=window, **sizes)) for window in (7, 4))
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaf_shapes(seven).items()}
    path = "stage1/block0/attention/relative_positions"
    for layout, method in (("torchvision", bicubic), ("timm", bilinear_geometric), ("transformers", bicubic)):
        found, report = to_ours(to_foreign(leaves, seven, layout), four, layout, None, None, Options())
        report.check()
        assert np.array_equal(found[path], method(leaves[path], (7, 7, 2)))


@pytest.mark.parametrize("layout", ["transformers", "timm", "openai"])
def test_clip_of_another_size(layout):
    backbone = build_backbone(Component(kind="clip_image_b32", patch=8, projection=None, **TINY))
    small, large, wide = (np.zeros((1, *size, 3), np.float32) for size in ((16, 16), (32, 32), (16, 24)))
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=leaf.shape).astype(np.float32)
              for path, leaf in leaf_shapes(backbone, None, small).items()}
    written = to_foreign(leaves, backbone, layout)
    found = to_ours(written, backbone, layout, None, large)[0]["position_embedding"]
    method = bicubic if layout == "transformers" else bicubic_antialias
    wanted = method(leaves["position_embedding"][1:].reshape(2, 2, 8), (4, 4, 8)).reshape(16, 8)
    assert np.array_equal(found, np.concatenate([leaves["position_embedding"][:1], wanted]))
    with pytest.raises(UserError, match="6 positions of patches are no square"):
        to_ours(written, backbone, layout, None, wide)


def test_another_width_is_another_model():
    with pytest.raises(UserError, match="3 channels, but the model 4"):
        bicubic(grid(4), (2, 2, 4))


def test_the_series_of_distances_reaches_the_new_window():
    """Place i of the old table lies where the series puts it: a table of places comes back as the distances."""
    places = np.arange(-6, 7, dtype=np.float32)
    resized = bilinear_geometric(np.broadcast_to(places[:, None, None], (13, 13, 1)), (23, 13, 1))[:, 6, 0]
    assert math.isclose(resized[11], 0, abs_tol=1e-6) and np.allclose(resized[[0, -1]], [-6, 6], atol=1e-3)
    assert (np.diff(resized) < 1 + 1e-6).all() and math.isclose(resized[12], 1, abs_tol=1e-5)
