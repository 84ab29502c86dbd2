"""Decoding and preprocessing: odd pixel formats, EXIF, damage, resizing, one description for all."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.parity.oracle import framework
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.data import StreamSpec, from_arrays, open_stream, preprocess_image, preprocessing
from transfer_jax.data.decoding import UnreadableImage, decode_image, decode_mask, resize, resize_mask, set_channels

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(picture, form="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def test_every_pixel_format_becomes_one_or_three_bytes():
    rgb, grey = Image.fromarray(PIXELS), Image.fromarray(PIXELS[..., 0])
    assert (decode_image(encoded(rgb)) == PIXELS).all()
    assert (decode_image(encoded(grey)) == PIXELS[..., :1]).all()
    rgba = np.concatenate([PIXELS, np.full((6, 8, 1), 99, np.uint8)], -1)
    assert (decode_image(encoded(Image.fromarray(rgba))) == PIXELS).all()
    assert (decode_image(encoded(Image.merge("LA", [grey, grey]))) == PIXELS[..., :1]).all()
    assert decode_image(encoded(rgb.convert("1"))).shape == (6, 8, 1)
    palette = rgb.convert("P")
    assert (decode_image(encoded(palette)) == np.asarray(palette.convert("RGB"))).all()
    assert decode_image(encoded(rgb.convert("CMYK"), "JPEG")).shape == (6, 8, 3)
    deep = Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 7)
    assert (decode_image(encoded(deep)) == PIXELS[..., :1]).all()
    assert (decode_image(encoded(deep, "TIFF")) == PIXELS[..., :1]).all()


def test_exif_orientation_is_applied():
    turned = Image.fromarray(PIXELS)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    plain = decode_image(encoded(turned, "JPEG", quality=100))
    assert (decode_image(encoded(turned, "JPEG", exif=exif, quality=100)) == np.rot90(plain, 3)).all()


@pytest.mark.parametrize("damage", ["truncated jpeg", "truncated png", "text", "empty", "folder", "absent"])
def test_damaged_files_are_named(tmp_path, damage):
    file = tmp_path / "x.png"
    if damage == "folder":
        file.mkdir()
    elif damage.startswith("truncated"):
        large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        file.write_bytes(encoded(large, damage.split()[1])[:900])
    elif damage != "absent":
        file.write_text("text" if damage == "text" else "")
    with pytest.raises(UnreadableImage, match="x.png") as caught:
        decode_image(file)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    if damage == "text":
        with pytest.raises(UnreadableImage, match=r"the image row 7 of my set"):
            decode_image(file.read_bytes(), "row 7 of my set")


def test_masks():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (decode_mask(encoded(Image.fromarray(mask))) == mask).all()
    with pytest.raises(UnreadableImage, match="has 3 channels"):
        decode_mask(encoded(Image.fromarray(PIXELS)))
    larger = resize_mask(mask.astype(np.int32), (6, 8))
    assert (larger == mask.repeat(2, 0).repeat(2, 1)).all() and larger.dtype == np.int32


def test_resizing():
    constant = np.full((7, 9, 1), 55, np.uint8)
    assert (resize(constant, (4, 5)) == 55).all()
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert (resize(wide, (4, 4), fit="crop") == 200).all()
    assert 0 < resize(wide, (4, 4)).mean() < 200
    mask = (wide[..., 0] > 0).astype(np.int32)
    assert (resize_mask(mask, (4, 4), "crop") == 1).all()
    assert resize(PIXELS, (6, 8)) is PIXELS


def test_resizing_before_the_crop():
    image = np.random.default_rng(1).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    shorter = Image.fromarray(image).resize((36, 24), Image.Resampling.BICUBIC)
    assert (resize(image, (20, 20), "bicubic", "crop", 24) == np.asarray(shorter)[2:22, 8:28]).all()
    both = Image.fromarray(image).resize((24, 28), Image.Resampling.BILINEAR)
    assert (resize(image, (20, 20), fit="crop", first=[28, 24]) == np.asarray(both)[4:24, 2:22]).all()
    assert (resize(image, (20, 20), fit="crop", first=30) == image[5:25, 12:32]).all()  # (45 - 20) / 2 = 12.5
    mask = image[..., 0].astype(np.int32)
    assert (resize_mask(mask, (20, 20), "crop", 30) == mask[5:25, 12:32]).all()


@pytest.mark.parametrize(("resized", "crop"), [((232, 232), 224), ((37, 50), 32), ((24, 24), 24)])
@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (33, 33)])
def test_the_recipe_of_torchvision_is_reproduced(resized, crop, shape):
    functional = framework("torchvision").transforms.functional
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    first = resized[0] if resized[0] == resized[1] else resized
    modes = functional.InterpolationMode
    for name in ("bilinear", "bicubic"):
        picture = functional.resize(Image.fromarray(image), first, modes(name))
        theirs = np.asarray(functional.center_crop(picture, crop))
        assert (resize(image, (crop, crop), name, "crop", first) == theirs).all()


def test_channels():
    assert (set_channels(PIXELS[..., :1], 3) == np.repeat(PIXELS[..., :1], 3, axis=2)).all()
    luminance = PIXELS @ [0.299, 0.587, 0.114]
    assert np.abs(set_channels(PIXELS, 1)[..., 0] - luminance).max() <= 1
    with pytest.raises(UserError, match="my.tif has 5 channels"):
        set_channels(np.zeros((2, 2, 5), np.uint8), 3, "my.tif")


@pytest.mark.parametrize("storage", ["device", "host"])
def test_prediction_sees_what_evaluation_sees(storage):
    spec = build(StreamSpec, {"data": {"kind": "arrays"}, "batch_size": 2, "image_size": (5, 4), "channels": 1,
                              "mean": 0.4, "std": 0.3, "fit": "crop", "interpolation": "bicubic", "storage": storage})
    opened = open_stream("s", spec, (0,), from_arrays({"image": PIXELS[None].repeat(2, 0)}))
    if storage == "device":
        feed = {**opened.feed(), "rows": opened.feed()["rows"][0]}
        batch = opened.evaluation_batch(feed, 0, 2)
    else:
        fed = next(opened.evaluation_batches(2))
        batch = opened.evaluation_batch({key: value[0] for key, value in fed.items()})
    description = json.loads(json.dumps(preprocessing(spec)))
    assert opened.description == description
    alone = preprocess_image(encoded(Image.fromarray(PIXELS)), description)
    assert alone.shape == (5, 4, 1) and alone.dtype == np.float32
    np.testing.assert_allclose(batch["image"][1], alone, atol=1e-6)
