"""Swin against torchvision, timm and transformers."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity import transformers_original
from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework
from transfer_jax.models.swin import SIZES
from transfer_jax.models.swin import Swin as Backbone
from transfer_jax.pretrained.rules import swin

ODD = 76  # maps of 19, 10, 5 and 3: every one of them is filled, and merging too
SIDE, WINDOW = 128, 4  # all maps are multiples of the window, where the three do the same


def _torchvision(size: str) -> Any:
    return framework("torchvision").models.get_model(f"swin_{size[0]}", num_classes=CLASSES)


def _timm(size: str) -> Any:
    return framework("timm").create_model(f"swin_{size}_patch4_window7_224", num_classes=CLASSES, img_size=SIDE,
                                          window_size=WINDOW)


def _transformers(size: str) -> Any:
    transformers, sides = framework("transformers"), SIZES[size]
    return transformers.SwinForImageClassification(transformers.SwinConfig(
        embed_dim=sides["width"], depths=list(sides["depths"]), num_heads=list(sides["heads"]), image_size=SIDE,
        window_size=WINDOW, num_labels=CLASSES))


def _as_map(value: Any) -> Any:
    """Channels are last already; rows of tokens become square maps."""
    side = round(value.shape[1] ** 0.5)
    return value if value.ndim == 4 else value.reshape(len(value), side, side, -1)


def _case(size: str, layout: str, original: Any, side: int, **more: Any) -> Case:
    modules = swin.LAYOUTS[layout](Backbone(**SIZES[size])).modules
    return Case(f"swin_{size}", layout, functools.partial(original, size),
                {tap: (name, _as_map) for tap, name in modules.items()},
                ("patches/kernel", "stage3/block1/attention/relative_positions", "head/dense/kernel"), size=side,
                tolerance=1e-4, smallest=size == "tiny", **more)


CASES = [
    *(_case(size, "torchvision", _torchvision, ODD) for size in SIZES),
    *(_case(size, "timm", _timm, SIDE, arguments={"window": WINDOW}) for size in SIZES),
    *(_case(size, "transformers", _transformers, SIDE, arguments={"window": WINDOW}, load=transformers_original.load,
            save=transformers_original.save) for size in SIZES),
]
