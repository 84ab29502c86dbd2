"""MobileNet v1 against Keras, and against the backbone of RetinaFace in PyTorch as its weights' provenance tells it."""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework
from transfer_jax.models.mobilenet_v1 import MobileNetV1
from transfer_jax.pretrained.rules import mobilenet_v1

TAPS = {name: layout(MobileNetV1()).modules for name, layout in mobilenet_v1.LAYOUTS.items()}
SIDE = 70  # odd maps inside: 35, 18, 9, 5, 3
RETINAFACE = (((8, 2), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)), ((128, 2), *[(128, 1)] * 5), ((256, 2), (256, 1)))


def _keras(width: float) -> Any:
    def build(keras: Any) -> Any:
        return keras.applications.MobileNet(alpha=width, weights=None, classes=CLASSES, classifier_activation=None,
                                            input_shape=(SIDE, SIDE, 3), dropout=0.0)

    return as_torch(build, TAPS["keras"].values())


def _retinaface() -> Any:
    torch = framework("torch")
    nn = torch.nn

    def unit(before: int, after: int, size: int, strides: int, groups: int = 1) -> list[Any]:
        return [nn.Conv2d(before, after, size, strides, size // 2, groups=groups, bias=False), nn.BatchNorm2d(after),
                nn.LeakyReLU(0.1)]

    class Original(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            before = 3
            for number, stage in enumerate(RETINAFACE, 1):
                blocks = []
                for after, strides in stage:
                    separable = [*unit(before, before, 3, strides, before), *unit(before, after, 1, 1)]
                    blocks.append(nn.Sequential(*(unit(3, after, 3, strides) if before == 3 else separable)))
                    before = after
                self.add_module(f"stage{number}", nn.Sequential(*blocks))
            self.fc = nn.Linear(before, CLASSES)

        def forward(self, image: Any) -> Any:
            return self.fc(self.stage3(self.stage2(self.stage1(image))).mean((2, 3)))

    return Original()


def _case(name: str, layout: str, original: Any, arguments: dict[str, Any], smallest: bool, label: str = "") -> Case:
    return Case(name, layout, original, TAPS[layout],
                ("stem/conv/kernel", "stage4/block0/depthwise/conv/kernel", "head/dense/kernel"),
                {"dropout": 0.0, **arguments}, size=SIDE, exact=True, smallest=smallest, name=label)


CASES = [_case("mobilenet_v1", "keras", functools.partial(_keras, 1.0), {}, False),
         _case("mobilenet_v1", "keras", functools.partial(_keras, 0.25), {"width": 0.25}, True, "mobilenet_v1_025"),
         _case("mobilenet_v1_retinaface", "retinaface", _retinaface, {}, True)]
