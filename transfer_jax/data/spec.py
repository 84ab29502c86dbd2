"""What a stream is, as the user writes it."""

from __future__ import annotations

from typing import Literal

import pydantic

from transfer_jax.core.spec import Component, Spec
from transfer_jax.data.decoding import INTERPOLATIONS


class StreamSpec(Spec):
    """A supply of batches: which examples, how they are prepared, how many at a time.

    Which examples: `data` and `split` (TFDS syntax), then `classes` (kept, renumbered in this order), then
    `per_class`, a slice such as '[:10]' or '[80%:]' of every class in an order drawn from `split_seed` (None: the seed
    of the member, so that all methods of one seed share their splits). `labels_per_class=N` is `per_class='[:N]'`:
    5 labels are a subset of 10, and '[:10]' and '[10:]' share nothing. `within` slices each class once more: '[:80%]'
    and '[80%:]' are two parts of whatever was chosen, say to fit and to choose.

    How prepared: images are resized on reading to `image_size` (height, width; `fit`: 'stretch' or 'crop' the centre;
    with `resize` the centre of the image that was resized to that first, one number for its shorter side, two for
    height and width, as ImageNet's recipes do; with `fit='cover'` the aspect ratio is kept with two as well, and the
    image just covers them), given `channels`, augmented as values in [0, 1], and normalised by (x - mean) / std. With
    `labelled=False` no label of any kind reaches a batch.

    `mix` says how often the parts of a data set of kind 'merge' come in training, instead of as often as they have
    examples: see `mixing.py`. `classes_per_batch`: every batch holds so many classes, with equally many examples of
    each (of labelled data). `boxes`: how many boxes of an image have room in a batch; None: boxes stay away.
    `targets`: labels of other kinds that a batch shows, see `targets.py`.

    `follows` names another stream over the same examples: then both draw the same ones in every batch, each with its
    own augmentation, two views of them.

    Where: `storage` 'device' holds the decoded examples on the device, 'host' streams them; 'auto' takes the device
    up to `device_bytes`. `threads` read in this process; `workers` > 0 adds processes.
    """

    data: Component
    split: str = "train"
    classes: tuple[str | int, ...] | None = None
    labels_per_class: int | None = pydantic.Field(None, ge=1)
    per_class: str | None = None
    within: str | None = None
    split_seed: int | None = None
    domain: str = ""
    follows: str | None = None
    mix: Component | None = None
    labelled: bool = True
    targets: tuple[Literal["labels", "target", "keypoints", "depth", "normals", "place"], ...] = ()
    boxes: int | None = pydantic.Field(None, ge=1)
    batch_size: int = pydantic.Field(ge=1)
    classes_per_batch: int | None = pydantic.Field(None, ge=1)
    # backbone -> the batch entry that it reads, or a tap of a backbone named before it ('backbone/pooled'), or several
    # taps, with 'missing' in the place of one that is not given
    inputs: dict[str, str | tuple[str, ...]] = {"backbone": "image"}
    augment: tuple[Component, ...] = ()
    image_size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    fit: Literal["stretch", "crop", "cover"] = "stretch"
    interpolation: str = "bilinear"
    channels: Literal[1, 3] | None = None
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5
    storage: Literal["auto", "device", "host"] = "auto"
    device_bytes: int = pydantic.Field(256 * 2**20, ge=0)
    on_bad_example: Literal["error", "skip"] = "error"
    threads: int = pydantic.Field(4, ge=1)
    workers: int = pydantic.Field(0, ge=0)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> StreamSpec:
        if "/" in self.domain:
            raise ValueError(f"domain {self.domain!r} contains a '/'; leave it out")
        if self.labels_per_class is not None and self.per_class is not None:
            raise ValueError("labels_per_class and per_class say the same thing; give one of them")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is unknown; valid: {', '.join(INTERPOLATIONS)}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size {self.image_size} must be positive")
        if self.resize is not None:
            sides = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
            if self.fit == "stretch" or self.image_size is None or any(map(int.__lt__, sides, self.image_size)):
                raise ValueError(f"resize {self.resize} needs fit='crop' and an image_size that is not larger")
        if self.fit == "cover" and not isinstance(self.resize, tuple):
            raise ValueError("fit='cover' needs resize=(height, width)")
        stds = (self.std,) if isinstance(self.std, float | int) else self.std
        if min(stds, default=0) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        if self.classes_per_batch is not None and (self.follows is not None or self.mix is not None):
            raise ValueError("classes_per_batch decides which examples come, and so do 'follows' and 'mix'; leave "
                             "classes_per_batch out, or these")
        return self
