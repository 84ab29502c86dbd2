"""DoodleNet: a Keras network whose layers are numbered by kind, as ml5.js publishes it for TensorFlow.js."""

from __future__ import annotations

from transfer_jax.models.doodlenet import DoodleNet
from transfer_jax.pretrained.rules.table import KERAS, Layout, rules


def keras(backbone: DoodleNet) -> Layout:
    def numbered(kind: str, number: int) -> str:
        """Keras counts from nothing: conv2d, conv2d_1, conv2d_2 ..."""
        return f"{kind}_{number}" if number else kind

    return Layout(rules(
        KERAS.conv("stage{s}/conv{i}", lambda s, i: numbered("conv2d", 2 * s + i - 3)),
        KERAS.dense("dense", "dense"),
        KERAS.dense("head/dense", "dense_1"),
    ), input_kernels=("stage1/conv1/kernel",),
        modules={**{f"stage{s}": numbered("max_pooling2d", s - 1) for s in (1, 2, 3)}, "pooled": "dense"})


LAYOUTS = {"keras": keras}
