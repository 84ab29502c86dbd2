"""SqueezeNet against torchvision."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework
from transfer_jax.models.squeezenet import SqueezeNet
from transfer_jax.pretrained.rules import squeezenet


def _torchvision(name: str) -> Any:
    return framework("torchvision").models.get_model(name, num_classes=CLASSES)


class Quiet(Case):
    """Without the dropout of the published head."""

    @property
    def head(self) -> Any:
        return super().head.clone(dropout=0.0)


def _case(version: str) -> Case:
    name = f"squeezenet{version.replace('.', '_')}"
    taps = squeezenet.torchvision(SqueezeNet(version=version)).modules
    return Quiet(name, "torchvision", functools.partial(_torchvision, name), taps,
                 ("conv1/kernel", "fire5/expand3x3/kernel", "head/conv/kernel"), smallest=version == "1.1")


CASES = [_case(version) for version in ("1.0", "1.1")]
