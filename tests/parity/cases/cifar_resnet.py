"""ResNets for small images: a network of plain torch with the names of the known files, and MLPerf Tiny's in Keras.

Neither original is part of a framework: both are written here from the papers, without any of our code.
"""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.harness import CLASSES, Case
from tests.parity.keras_original import as_torch
from tests.parity.oracle import framework

DEPTHS = (20, 32, 44, 56, 110)
KERAS_TAPS = {"stem": "activation", "stage1": "activation_2", "stage2": "activation_4", "stage3": "activation_6",
              "pooled": "flatten"}


def _block(features: int, strides: int, projected: bool) -> Any:
    """Two 3x3 convolutions; the shortcut of a smaller map is a projection or subsampling with zeros for channels."""
    torch = framework("torch")
    inputs = features // strides

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(inputs, features, 3, strides, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(features)
            self.conv2 = torch.nn.Conv2d(features, features, 3, 1, 1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(features)
            if strides > 1 and projected:
                self.shortcut = torch.nn.Sequential(torch.nn.Conv2d(inputs, features, 1, strides, bias=False),
                                                    torch.nn.BatchNorm2d(features))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + self._shortcut(x))

        def _shortcut(self, x: Any) -> Any:
            if strides == 1:
                return x
            if projected:
                return self.shortcut(x)
            x = torch.nn.functional.avg_pool2d(x, 1, strides)
            zeros = x.new_zeros(x.shape[0], (features - inputs) // 2, *x.shape[2:])
            return torch.cat([zeros, x, zeros], 1)

    return Block()


def _torch(depth: int, projected: bool) -> Any:
    torch = framework("torch")
    count = (depth - 2) // 6

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16)
            self.stem = torch.nn.ReLU()
            for stage, features in enumerate((16, 32, 64), 1):
                strides = [1 if stage == 1 else 2] + [1] * (count - 1)
                blocks = (_block(features, step, projected) for step in strides)
                self.add_module(f"layer{stage}", torch.nn.Sequential(*blocks))
            self.linear = torch.nn.Linear(64, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.stem(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(x.mean((2, 3)))

    return Network()


def _keras() -> Any:
    def build(keras: Any) -> Any:
        layers = keras.layers

        def stack(x: Any, features: int, strides: int) -> Any:
            y = layers.BatchNormalization()(layers.Conv2D(features, 3, strides, "same")(x))
            y = layers.Activation("relu")(y)
            y = layers.BatchNormalization()(layers.Conv2D(features, 3, 1, "same")(y))
            x = layers.Conv2D(features, 1, strides, "same")(x) if strides > 1 else x
            return layers.Activation("relu")(layers.Add()([x, y]))

        image = keras.Input((32, 32, 3))
        x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(16, 3, 1, "same")(image)))
        x = stack(stack(stack(x, 16, 1), 32, 2), 64, 2)
        x = layers.Flatten()(layers.AveragePooling2D(8)(x))
        return keras.Model(image, layers.Dense(CLASSES)(x))

    return as_torch(build, KERAS_TAPS.values())


def _case(depth: int, shortcut: str = "A", **more: Any) -> Case:
    taps = {"stem": "stem", **{f"stage{i}": f"layer{i}" for i in (1, 2, 3)}}
    return Case(f"cifar_resnet{depth}", "akamaster", functools.partial(_torch, depth, shortcut == "B"), taps,
                ("conv1/kernel", "stage2/block0/conv1/kernel", "head/dense/kernel"),
                {"form": "pytorch", "shortcut": shortcut}, size=32, exact=True, **more)


CASES = [*(_case(depth, smallest=depth == 20) for depth in DEPTHS),
         _case(20, "B", name="cifar_resnet20_projected"),
         Case("mlperf_resnet8", "keras", _keras, KERAS_TAPS,
              ("conv1/kernel", "stage2/block0/conv1/kernel", "head/dense/kernel"), size=32, smallest=True)]
