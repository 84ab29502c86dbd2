"""Augmentations: the same names, parameters and effects on device and host; ranges; keys; mixing as algebra."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from transfer_jax.core.spec import Component
from transfer_jax.data.augment import (
    AUGMENTATIONS,
    BATCH_AUGMENTATIONS,
    HOST_AUGMENTATIONS,
    batch,
    build_plan,
    device,
    geometry,
    host,
)

KEY = jax.random.key(0)


def picture(height=24, width=20, channels=3):
    """A smooth image in [0, 1] whose mask marks the part right of a slanted line."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    image = np.stack([x, y, (x + y) / 2], -1)[..., :channels].astype(np.float32)
    return image, (x + 0.3 * y > 0.6).astype(np.int32)


class Fixed:
    """Stands in for a numpy Generator and for a key's draw: gives the same uniforms to host and device."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def random(self, shape=None, dtype=np.float64):
        return self.values.astype(dtype) if shape is not None else float(self.values)


def both(name, values, monkeypatch, image, mask, **arguments):
    """Device and host results of augmentation `name` for given uniforms; images float in [0, 1]."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(): jnp.asarray(values, jnp.float32))
    there, there_mask = AUGMENTATIONS[name](jnp.asarray(image), jnp.asarray(mask), KEY, **arguments)
    here, here_mask = HOST_AUGMENTATIONS[name](np.rint(image * 255).astype(np.uint8), mask, Fixed(values), **arguments)
    return (np.asarray(there), np.asarray(there_mask)), (here / 255.0, here_mask)


def test_device_and_host_offer_the_same_parameters():
    assert AUGMENTATIONS.keys() == HOST_AUGMENTATIONS.keys()
    for name in AUGMENTATIONS:
        one, other = ([parameter for parameter in inspect.signature(registry[name]).parameters.values()
                       if parameter.kind is parameter.KEYWORD_ONLY] for registry in (AUGMENTATIONS, HOST_AUGMENTATIONS))
        assert one == other and one, name


@pytest.mark.parametrize("name,channels", [*((name, 3) for name in AUGMENTATIONS), ("colour_jitter", 1), ("scale", 1)])
def test_shapes_ranges_and_types_are_kept(name, channels):
    image, mask = picture(channels=channels)
    there, there_mask = jax.jit(AUGMENTATIONS[name])(jnp.asarray(image), jnp.asarray(mask), KEY)
    here, here_mask = HOST_AUGMENTATIONS[name]((image * 255).astype(np.uint8), mask, np.random.default_rng(0))
    for result, result_mask in ((there, there_mask), (here, here_mask)):
        assert result.shape == image.shape and result_mask.shape == mask.shape
        assert set(np.unique(result_mask)) <= {0, 1} and np.issubdtype(result_mask.dtype, np.signedinteger)
    assert there.dtype == jnp.float32 and here.dtype == np.uint8
    assert float(there.min()) >= -1e-6 and float(there.max()) <= 1 + 1e-6
    assert AUGMENTATIONS[name](jnp.asarray(image), None, KEY)[1] is None


@pytest.mark.parametrize("name,values,arguments,tolerance", [
    ("random_resized_crop", [0.5, 0.3, 0.2, 0.9], {}, 0.02),
    ("crop", [0.1, 0.8], {"padding": 3, "fill": 0.25}, 0.003),
    ("flip", 0.2, {}, 0.003),
    ("flip", 0.7, {}, 0.003),
    ("scale", 0.9, {}, 0.01),
    ("rotation", 0.8, {"degrees": 30.0}, 0.01),
    ("rotation", 0.1, {"degrees": 90.0}, 0.01),
    ("colour_jitter", [0.9, 0.2, 0.7], {}, 0.01),
    ("cutout", [0.4, 0.9], {}, 0.003),
])
def test_device_and_host_do_the_same_for_the_same_random_numbers(name, values, arguments, tolerance, monkeypatch):
    image, mask = picture()
    (there, there_mask), (here, here_mask) = both(name, values, monkeypatch, image, mask, **arguments)
    inner = (slice(4, -4), slice(4, -4)) if name == "rotation" else (slice(None), slice(None))
    inside = there[inner] > 0 if name == "rotation" else np.ones(1, bool)
    assert np.abs((there - here)[inner] * inside).max() <= tolerance
    assert (there_mask != here_mask).mean() < 0.06


def test_flip_and_crop_are_exact(monkeypatch):
    image, mask = picture()
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(): jnp.zeros(shape))
    turned, turned_mask = device.flip(jnp.asarray(image), jnp.asarray(mask), KEY)
    assert (turned == image[:, ::-1]).all() and (turned_mask == mask[:, ::-1]).all()
    moved, moved_mask = device.crop(jnp.asarray(image), jnp.asarray(mask), KEY, padding=2, fill=0.5, mask_fill=9)
    np.testing.assert_allclose(moved, np.pad(image, ((2, 0), (2, 0), (0, 0)), constant_values=0.5)[:-2, :-2], atol=1e-6)
    assert (moved_mask == np.pad(mask, ((2, 0), (2, 0)), constant_values=9)[:-2, :-2]).all()


def test_a_quarter_turn_is_numpy_s(monkeypatch):
    image = np.random.default_rng(0).random((9, 9, 3)).astype(np.float32)
    mask = np.random.default_rng(1).integers(0, 5, (9, 9))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(): jnp.ones(shape))
    turned, turned_mask = device.rotation(jnp.asarray(image), jnp.asarray(mask), KEY, degrees=90.0)
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)
    assert (turned_mask == np.rot90(mask)).all()


def test_identity_settings_change_nothing():
    image, mask = picture()
    for name, arguments in [("random_resized_crop", {"scale": (1.0, 1.0), "ratio": (20 / 24, 20 / 24)}),
                            ("crop", {"padding": 0}), ("flip", {"probability": 0.0}), ("rotation", {"degrees": 0.0}),
                            ("scale", {"low": 1.0, "high": 1.0}), ("noise", {"std": 0.0}), ("cutout", {"size": 0.0}),
                            ("colour_jitter", {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0})]:
        result, result_mask = AUGMENTATIONS[name](jnp.asarray(image), jnp.asarray(mask), KEY, **arguments)
        np.testing.assert_allclose(result, image, atol=2e-6, err_msg=name)
        assert (result_mask == mask).all(), name


def test_windows_have_the_asked_area_and_aspect():
    u = np.random.default_rng(0).random((4, 5000))
    top, left, tall, wide = geometry.crop_window(u, 100, 100, (0.2, 0.5), (0.8, 1.25), np)
    assert min(top.min(), left.min()) >= 0 and max((top + tall).max(), (left + wide).max()) <= 100 + 1e-9
    assert stats.kstest(tall * wide / 1e4, stats.uniform(0.2, 0.3).cdf).pvalue > 1e-3
    assert stats.kstest(np.log(wide / tall), stats.uniform(np.log(0.8), 2 * np.log(1.25)).cdf).pvalue > 1e-3


def test_noise_has_the_asked_standard_deviation():
    image = np.full((60, 60, 3), 0.5, np.float32)
    there = np.asarray(device.noise(jnp.asarray(image), None, KEY, std=0.1)[0]) - 0.5
    here = host.noise((image * 255).astype(np.uint8), None, np.random.default_rng(0), std=0.1)[0] / 255 - 0.5
    assert abs(there.std() - 0.1) < 0.003 and abs(here.std() - 0.1) < 0.003


def test_an_example_s_draw_depends_on_its_slot_alone():
    plan = build_plan((Component(kind="crop"), Component(kind="flip")), "s")
    image = jnp.asarray(np.random.default_rng(0).random((6, 8, 8, 3), dtype=np.float32))
    whole = plan.apply({"image": image}, KEY, jnp.arange(6), 10, True)["image"]
    part = plan.apply({"image": image[3:]}, KEY, jnp.arange(3, 6), 10, True)["image"]
    np.testing.assert_allclose(whole[3:], part, atol=1e-6)
    same = plan.apply({"image": jnp.stack([image[0]] * 6)}, KEY, jnp.arange(6), 10, True)["image"]
    assert len(np.unique(np.asarray(same).reshape(6, -1), axis=0)) == 6


def labelled(count=8):
    generator = np.random.default_rng(0)
    return {"image": jnp.asarray(generator.random((count, 6, 6, 3), dtype=np.float32)),
            "label": jnp.arange(count) % 3}


def test_mixup_is_the_same_convex_combination_of_images_and_labels():
    before = labelled()
    after = batch.mixup(before, KEY, 3, alpha=0.4)
    one_hot = np.eye(3)[np.asarray(before["label"])]
    image = np.asarray(before["image"])
    for row in range(8):
        own, other = image[row], image[row - 1]
        share = ((np.asarray(after["image"][row]) - other) * (own - other)).sum() / ((own - other) ** 2).sum()
        assert -1e-5 <= share <= 1 + 1e-5
        expected = share * one_hot[row] + (1 - share) * one_hot[row - 1]
        np.testing.assert_allclose(after["label_probs"][row], expected, atol=1e-4)
    np.testing.assert_allclose(after["label_probs"].sum(1), 1, atol=1e-6)
    assert (after["label"] == before["label"]).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = np.asarray(batch._shares(KEY, 20000, alpha, 1.0))
    points = np.linspace(0.01, 0.99, 50)  # float32 cannot tell values beyond from 0 and 1
    below = (shares[:, None] < points).mean(0)
    assert np.abs(below - stats.beta(alpha, alpha).cdf(points)).max() < 4 * 0.5 / np.sqrt(20000)
    assert (np.asarray(batch._shares(KEY, 20000, alpha, 0.25)) == 1).mean() == pytest.approx(0.75, abs=0.02)


def test_cutmix_counts_the_pixels_it_took():
    before = labelled()
    before["mask"] = jnp.broadcast_to(jnp.arange(8)[:, None, None], (8, 6, 6))
    after = batch.cutmix(before, KEY, 3)
    for row in range(8):
        own = np.asarray(after["mask"][row]) == row
        assert ((np.asarray(after["mask"][row]) == (row - 1) % 8) | own).all()
        assert (np.asarray(after["image"][row])[own] == np.asarray(before["image"][row])[own]).all()
        assert (np.asarray(after["image"][row])[~own] == np.asarray(before["image"][row - 1])[~own]).all()
        expected = own.mean() * np.eye(3)[row % 3] + (1 - own.mean()) * np.eye(3)[(row - 1) % 8 % 3]
        np.testing.assert_allclose(after["label_probs"][row], expected, atol=1e-6)


def test_mixing_twice_mixes_the_mixture_and_unlabelled_batches_stay_so():
    once = batch.mixup(labelled(), KEY, 3)
    assert batch.cutmix(once, jax.random.key(1), 3)["label_probs"].sum() == pytest.approx(8)
    for function in BATCH_AUGMENTATIONS.values():
        assert function({"image": labelled()["image"]}, KEY, 3).keys() == {"image"}
