"""A device stream that gives what the frozen layers of a network make of its images, computed once, in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from transfer_jax.data.device import DeviceStream, Feed
from transfer_jax.data.stream import Batch

TAP = "tap/"  # the batch entry of a tap


@dataclasses.dataclass
class CachedStream:
    """Draws the batches of `stream` in its order, with entries 'tap/<name>' instead of the image.

    Attributes:
        stream: the stream whose images went through the network; without random augmentation.
        cut: the last tap that is known. image_size: height and width of the images.
        goes_on: whether something of the network is left behind it.
    """

    stream: DeviceStream
    cut: str
    image_size: tuple[int, int]
    goes_on: bool

    storage = "device"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)  # size, spec, name, example_shapes ... are those of the stream

    def feed(self, feed: Feed, taps: Mapping[str, Any]) -> Feed:
        """The stream's `feed` with taps [S, n, ...], in the order of its rows, in place of the images."""
        kept = {key: value for key, value in feed["data"].items() if key != "image"}
        return {**feed, "data": kept, "taps": dict(taps)}

    def feed_axes(self) -> dict[str, int | None]:
        return {**self.stream.feed_axes(), "taps": 0}

    def batch(self, feed: Feed, seed: Any, step: Any) -> Batch:
        """The training batch of `step` of one member, as `DeviceStream.batch` draws it. Traced."""
        picked = self.stream.positions(feed, seed, step)
        batch = self.stream.gathered(feed, picked)
        if "mask" in batch:
            batch["mask"] = batch["mask"].astype(jnp.int32)
        return {**batch, **{TAP + name: jnp.take(value, picked, axis=0) for name, value in feed["taps"].items()}}


def known_taps(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The taps that a batch of a `CachedStream` brings."""
    return {name.removeprefix(TAP): value for name, value in batch.items() if name.startswith(TAP)}
