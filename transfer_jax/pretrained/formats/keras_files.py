"""Keras: legacy `.h5` by layer name, `.weights.h5` and `.keras` of Keras 3; any other HDF5 file by its own paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.pretrained.formats.archives import Archive
from transfer_jax.pretrained.formats.hdf5 import Hdf5
from transfer_jax.pretrained.formats.json_files import parse_json
from transfer_jax.pretrained.formats.keras_names import name_keras_variables
from transfer_jax.pretrained.formats.tensor_file import TensorFile, add_once, damaged, plain, shown

MODEL_GROUP = "model_weights"  # where a file of the whole model keeps its layers
WEIGHTS_MEMBER, CONFIG_MEMBER = "model.weights.h5", "config.json"
OLD_LAYERS = "_layer_checkpoint_dependencies/"  # how TensorFlow 2.13 called 'layers/'
STATE_OF_TRAINING = ("optimizer/", "optimizer_weights/", "_optimizer/")


def read_hdf5(path: Path, where: str) -> TensorFile:
    """A file of layers by name, of Keras 3's numbered variables, or of plain datasets."""
    file = Hdf5(path.read_bytes(), where)
    attributes = file.attributes()
    root = MODEL_GROUP if file.has(MODEL_GROUP) else ""
    layers = _long_list(file.attributes(root), "layer_names")
    if layers is not None:
        return TensorFile(_layers(file, root, layers), _metadata(attributes), "keras h5")
    tensors = _numbered(file)
    numbered = any("/vars/" in f"/{name}" for name in tensors)
    return TensorFile(tensors, _metadata(attributes), "keras 3" if numbered else "hdf5")


def _layers(file: Hdf5, root: str, layers: list[str]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    prefix = f"{root}/" if root else ""
    groups = [*layers, *(["top_level_model_weights"] if file.has(f"{prefix}top_level_model_weights") else [])]
    for layer in groups:
        weights = _long_list(file.attributes(prefix + layer), "weight_names") or []
        for weight in weights:
            add_once(tensors, _full_name(layer, weight), file.read(f"{prefix}{layer}/{weight}"), file.where)
    return tensors


def _full_name(layer: str, weight: str) -> str:
    """'conv1', 'conv1/conv1/kernel:0' -> 'conv1/kernel'; a weight of a nested model keeps its inner layer."""
    name = weight.removesuffix(":0")
    name = name if name.startswith(f"{layer}/") or layer == "top_level_model_weights" else f"{layer}/{name}"
    while name.startswith(f"{layer}/{layer}/"):
        name = name.removeprefix(f"{layer}/")
    return name


def _long_list(attributes: dict[str, Any], name: str) -> list[str] | None:
    """A list of strings, which Keras cuts into `name0`, `name1`, ... when HDF5's attributes are too small for it."""
    if name in attributes:
        found = attributes[name]
    elif f"{name}0" in attributes:
        found = []
        while isinstance(part := attributes.get(f"{name}{len(found)}"), list):
            found.append(part)
        found = [item for part in found for item in part]
    else:
        return None
    return [str(item) for item in found] if isinstance(found, list) else []


def _numbered(file: Hdf5) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for path in file.datasets():
        if not path.startswith(STATE_OF_TRAINING):
            add_once(tensors, path.replace(OLD_LAYERS, "layers/"), file.read(path), file.where)
    return tensors


def _metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in attributes.items() if plain(value)}
    for key in ("model_config", "training_config"):
        if isinstance(found.get(key), str):
            try:
                found[key] = json.loads(found[key])
            except (ValueError, RecursionError):
                del found[key]
    return found


def read_keras_archive(path: Path, where: str) -> TensorFile:
    """A `.keras` file: weights by number, named by following the config that lies beside them."""
    with Archive(path, where) as archive:
        config = parse_json(archive.read(CONFIG_MEMBER), where)
        about = parse_json(archive.read("metadata.json"), where) if "metadata.json" in archive.names else {}
        tensors = _numbered(Hdf5(archive.read(WEIGHTS_MEMBER), f"{where} ({WEIGHTS_MEMBER})"))
    if not isinstance(config.get("config"), dict):
        raise damaged(where, f"its {shown(CONFIG_MEMBER)} describes no model")
    return TensorFile(name_keras_variables(tensors, config), {**about, "config": config}, "keras 3")
