"""GoogLeNet against torchvision, with the change of inputs that its published parameters want."""

from __future__ import annotations

from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.oracle import framework
from transfer_jax.models.googlenet import GoogLeNet
from transfer_jax.pretrained.rules import googlenet


def _torchvision() -> Any:
    return framework("torchvision").models.GoogLeNet(num_classes=CLASSES, aux_logits=False, transform_input=True,
                                                     init_weights=False)


CASES = [Case("googlenet", "torchvision", _torchvision, googlenet.torchvision(GoogLeNet()).modules,
              ("conv1/conv/kernel", "inception4b/conv5x5/conv/kernel", "head/dense/kernel"),
              {"transform_input": True, "dropout": 0.0}, size=64, exact=True,
              smallest=True)]
