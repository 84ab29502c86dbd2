"""Augmentations by name: per example in a device and a host form, and per batch."""

from __future__ import annotations

from transfer_jax.core.spec import Component
from transfer_jax.data.augment import batch, device, host
from transfer_jax.data.augment.plan import Plan, make_plan

AUGMENTATIONS = {
    "random_resized_crop": device.random_resized_crop,
    "crop": device.crop,
    "flip": device.flip,
    "scale": device.scale,
    "rotation": device.rotation,
    "colour_jitter": device.colour_jitter,
    "noise": device.noise,
    "cutout": device.cutout,
}
HOST_AUGMENTATIONS = {
    "random_resized_crop": host.random_resized_crop,
    "crop": host.crop,
    "flip": host.flip,
    "scale": host.scale,
    "rotation": host.rotation,
    "colour_jitter": host.colour_jitter,
    "noise": host.noise,
    "cutout": host.cutout,
}
BATCH_AUGMENTATIONS = {"mixup": batch.mixup, "cutmix": batch.cutmix}


def build_plan(components: tuple[Component, ...], where: str, points: tuple[str, ...] = ()) -> Plan:
    """The checked augmentations of a stream, in order; `points`: names of its keypoints."""
    return make_plan(AUGMENTATIONS, HOST_AUGMENTATIONS, BATCH_AUGMENTATIONS, components, where, points)
