"""Which reader a path needs, told from its first bytes or from what a folder holds, never from its suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats.archives import Archive
from transfer_jax.pretrained.formats.flax_files import is_orbax, read_msgpack, read_orbax
from transfer_jax.pretrained.formats.hdf5 import is_hdf5
from transfer_jax.pretrained.formats.json_files import parse_json
from transfer_jax.pretrained.formats.keras_files import read_hdf5, read_keras_archive
from transfer_jax.pretrained.formats.npz_files import read_npz
from transfer_jax.pretrained.formats.onnx_files import read_onnx
from transfer_jax.pretrained.formats.safetensors_files import is_safetensors, read_safetensors, read_shards
from transfer_jax.pretrained.formats.tensor_file import TensorFile, damaged, refused, shown
from transfer_jax.pretrained.formats.tfjs_files import read_tfjs
from transfer_jax.pretrained.formats.torch_files import (
    LEGACY_BYTES,
    read_plain_pickle,
    read_torch_stream,
    read_torch_zip,
)

Reader = Callable[[Path, str], TensorFile]
START = 4096  # bytes that tell the format; HDF5 may begin as late as at 2048
# The files that a folder is read from, the first that exists: ours, Hugging Face and timm, Keras, TensorFlow.js.
FOLDER_FILES = ("parameters.safetensors", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                "pytorch_model.bin.index.json", "pytorch_model.pth", "open_clip_model.safetensors",
                "open_clip_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "flax_model.msgpack",
                "model.weights.h5", "tf_model.h5", "model.json", "model.onnx")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz", ".keras", ".h5", ".hdf5", ".onnx", ".msgpack")


def read_tensors(path: str | Path) -> TensorFile:
    """All tensors of a file or folder, on the host.

    Args:
        path: safetensors; torch (zip, legacy stream, TorchScript; no pickle is executed); `.npz`; Keras `.h5`,
            `.weights.h5`, `.keras`; TensorFlow.js `model.json`; ONNX; Flax msgpack; an index of shards; or a folder
            with one of these, an orbax checkpoint, or an exported `model/`.

    Raises:
        UserError: the path is missing, or the file is damaged, hostile or of no known format.
    """
    path = Path(path)
    where = str(path)
    try:
        if path.is_dir():
            return _read_folder(path, where)
        return _reader(path, where)(path, where)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the path of a file or folder of parameters") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check the path and its rights") from error
    except UserError:
        raise
    except Exception as error:  # whatever a hostile file can make a reader do, it is the file's fault
        raise damaged(where, f"it cannot be read ({type(error).__name__}: {shown(error)})") from error


def _reader(path: Path, where: str) -> Reader:
    with path.open("rb") as file:
        start = file.read(START)
    if not start:
        raise damaged(where, "it is empty")
    if start.startswith(b"PK\x03\x04") or start.startswith(b"PK\x05\x06"):
        return _zip_reader(path, where)
    if is_hdf5(start):
        return read_hdf5
    if LEGACY_BYTES in start[:32]:
        return read_torch_stream
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return read_plain_pickle
    if start[257:262] == b"ustar":
        raise refused(where, "it is a tar archive", "unpack it, or save it anew with a current torch")
    if is_safetensors(start):
        return read_safetensors
    if start.lstrip()[:1] == b"{":
        return _json_reader(path, where)
    if start[:1] == b"\x08":
        return read_onnx
    if 0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF):
        return read_msgpack
    raise damaged(where, f"its first bytes {shown(start[:8].hex(' '))} belong to no format of parameters that is known")


def _zip_reader(path: Path, where: str) -> Reader:
    with Archive(path, where) as archive:
        names = archive.names
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return read_torch_zip
    if "config.json" in names and "model.weights.h5" in names:
        return read_keras_archive
    if names and all(name.endswith(".npy") for name in names):
        return read_npz
    raise damaged(where, f"it is a zip archive of no known kind (first member: {shown(names[0] if names else 'none')})")


def _json_reader(path: Path, where: str) -> Reader:
    content = parse_json(path.read_bytes(), where)
    if "weight_map" in content:
        return _read_index
    if "weightsManifest" in content:
        return read_tfjs
    raise damaged(where, "it is a JSON file with neither a weight_map nor a weightsManifest")


def _read_index(path: Path, where: str) -> TensorFile:
    return read_shards(path, where, lambda shard, name: _shard_reader(shard, name)(shard, name))


def _shard_reader(path: Path, where: str) -> Reader:
    found = _reader(path, where)
    if found is _read_index:  # an index that lists itself would be followed for ever
        raise damaged(where, "a shard is itself an index")
    return found


def _read_folder(folder: Path, where: str) -> TensorFile:
    found = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if found is None and is_orbax(folder):
        return read_orbax(folder, where)
    if found is None:
        files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
        if len(files) != 1:
            what = f"several files of parameters ({', '.join(path.name for path in files)})" if files else \
                "no file of parameters"
            raise UserError(f"{folder} holds {what}; give the path of the file itself")
        found = files[0]
    file = _reader(found, str(found))(found, str(found))
    description = found.parent / "model.json"
    if found.name == "parameters.safetensors" and description.is_file():
        return TensorFile(file.tensors, parse_json(description.read_bytes(), str(description)), file.format)
    return file
