"""Makes the small sample files in `files/`: run it where torch, keras, onnx and h5py are installed.

`python tests/formats/make_files.py` writes every sample anew; the arrays are those of `samples.py`. Keras puts dates
into its archives, so their bytes differ from run to run, their tensors do not.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import onnx
import orbax.checkpoint as orbax
import torch
from flax import serialization
from safetensors.numpy import save_file
from samples import FILES, LAYERS, NESTED, TENSORS


class Chained(torch.nn.Module):
    """A module for TorchScript with the sample's weight inside a child."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)
        self.inner.weight.data = torch.tensor(weight)
        self.inner.bias.data = torch.tensor(weight[:, 0].copy())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def as_torch(array: np.ndarray) -> torch.Tensor:
    """The same values as a tensor of torch."""
    if array.dtype.name == "bfloat16":
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(array)


def torch_files(folder: Path) -> None:
    """Zip, legacy stream and TorchScript; the dictionary also holds views of one storage and a NumPy scalar."""
    state = {f"module.{name}": as_torch(array) for name, array in TENSORS.items()}
    shared = torch.arange(12, dtype=torch.float32)
    state["module.transposed"] = shared.reshape(3, 4).T
    state["module.tail"] = shared[8:]
    wrapped = {"state_dict": state, "epoch": 18, "arch": "tiny", "best_prec1": np.float64(91.5), "history": [1, 2.5]}
    torch.save(wrapped, folder / "zip.pth")
    torch.save(wrapped, folder / "legacy.tar", _use_new_zipfile_serialization=False)
    torch.jit.script(Chained(TENSORS["weight"])).save(folder / "script.pt")


def keras_files(folder: Path) -> None:
    """One small model in the three formats of Keras, its variables filled from `LAYERS`."""
    image = keras.Input((6, 6, 2), name="image")
    inner = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Conv2D(2, 3, name="inner_conv"),
                              keras.layers.BatchNormalization(name="inner_bn")], name="inner")
    x = keras.layers.Conv2D(2, 3, use_bias=False, name="conv1")(image)
    x = keras.layers.BatchNormalization(scale=False, name="bn1")(x)
    x = inner(x)
    x = keras.layers.DepthwiseConv2D(2, name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, keras.layers.Dense(3, name="predictions")(x))
    for variable in model.variables:
        variable.assign(LAYERS[variable.path])
    model.save(folder / "model.keras")
    pack(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "legacy.h5")


def pack(path: Path) -> None:
    """Compresses a zip archive that was only stored."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def onnx_file(folder: Path) -> None:
    """A graph of initialisers alone, some as raw bytes and some in typed fields."""
    made = [onnx.numpy_helper.from_array(TENSORS[name], name) for name in ("weight", "half", "step", "flag")]
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.FLOAT, (2, 3), TENSORS["weight"].ravel().tolist())
    bits = TENSORS["bfloat"].view(np.uint16)
    bfloat = onnx.helper.make_tensor("bfloat", onnx.TensorProto.BFLOAT16, bits.shape, bits.tobytes(), raw=True)
    graph = onnx.helper.make_graph([], "tiny", [], [], [*made, typed, bfloat])
    onnx.save(onnx.helper.make_model(graph, producer_name="sample"), folder / "model.onnx")


def tfjs_files(folder: Path) -> None:
    """Two shards that cut through a tensor, and a quantised one."""
    folder.mkdir()
    data = TENSORS["weight"].tobytes() + np.array([0, 128, 255], np.uint8).tobytes()
    (folder / "group1-shard1of2.bin").write_bytes(data[:10])
    (folder / "group1-shard2of2.bin").write_bytes(data[10:])
    entries = [{"name": "dense/kernel", "shape": [2, 3], "dtype": "float32"},
               {"name": "dense/bias", "shape": [3], "dtype": "float32",
                "quantization": {"dtype": "uint8", "scale": 0.5, "min": -64.0}}]
    manifest = {"format": "layers-model", "modelTopology": {}, "weightsManifest": [
        {"paths": ["group1-shard1of2.bin", "group1-shard2of2.bin"], "weights": entries}]}
    (folder / "model.json").write_text(json.dumps(manifest))


def safetensors_files(folder: Path) -> None:
    """One file, and two shards with their index."""
    save_file(TENSORS, folder / "model.safetensors", {"format": "np"})
    sharded = folder / "sharded"
    sharded.mkdir()
    places = {}
    for index, names in enumerate((("weight", "half"), ("bfloat", "step", "flag", "scalar")), 1):
        shard = f"model-{index:05}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in names}, sharded / shard)
        places |= dict.fromkeys(names, shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def main() -> None:
    """All samples."""
    shutil.rmtree(FILES, ignore_errors=True)
    FILES.mkdir()
    torch_files(FILES)
    keras_files(FILES)
    onnx_file(FILES)
    tfjs_files(FILES / "tfjs")
    safetensors_files(FILES)
    np.savez_compressed(FILES / "model.npz", **{"/".join(path): array for path, array in NESTED.items()})
    tree = {"block": {"0": {"kernel": TENSORS["weight"]}}, "scale": TENSORS["bfloat"]}
    (FILES / "model.msgpack").write_bytes(serialization.to_bytes(tree))
    orbax.PyTreeCheckpointer().save((FILES / "orbax").resolve(), tree)
    (FILES / "orbax" / "commit_success.txt").unlink(missing_ok=True)  # it names a folder of this machine


if __name__ == "__main__":
    main()
