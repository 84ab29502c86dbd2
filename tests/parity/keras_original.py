"""A Keras model in the dress of a torch module, so that one harness compares with both. Keras runs on JAX."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import jax
import numpy as np

from tests.parity.oracle import framework


class _Compiled:
    """Pure functions of (parameters, statistics, NHWC image, training) for a Keras model of several outputs."""

    def __init__(self, build: Callable[[Any], Any], layers: tuple[str, ...], dtype: str) -> None:
        keras = framework("keras")
        usual = keras.config.dtype_policy()
        keras.utils.clear_session()  # numbers in names start anew
        keras.config.set_dtype_policy(dtype)
        model = build(keras)
        keras.config.set_dtype_policy(usual)
        self._dtype = dtype
        self._model = keras.Model(model.input, [model.get_layer(name).output for name in layers] + [model.output])
        self.trainable = {variable.path: tuple(variable.shape) for variable in self._model.trainable_variables}
        self.moving = {variable.path: tuple(variable.shape) for variable in self._model.non_trainable_variables}
        self.forward = jax.jit(self._forward, static_argnums=3)
        self.gradients = jax.jit(self._gradients, static_argnums=3)

    def _forward(self, parameters: Any, statistics: Any, image: Any, training: bool) -> tuple[Any, Any]:
        """(outputs, moved statistics)."""
        with self._undiminished():
            return self._model.stateless_call(parameters, statistics, image, training=training)

    def _undiminished(self) -> Any:
        """BatchNorm of Keras joins float64 with float32 to float32; here it shall stay float64."""
        if self._dtype == "float32":
            return contextlib.nullcontext()
        return mock.patch("keras.src.backend.result_type", return_value=self._dtype)

    def _gradients(self, parameters: Any, statistics: Any, image: Any, training: bool, cotangents: Any) -> Any:
        """To the parameters."""
        _, pull = jax.vjp(lambda p: self._forward(p, statistics, image, training)[0], parameters)
        return pull(cotangents)[0]


def as_torch(build: Callable[[Any], Any], layers: Iterable[str]) -> Any:
    """A torch module of NCHW images around the Keras model that `build(keras)` makes.

    Its parameters and buffers are called as Keras calls its variables ('conv1/kernel'); each of the `layers` has a
    submodule of the same name through which its output goes, maps as NCHW. Training mode moves the buffers as Keras
    moves its statistics; gradients reach the parameters. It computes in the dtype of its parameters; float64 needs
    JAX's x64 mode, too.
    """
    torch, layers = framework("torch"), tuple(layers)
    compiled = {np.dtype("float32"): _Compiled(build, layers, "float32")}
    trainable, moving = compiled[np.dtype("float32")].trainable, compiled[np.dtype("float32")].moving

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(context, image, training, statistics, *parameters):
            context.inputs = [p.detach().numpy() for p in parameters], statistics, image.numpy(), training
            context.dtype = context.inputs[2].dtype
            if context.dtype not in compiled:
                compiled[context.dtype] = _Compiled(build, layers, str(context.dtype))
            outputs, moved = compiled[context.dtype].forward(*context.inputs)
            owner.moved = [np.array(value) for value in moved]
            return tuple(torch.from_numpy(np.array(value)) for value in outputs)

        @staticmethod
        def backward(context, *cotangents):
            gradients = compiled[context.dtype].gradients(*context.inputs, [c.numpy() for c in cotangents])
            return None, None, None, *(torch.from_numpy(np.array(g)) for g in gradients)

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for path, shape in trainable.items():
                self.register_parameter(path, torch.nn.Parameter(torch.zeros(shape)))
            for path, shape in moving.items():
                self.register_buffer(path, torch.zeros(shape))
            for name in layers:
                self.add_module(name, torch.nn.Identity())

        def forward(self, image):
            statistics = [getattr(self, path).numpy() for path in moving]
            outputs = Differentiable.apply(image.permute(0, 2, 3, 1), self.training, statistics,
                                           *(getattr(self, path) for path in trainable))
            for path, value in zip(moving, self.moved, strict=True):
                getattr(self, path).copy_(torch.from_numpy(value))
            for name, value in zip(layers, outputs[:-1], strict=True):
                self.get_submodule(name)(value.permute(0, 3, 1, 2) if value.ndim == 4 else value)
            return outputs[-1]

    owner = Original()
    return owner
