"""The arrays that the sample files in `files/` hold, and where these lie."""

from pathlib import Path

import ml_dtypes
import numpy as np

FILES = Path(__file__).parent / "files"

TENSORS = {
    "weight": np.array([[0.5, -1.25, 3.0], [1e-7, 2.0, -8.5]], np.float32),
    "half": np.array([0.5, -2.0, 65504.0], np.float16),
    "bfloat": np.array([1.0, -0.15625, 3e38], ml_dtypes.bfloat16),
    "step": np.array([-1, 2**40], np.int64),
    "flag": np.array([[True, False], [False, True]]),
    "scalar": np.array(7.25, np.float32),
}
NESTED = {("Transformer", "encoderblock_0", "Dense_0", "kernel"): TENSORS["weight"],
          ("Transformer", "encoderblock_0", "Dense_0", "bias"): TENSORS["half"], ("cls",): TENSORS["scalar"]}


def _filled(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + len(shape)) / 8


LAYERS = {
    "conv1/kernel": _filled(3, 3, 2, 2), "bn1/beta": _filled(2) + 1, "bn1/moving_mean": _filled(2) + 2,
    "bn1/moving_variance": _filled(2) + 3, "inner/inner_conv/kernel": _filled(3, 3, 2, 2) + 4,
    "inner/inner_conv/bias": _filled(2) + 5, "inner/inner_bn/gamma": _filled(2) + 6,
    "inner/inner_bn/beta": _filled(2) + 7,
    "inner/inner_bn/moving_mean": _filled(2) + 8, "inner/inner_bn/moving_variance": _filled(2) + 9,
    "depthwise/kernel": _filled(2, 2, 2, 1) + 10, "depthwise/bias": _filled(2) + 11,
    "predictions/kernel": _filled(2, 3) + 12, "predictions/bias": _filled(3) + 13,
}
