"""Every sample file gives the tensors that were put into it by the framework of its format."""

import json
import shutil
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.formats.samples import FILES, LAYERS, NESTED, TENSORS
from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats import (
    TensorFile,
    name_keras_variables,
    read_tensors,
    unwrap_state_dict,
    write_tensors,
)

SHARED = np.arange(12, dtype=np.float32)
STATE = {**TENSORS, "transposed": SHARED.reshape(3, 4).T, "tail": SHARED[8:]}
CHECKPOINT = {f"state_dict/module.{name}": tensor for name, tensor in STATE.items()}
EPOCH = {"epoch": 18, "arch": "tiny", "best_prec1": 91.5, "history": [1, 2.5]}
SCRIPT = {"inner.weight": TENSORS["weight"], "inner.bias": TENSORS["weight"][:, 0]}
TREE = {"block/0/kernel": TENSORS["weight"], "scale": TENSORS["bfloat"]}
ONNX = {name: TENSORS[name] for name in ("weight", "half", "step", "flag", "bfloat")} | {"typed": TENSORS["weight"]}
QUANTISED = np.array([-64, 0, 63.5], np.float32)
NPZ = {"/".join(path): tensor for path, tensor in NESTED.items()}
KERAS_NUMBERS = {
    "conv2d": ("conv1/kernel",), "batch_normalization": ("bn1/beta", "bn1/moving_mean", "bn1/moving_variance"),
    "sequential/layers/conv2d": ("inner/inner_conv/kernel", "inner/inner_conv/bias"),
    "sequential/layers/batch_normalization": tuple(f"inner/inner_bn/{name}" for name in (
        "gamma", "beta", "moving_mean", "moving_variance")),
    "depthwise_conv2d": ("depthwise/kernel", "depthwise/bias"), "dense": ("predictions/kernel", "predictions/bias")}
NUMBERED = {f"layers/{layer}/vars/{number}": LAYERS[name] for layer, names in KERAS_NUMBERS.items()
            for number, name in enumerate(names)}


def assert_same(found, expected):
    """The same names, types, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert np.array_equal(found[name], tensor), name


@pytest.mark.parametrize(("name", "kind", "tensors"), [
    ("model.safetensors", "safetensors", TENSORS),
    ("sharded", "safetensors", TENSORS),
    ("sharded/model.safetensors.index.json", "safetensors", TENSORS),
    ("zip.pth", "torch zip", CHECKPOINT),
    ("legacy.tar", "torch legacy", CHECKPOINT),
    ("script.pt", "torch script", SCRIPT),
    ("model.npz", "npz", NPZ),
    ("model.keras", "keras 3", LAYERS),
    ("legacy.h5", "keras h5", LAYERS),
    ("model.weights.h5", "keras 3", NUMBERED),
    ("model.onnx", "onnx", ONNX),
    ("tfjs", "tfjs", {"dense/kernel": TENSORS["weight"], "dense/bias": QUANTISED}),
    ("tfjs/model.json", "tfjs", {"dense/kernel": TENSORS["weight"], "dense/bias": QUANTISED}),
    ("model.msgpack", "msgpack", TREE),
    ("orbax", "orbax", TREE),
])
def test_samples(name, kind, tensors):
    file = read_tensors(FILES / name)
    assert file.format == kind
    assert_same(file.tensors, tensors)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.tar", "model.safetensors", "model.h5", "model.npz", "model.onnx"])
def test_the_format_is_told_by_the_content_not_by_the_suffix(name, tmp_path):
    sample = FILES / {"model.h5": "legacy.h5"}.get(name, name)
    shutil.copy(sample, tmp_path / "parameters.bin")
    assert_same(read_tensors(tmp_path).tensors, read_tensors(sample).tensors)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.tar"])
def test_values_beside_the_tensors_of_a_checkpoint(name):
    file = read_tensors(FILES / name)
    assert file.metadata == EPOCH
    assert_same(unwrap_state_dict(file.tensors), STATE)


def test_metadata_of_other_formats():
    assert read_tensors(FILES / "model.safetensors").metadata == {"format": "np"}
    assert read_tensors(FILES / "model.onnx").metadata["producer"] == "sample"
    assert read_tensors(FILES / "model.keras").metadata["config"]["class_name"] == "Functional"
    assert read_tensors(FILES / "legacy.h5").metadata["model_config"]["class_name"] == "Functional"


def test_numbered_variables_of_keras_take_their_names_from_the_config():
    config = read_tensors(FILES / "model.keras").metadata["config"]
    assert_same(name_keras_variables(read_tensors(FILES / "model.weights.h5").tensors, config), LAYERS)
    with pytest.raises(UserError, match="the config has no layer for 'layers/conv2d_7/vars/0'"):
        name_keras_variables({"layers/conv2d_7/vars/0": np.zeros(1)}, config)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".npz"])
def test_written_files_come_back(suffix, tmp_path):
    path = tmp_path / "new" / f"model{suffix}"
    write_tensors(path, STATE)
    assert_same(read_tensors(path).tensors, STATE)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match="exists; choose another name"):
        write_tensors(path, STATE)
    write_tensors(path, {"weight": STATE["weight"]}, overwrite=True)
    assert set(read_tensors(path).tensors) == {"weight"}


def test_metadata_is_written_where_a_format_has_a_place_for_it(tmp_path):
    write_tensors(tmp_path / "model.safetensors", TENSORS, {"epoch": 3})
    assert read_tensors(tmp_path / "model.safetensors").metadata == {"epoch": "3"}
    write_tensors(tmp_path / "model.pth", TENSORS, EPOCH)
    file = read_tensors(tmp_path / "model.pth")
    assert file.metadata == EPOCH
    assert_same(unwrap_state_dict(file.tensors), TENSORS)
    with pytest.raises(UserError, match="no place for metadata"):
        write_tensors(tmp_path / "model.npz", TENSORS, EPOCH)


def test_torch_reads_what_is_written(tmp_path, torch):
    write_tensors(tmp_path / "model.pth", TENSORS, EPOCH)
    loaded = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {name: loaded[name] for name in EPOCH} == EPOCH
    for name, tensor in TENSORS.items():
        theirs = loaded["state_dict"][name]
        values = theirs.float().numpy() if tensor.dtype == ml_dtypes.bfloat16 else theirs.numpy()
        assert np.array_equal(values, tensor.astype(values.dtype)) and values.shape == tensor.shape


@pytest.mark.parametrize(("name", "message"), [
    ("model.onnx", "files with the suffix '.onnx' cannot be written"),
    ("model.npz", "'text' holds no numbers"),
])
def test_what_cannot_be_written(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_tensors(tmp_path / name, {"text": np.array(["a"])})
    assert not list(tmp_path.iterdir())


def test_names_of_wrappers_are_removed_and_the_model_is_chosen():
    one, two = np.zeros(1), np.ones(1)
    assert_same(unwrap_state_dict({"model/_orig_mod.module.a.weight": one, "model/_orig_mod.module.b": two}),
                {"a.weight": one, "b": two})
    both = {"state_dict/a.weight": one, "state_dict_ema/a.weight": two, "optimizer/state/0/momentum": one}
    assert_same(unwrap_state_dict(both), {"a.weight": one})
    assert_same(unwrap_state_dict(both, "state_dict_ema"), {"a.weight": two})
    assert_same(unwrap_state_dict({"model/conv1/kernel": one}), {"model/conv1/kernel": one})
    with pytest.raises(UserError, match=r"several models \(teacher, student\)"):
        unwrap_state_dict({"teacher/a.b": one, "student/a.b": two})
    with pytest.raises(UserError, match="did you mean 'state_dict'"):
        unwrap_state_dict(both, "state_dicts")


def test_arrays_in_other_orders(tmp_path):
    """Columns first, most significant byte first, and bfloat16 as NumPy writes it."""
    columns = np.asfortranarray(TENSORS["weight"])
    np.savez(tmp_path / "a.npz", columns=columns, big=TENSORS["weight"].astype(">f4"),
             bfloat=TENSORS["bfloat"].view("V2"), text=np.array("made by hand"))
    file = read_tensors(tmp_path / "a.npz")
    assert_same(file.tensors, {"columns": TENSORS["weight"], "big": TENSORS["weight"], "bfloat": TENSORS["bfloat"]})
    assert file.metadata == {"text": "made by hand"}


def test_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no file of parameters"):
        read_tensors(tmp_path)
    shutil.copy(FILES / "zip.pth", tmp_path / "some_name.pth")
    assert read_tensors(tmp_path).format == "torch zip"
    shutil.copy(FILES / "model.npz", tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"several files of parameters \(other.npz, some_name.pth\)"):
        read_tensors(tmp_path)
    shutil.copy(FILES / "model.safetensors", tmp_path)
    assert read_tensors(tmp_path).format == "safetensors"


def test_shards_that_do_not_fit_their_index(tmp_path):
    folder = shutil.copytree(FILES / "sharded", tmp_path / "sharded")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    cases = [({"other": "model-00002-of-00002.safetensors"}, "lacks it"),
             ({"half": "model-00002-of-00002.safetensors"}, "does not name it there"),
             ({"weight": "../other"}, "not the name"), ({"new": "model-00003-of-00003.safetensors"}, "is missing"),
             (dict.fromkeys(TENSORS, index.name), "itself an index")]
    for change, message in cases:
        index.write_text(json.dumps({**content, "weight_map": content["weight_map"] | change}))
        with pytest.raises(UserError, match=message):
            read_tensors(folder)
    del content["weight_map"]["flag"]
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the index does not name it"):
        read_tensors(folder)


def test_files_of_no_known_format(tmp_path):
    for name, data, message in (("empty.pth", b"", "it is empty"), ("text.bin", b"<!DOCTYPE html>", "first bytes"),
                                ("plain.json", b'{"a": 1}', "neither a weight_map nor")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_tensors(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match="a zip archive of no known kind"):
        read_tensors(tmp_path / "a.zip")


def test_the_result_is_a_plain_record():
    file = read_tensors(FILES / "model.npz")
    assert isinstance(file, TensorFile) and all(isinstance(tensor, np.ndarray) for tensor in file.tensors.values())
