"""One table per family and foreign layout; registered here by the class of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transfer_jax.models.bit import BiTResNet
from transfer_jax.models.resnet import ResNet
from transfer_jax.models.taps import Backbone
from transfer_jax.pretrained.rules import bit, resnet
from transfer_jax.pretrained.rules.table import Layout

LAYOUTS: dict[type[Backbone], Mapping[str, Callable[[Backbone], Layout]]] = {
    BiTResNet: bit.LAYOUTS,
    ResNet: resnet.LAYOUTS,
}
