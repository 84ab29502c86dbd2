"""Names for the numbered variables of Keras 3, by walking through the model's config as Keras does when it saves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.tensor_file import DEEPEST, add_once, damaged, shown

AFFINE = ("kernel", "bias")
RECURRENT = ("kernel", "recurrent_kernel", "bias")
MOVING = ("gamma", "beta", "moving_mean", "moving_variance")
SEPARABLE = ("depthwise_kernel", "pointwise_kernel", "bias")
VARIABLES = {"Dense": AFFINE, "EinsumDense": AFFINE, "Embedding": ("embeddings",), "PReLU": ("alpha",),
             "BatchNormalization": MOVING, "LayerNormalization": ("gamma", "beta"),
             "GroupNormalization": ("gamma", "beta"), "RMSNormalization": ("scale",), "LayerScale": ("gamma",),
             "Normalization": ("mean", "variance", "count"), "LSTMCell": RECURRENT, "GRUCell": RECURRENT,
             "SimpleRNNCell": RECURRENT, "SeparableConv1D": SEPARABLE, "SeparableConv2D": SEPARABLE,
             **{f"{kind}{rank}D{turned}": AFFINE for kind in ("Conv", "DepthwiseConv") for rank in (1, 2, 3)
                for turned in ("", "Transpose")}}
# Which setting of a layer leaves a variable out when it is off.
SWITCHES = {"bias": ("use_bias", "bias_axes"), "gamma": ("scale",), "beta": ("center",)}
CELLS = {"LSTM": "LSTMCell", "GRU": "GRUCell", "SimpleRNN": "SimpleRNNCell"}
ATTENTION = {"query_dense": "query", "key_dense": "key", "value_dense": "value", "output_dense": "attention_output"}
LARGEST_TABLE = 2**24  # characters
Place = tuple[str, str, tuple[str, ...]]  # where the file has a layer, its name, its variables in order


def name_keras_variables(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables by the names that Keras shows ('conv1_conv/kernel', 'inner_model/bn/moving_mean').

    Args:
        tensors: content of a `.weights.h5` as `read_tensors` gives it ('layers/conv2d_3/vars/0').
        config: the model's `config.json`, `model.get_config()` or `json.loads(model.to_json())`.

    Returns:
        The same arrays. Variables of layers that Keras does not know keep their number ('my_layer/vars/0').
    """
    model = config if "class_name" in config else {"class_name": "Functional", "config": config}
    try:
        places = _table(_places(model, "", "", 0))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise damaged("the Keras config", f"a layer is described in an unexpected way ({shown(error)})") from error
    named: dict[str, np.ndarray] = {}
    for path, tensor in tensors.items():
        add_once(named, _named(path, places), tensor, "the Keras file")
    return named


def _table(found: Iterator[Place]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Names and variables by place; a config that makes far more text of its names than it holds is hostile."""
    places, room = {}, LARGEST_TABLE
    for stored, name, variables in found:
        room -= len(stored) + len(name)
        if room < 0:
            raise ValueError("its names are too long")
        places[stored] = name, variables
    return places


def _named(path: str, places: Mapping[str, tuple[str, tuple[str, ...]]]) -> str:
    stored, _, number = f"/{path}".rpartition("/vars/")
    stored = stored.removeprefix("/")
    known = stored
    while known and known not in places:
        known = known.rpartition("/")[0]
    if not known and stored.startswith("layers/"):
        raise UserError(f"the config has no layer for {shown(path)} of the Keras file; take the config of this model")
    if known not in places:
        return path
    name, variables = places[known]
    rest = stored.removeprefix(known).strip("/")
    index = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else None
    variable = variables[index] if not rest and index is not None and index < len(variables) else f"vars/{number}"
    return "/".join(part for part in (name, rest, variable) if part)


def _places(layer: Mapping[str, Any], stored: str, name: str, depth: int) -> Iterator[Place]:
    """This layer and all layers inside of it."""
    if depth > DEEPEST:
        raise ValueError("layers are nested without an end")
    kind, settings = layer["class_name"], layer["config"]
    yield stored, name, _variables(kind, settings)
    yield from _listed(settings.get("layers"), _join(stored, "layers"), name, depth)
    yield from _listed(settings.get("cells"), _join(stored, "cells"), name, depth)
    if kind == "Bidirectional":
        forward = settings["layer"]  # saved under its own name, 'forward_lstm'
        backward = settings.get("backward_layer") or forward
        called = str(backward["config"]["name"])
        if backward is forward:
            called = f"backward_{called.removeprefix('forward_')}"
        yield from _inside(forward, f"{stored}/forward_layer", name, depth)
        yield from _places(backward, f"{stored}/backward_layer", _join(name, called), depth + 1)
    elif isinstance(settings.get("layer"), Mapping):
        yield from _inside(settings["layer"], f"{stored}/layer", name, depth)
    if isinstance(settings.get("cell"), Mapping):
        yield from _inside(settings["cell"], f"{stored}/cell", name, depth)
    if kind in CELLS:
        cell = {"class_name": CELLS[kind], "config": {**settings, "name": _snake_case(CELLS[kind])}}
        yield f"{stored}/cell", _join(name, _snake_case(CELLS[kind])), _variables(CELLS[kind], cell["config"])
    if kind in ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention"):
        for part, called in ATTENTION.items():
            yield f"{stored}/{part}", f"{name}/{called}", _variables("Dense", settings)


def _inside(layer: Mapping[str, Any], stored: str, name: str, depth: int) -> Iterator[Place]:
    return _places(layer, stored, _join(name, str(layer["config"]["name"])), depth + 1)


def _listed(layers: Any, stored: str, name: str, depth: int) -> Iterator[Place]:
    if not isinstance(layers, list):
        return
    seen: Counter[str] = Counter()
    for layer in layers:
        kind = _snake_case(layer["class_name"])
        number = seen[kind]
        seen[kind] += 1
        yield from _inside(layer, f"{stored}/{kind}_{number}" if number else f"{stored}/{kind}", name, depth)


def _variables(kind: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    def present(variable: str) -> bool:
        return all(settings.get(switch, True) not in (False, None) for switch in SWITCHES.get(variable, ())
                   if switch in settings)

    return tuple(variable for variable in VARIABLES.get(kind, ()) if present(variable))


def _snake_case(name: str) -> str:
    """How Keras turns the name of a class into that of a group: 'BatchNormalization' -> 'batch_normalization'."""
    words = r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])"
    return re.sub(words, "_", re.sub(r"\W", "", name)).lower()


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
