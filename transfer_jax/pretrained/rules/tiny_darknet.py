"""Tiny Darknet: a Keras network whose layers are numbered by kind, as ml5.js publishes it for TensorFlow.js."""

from __future__ import annotations

import itertools

from transfer_jax.models.tiny_darknet import STAGES, TinyDarknet
from transfer_jax.pretrained.rules.table import KERAS, POINTWISE_HWIO, Layout, rules

BEFORE = (0, *itertools.accumulate(map(len, STAGES)))  # convolutions in front of each stage, and all of them


def keras(backbone: TinyDarknet) -> Layout:
    def number(s: int, i: int) -> int:
        return BEFORE[s - 1] + i

    last = BEFORE[-1]
    return Layout(rules(
        KERAS.conv("stage{s}/conv{i}", lambda s, i: f"conv2d_{number(s, i)}"),
        KERAS.norm("stage{s}/bn{i}", lambda s, i: f"batch_normalization_{number(s, i)}"),
        KERAS.dense("head/dense", f"conv2d_{last + 1}", POINTWISE_HWIO),
    ), input_kernels=("stage1/conv1/kernel",),
        modules={f"stage{s}": f"leaky_re_lu_{before}" for s, before in enumerate(BEFORE[1:], 1)})


LAYOUTS = {"keras": keras}
