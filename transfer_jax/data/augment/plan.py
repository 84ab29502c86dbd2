"""The list of augmentations of one stream, checked and bound."""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component, check_arguments
from transfer_jax.data.augment.following import ENTRIES, Following, follow, trimmed
from transfer_jax.data.targets import TARGETS

SUPPLIED = ("image", "mask", "key", "generator", "size", "batch", "classes")
_BATCH_SALT = 1000  # batch-level draws must not meet the keys of examples


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bound augmentations in order: per example (device and host form of the same), then per batch."""

    names: tuple[str, ...]
    device: tuple[Callable, ...]
    host: tuple[Callable, ...]
    batch: tuple[Callable, ...]
    following: tuple[Following, ...] = ()  # how the rest follows, for each of `device`

    @property
    def crops_to_size(self) -> bool:
        """Whether the host should hand over images in their own size, since the first augmentation resizes them."""
        return bool(self.names) and self.names[0] == "random_resized_crop"

    def apply(self, batch: dict[str, Any], key: jax.Array, slots: Any, classes: int, per_example: bool) -> dict:
        """Augments a batch of float images. `key` belongs to (seed, step); example j folds in slots[j]. Traced."""
        if per_example and self.device:
            keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
            batch = {**batch, **jax.vmap(self._one)({name: batch[name] for name in ENTRIES if name in batch}, keys)}
        for number, function in enumerate(self.batch):
            salted = jax.random.fold_in(jax.random.fold_in(key, np.uint32(0xFFFFFFFF)), _BATCH_SALT + number)
            batch = function(batch, salted, classes)
        return batch

    def _one(self, example: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        for number, function in enumerate(self.device):
            own = jax.random.fold_in(key, number)
            example = self.following[number](example, functools.partial(function, key=own),
                                             functools.partial(jax.random.uniform, own), jnp)
        return trimmed(example, jnp)

    def apply_host(self, example: dict[str, np.ndarray], generator: np.random.Generator,
                   size: tuple[int, int] | None) -> dict[str, np.ndarray]:
        """Augments one example of uint8 image; `size` is what a first random_resized_crop resizes to."""
        for number, function in enumerate(self.host):
            if number == 0 and self.crops_to_size:
                function = functools.partial(function, size=size)
            # A copy draws the numbers that the image's augmentation draws next.
            start = copy.deepcopy(generator)
            example = self.following[number](
                example, functools.partial(function, generator=generator),
                lambda shape, start=start: copy.deepcopy(start).random(shape or None), np)
        example = trimmed(example, np)
        return {**example, "image": np.ascontiguousarray(example["image"])}

    def check(self, example: Mapping[str, np.ndarray], where: str) -> None:
        """Raises where an augmentation cannot serve the data."""
        if "mask" in example and "mixup" in self.names:
            raise UserError(f"{where}: mixup cannot mix masks; use cutmix or remove it")
        if "boxes" in example and self.batch:
            raise UserError(f"{where}: mixup and cutmix do not know what becomes of boxes; remove them, or 'boxes'")
        if self.batch and TARGETS.keys() & set(example):
            raise UserError(f"{where}: mixup and cutmix do not know what becomes of "
                            f"{' and '.join(sorted(TARGETS.keys() & set(example)))}; remove them, or the 'targets'")
        if self.batch and any(key.startswith("known/") for key in example):
            raise UserError(f"{where}: some of its examples have no label, and {self.names[-1]} would mix them with "
                            f"others; remove it")


def make_plan(device: Mapping[str, Callable], host: Mapping[str, Callable], batch: Mapping[str, Callable],
              components: tuple[Component, ...], where: str, points: tuple[str, ...] = ()) -> Plan:
    """Binds the components; unknown names or arguments, and mixing before the end of the list, are UserErrors.
    `points`: names of the keypoints, which a flip may exchange."""
    bound: dict[str, list] = {"device": [], "host": [], "batch": [], "following": []}
    for number, component in enumerate(components):
        place = f"{where} augment.{number}"
        if component.kind in batch:
            bound["batch"].append(_bind(batch[component.kind], component, place))
        elif component.kind not in device:
            raise unknown("augmentation", component.kind, [*device, *batch], place)
        elif bound["batch"]:
            raise UserError(f"{place}: {component.kind!r} comes after an augmentation that mixes examples; "
                            "put mixup and cutmix last")
        else:
            bound["device"].append(_bind(device[component.kind], component, place))
            bound["host"].append(_bind(host[component.kind], component, place))
            bound["following"].append(follow(component, device[component.kind], points, place))
    return Plan(tuple(item.kind for item in components), *(tuple(bound[key]) for key in bound))


def _bind(function: Callable, component: Component, where: str) -> Callable:
    check_arguments(function, component.arguments, f"{where} ({component.kind})", SUPPLIED)
    for name, value in component.arguments.items():
        annotation = _annotations(function)[name]
        try:
            pydantic.TypeAdapter(annotation, config={"strict": True}).validate_python(value)
        except pydantic.ValidationError as error:
            raise UserError(f"{where} ({component.kind}): {name} = {value!r} does not fit: "
                            f"{error.errors()[0]['msg'].lower()}") from error
    return functools.partial(function, **component.arguments)


@functools.cache
def _annotations(function: Callable) -> dict[str, Any]:
    return typing.get_type_hints(function)
