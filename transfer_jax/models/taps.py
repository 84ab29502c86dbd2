"""What all backbones share: named features ("taps") in forward order, and where to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from transfer_jax.core.errors import UserError
from transfer_jax.core.interception import edited
from transfer_jax.core.spec import Component

Taps = dict[str, jax.Array]


class Backbone(nn.Module):
    """A network from inputs to taps. Nothing beyond the tap `until` is built, computed or given parameters.

    A subclass states its `tap_names` in forward order and returns `walk(x, self.until, steps)` from
    `__call__(x, train=False)`. Maps are [B, H, W, C]; `pooled` is the feature vector [B, D]. With `remat` the backward
    pass computes the inside of each block again instead of keeping it: less memory, about a third more time.
    """

    until: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    resumes = True  # whether it can go on behind any of its taps, given a `Resumed` in place of its input

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names of all taps of the whole network, in forward order, whatever `until` says."""
        raise AttributeError(f"{type(self).__name__} does not state its tap_names")

    @property
    def example(self) -> Any:
        """Shape and dtype of one input (batch 1) of the size that the family was published with."""
        return jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    @property
    def classifier(self) -> Component | None:
        """The head that the family was published with, less its number of classes; None if there is none."""
        return Component(kind="linear", tap="pooled")


@struct.dataclass
class Resumed:
    """What a backbone computed up to a tap, given to it in place of an input: it goes on behind that tap."""

    value: jax.Array
    tap: str = struct.field(pytree_node=False)

    def astype(self, dtype: Any) -> Resumed:
        return Resumed(self.value.astype(dtype), self.tap)


def walk(x: jax.Array | Resumed, until: str | None, steps: Mapping[str, Callable[[jax.Array], jax.Array]]) -> Taps:
    """Feeds `x` through `steps` in order and keeps every result, up to and including the step named `until`.

    Of a `Resumed` the steps up to its tap are left out: their results are not among those returned.
    """
    taps = {}
    if isinstance(x, Resumed):
        names = list(steps)
        steps = {name: steps[name] for name in names[names.index(x.tap) + 1:]}
        x = x.value
    for name, step in steps.items():
        x = taps[name] = edited(name, step(x))
        if name == until:
            break
    return taps


def find_tap(taps: Mapping[str, Any] | jax.Array, name: str) -> jax.Array:
    """`taps[name]`; a plain array stands for whatever tap is asked for."""
    if not isinstance(taps, Mapping):
        return taps
    if name not in taps:
        raise UserError(f"the head asks for the tap {name!r}, which the backbone does not give; it gives: "
                        f"{', '.join(taps)} (is the backbone cut by 'until'?)")
    return taps[name]
