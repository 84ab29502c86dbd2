"""AlexNet against torchvision."""

from __future__ import annotations

from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework
from transfer_jax.models.alexnet import AlexNet
from transfer_jax.pretrained.rules import alexnet


def _torchvision() -> Any:
    return framework("torchvision").models.alexnet(num_classes=CLASSES)


# 95 pixels: the map in front of the mean is 2 x 2, and every stride leaves something over.
CASES = [Case("alexnet", "torchvision", _torchvision, alexnet.torchvision(AlexNet()).modules,
              ("conv1/kernel", "fc6/kernel", "head/dense/kernel"), {"dropout": 0.0}, size=95, smallest=True)]
