"""Files that are damaged, or made to do harm: the right tensors or one clear error, no code run, little memory used."""

import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile

import msgpack
import numpy as np
import pytest

from tests.formats.samples import FILES
from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats import name_keras_variables, read_tensors

SAMPLES = sorted(path.relative_to(FILES).as_posix() for path in FILES.rglob("*")
                 if path.is_file() and path.relative_to(FILES).parts[0] not in ("orbax", "sharded", "tfjs"))
CUTS, FLIPS = 120, 150  # for each sample
MEBIBYTE = 2**20
MOST_MEMORY = 400 * MEBIBYTE


def attempt(path):
    """The file as far as it can be read: (tensors, None) or (None, message). Any other error fails the test."""
    try:
        file = read_tensors(path)
    except UserError as error:
        assert len(str(error)) < 1000, "one clear sentence"
        return None, str(error)
    assert sum(tensor.nbytes for tensor in file.tensors.values()) < MOST_MEMORY
    return file.tensors, None


def refusal(path, data):
    """What is said of a file of these bytes, which must not be read, and must not fill the memory."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        tensors, message = attempt(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tensors is None and peak < MOST_MEMORY
    return message


def same(found, right):
    return set(found) == set(right) and all(np.array_equal(found[name], right[name]) for name in right)


@pytest.mark.parametrize("name", SAMPLES)
def test_files_that_end_too_early(name, tmp_path):
    """A file that is cut off is never taken for a smaller model."""
    data, right = (FILES / name).read_bytes(), read_tensors(FILES / name).tensors
    rng = np.random.default_rng(len(data))
    for end in {0, 1, 7, 8, 9, len(data) - 1, *rng.integers(0, len(data), CUTS).tolist()}:
        (tmp_path / name).write_bytes(data[:end])
        tensors, _ = attempt(tmp_path / name)
        assert tensors is None or same(tensors, right), f"cut off at {end}"


@pytest.mark.parametrize("name", SAMPLES)
def test_files_with_wrong_bytes(name, tmp_path):
    """Single bits, whole bytes, and numbers that claim everything or nothing; most formats carry no check sums."""
    data = (FILES / name).read_bytes()
    rng = np.random.default_rng(len(data) + 1)
    for _ in range(FLIPS):
        wrong = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)).tolist():
            wrong[at] ^= 1 << int(rng.integers(8)) if rng.random() < 0.5 else int(rng.integers(1, 256))
        at = int(rng.integers(0, len(data) - 8))
        if rng.random() < 0.3:
            wrong[at:at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 7 + b"\x10"])
        (tmp_path / name).write_bytes(wrong)
        attempt(tmp_path / name)


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_that_are_missing_or_too_many_in_the_middle(name, tmp_path):
    data = (FILES / name).read_bytes()
    rng = np.random.default_rng(len(data) + 2)
    for _ in range(30):
        at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 40))
        for wrong in (data[:at] + data[at + length:], data[:at] + rng.bytes(length) + data[at:]):
            (tmp_path / name).write_bytes(wrong)
            attempt(tmp_path / name)


@pytest.mark.parametrize("name", SAMPLES)
def test_only_the_beginning_is_right(name, tmp_path):
    start = (FILES / name).read_bytes()[:64]
    for seed in range(10):
        (tmp_path / name).write_bytes(start + np.random.default_rng(seed).bytes(3000))
        assert attempt(tmp_path / name)[0] is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # threads that orbax leaves behind
@pytest.mark.parametrize("folder", ["orbax", "sharded", "tfjs"])
def test_folders_with_damaged_files(folder, tmp_path):
    whole, right = FILES / folder, read_tensors(FILES / folder).tensors
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for file in files[:6]:
        for end in (None, 0, 0.5):  # removed, empty, half of it
            copy = shutil.copytree(whole, tmp_path / "copy")
            data = (copy / file).read_bytes()
            (copy / file).unlink() if end is None else (copy / file).write_bytes(data[:int(end * len(data))])
            tensors, _ = attempt(copy)
            assert tensors is None or same(tensors, right)
            shutil.rmtree(copy)


class Reduced:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def torch_zip(pickled):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return buffer.getvalue()


def torch_stream(pickled):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return magic + pickle.dumps({"little_endian": True}, 2) + pickled + pickle.dumps([], 2)


@pytest.mark.parametrize("wrap", [bytes, torch_zip, torch_stream])
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_that_call_something(wrap, protocol, tmp_path):
    """Nothing is called, wherever the call stands, and the error says what the file asks for."""
    trace = tmp_path / "trace"
    calls = {"system": Reduced(os.system, f"touch {trace}"), "eval": Reduced(eval, f"open({str(trace)!r}, 'w')"),
             "exec": Reduced(exec, f"open({str(trace)!r}, 'w')"), "open": Reduced(open, str(trace), "w"),
             "getattr": Reduced(getattr, "", "upper"),
             "load": Reduced(pickle.loads, b"\x80\x02N."), "__import__": Reduced(__import__, "os")}
    for name, call in calls.items():
        for content in (call, {"state_dict": {"weight": call}}, [1, (2, {"a": call})]):
            message = refusal(tmp_path / "model.pth", wrap(pickle.dumps(content, protocol)))
            assert name in message and "not on the list" in message
    assert not trace.exists()


@pytest.mark.parametrize("instructions", [
    b"(S'touch trace'\nios\nsystem\n.",  # INST
    b"cos\nsystem\n(S'touch trace'\no.",  # OBJ
    b"(cos\nsystem\nS'touch trace'\no.",
    b"\x82\x01.", b"\x83\x01\x00.",  # the registry of extensions
    b"\x8c\x02os\x8c\x06system\x93\x8c\x0btouch trace\x85R.",  # STACK_GLOBAL
    b"\x8c\x05torch\x8c\x11_utils.__import__\x93\x8c\x02os\x85R.",
    b"ccollections\nOrderedDict.fromkeys\n.", b"c__torch__.os\nsystem\n.", b"cbuiltins\ngetattr\n.",
    b"cbuiltins\nint\n\x8c\x011\x85R.",  # allowed as a name, not to be called
    b"}\x8c\x01a\x8c\x01b\x86b.", b"K\x01)R.", b"K\x01P1\n.", b"]\x8c\x07storageQ.", b"\x97.",
])
def test_instructions_that_no_file_of_parameters_needs(instructions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data in (b"\x80\x04" + instructions, torch_zip(b"\x80\x04" + instructions)):
        refusal(tmp_path / "model.pth", data)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TOWER = text("a") + b"\x85" + b"2\x86" * 60  # a pair of pairs of pairs ...
LONG_LIST = b"](" + b"K\x01" * 20_000 + b"eq\0"
MANY = b"h\0" * 20_000  # the same object again and again
NAMED = b"".join(text(str(i)) + b"K\x01" for i in range(5_000))
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")


@pytest.mark.parametrize("pickled", [
    b"ctorch\ndevice\n" + TOWER + b"\x85R.",
    b"}" + text("a") + TOWER + b"s.",
    b"}" + TOWER + b"K\x01s.",
    b"ccollections\nOrderedDict\n](" + LONG_LIST + MANY + b"e\x85R.",
    b"}" + text("k" * 10**6) + b"}(" + NAMED + b"us.",
    b"((" + b"K\x01" * 20_000 + b"tq\0" + MANY + b"\x91.",
    b"cpathlib\nPosixPath\n" + text("a" * 1000) + b"q\0" + b"0cpathlib\nPosixPath\nh\0h\0\x86Rq\0" * 40 + b".",
    b"]q\0h\0a.", b"}q\0" + text("a") + b"h\0s.",  # contains itself
    b"(" * 20_000 + b".", b"]" * 20_000 + b"a" * 19_999 + b".", b")" + b"\x85" * 20_000 + b".",
    b"\x8b\xff\xff\xff\x7f.", b"X\xff\xff\xff\xff.", b"\x8d" + b"\xff" * 8 + b".", b"I" + b"9" * 10_000 + b"\n.",
    TENSOR + STORAGE + b"\x8a\x06" + b"\xff" * 5 + b"\x7ftQK\0K\x02\x85K\x01\x85\x89}tR.",  # no such storage
    TENSOR + b"K\x00K\x00K\x02\x85K\x01\x85\x89}tR.",
])
def test_pickles_that_would_fill_the_memory_or_never_end(pickled, tmp_path):
    for wrap in (bytes, torch_zip, torch_stream):
        refusal(tmp_path / "model.pth", wrap(b"\x80\x04" + pickled))


@pytest.mark.parametrize(("offset", "shape", "strides"), [
    (0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)), (0, (2**40,), (0,)),
    (0, (2,), (1, 1)), (0, (2**62, 2**62), (0, 0)), (0, (1,) * 40, (1,) * 40), (0, ("a",), (1,)), (0, (1.0,), (1,)),
])
def test_tensors_beyond_their_storage(offset, shape, strides, tmp_path):
    """A storage of four numbers, and views that do not fit into it."""
    def write(path, offset, shape, strides):
        view = value(offset) + value(shape) + value(strides)
        data = b"\x80\x02" + TENSOR + STORAGE + b"K\x04tQ" + view + b"\x89}tR."
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())

    def value(part):
        return pickle.dumps(part, 2)[2:-1]  # without its first and its last instruction

    write(tmp_path / "model.pth", 1, (3,), (1,))
    assert np.array_equal(read_tensors(tmp_path / "model.pth").tensors["tensor"], [1, 2, 3])
    write(tmp_path / "model.pth", offset, shape, strides)
    refusal(tmp_path / "model.pth", (tmp_path / "model.pth").read_bytes())


def test_archives_that_unpack_to_far_more(tmp_path):
    """A small file of zeros that says how many there are, and one that does not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        for _ in range(100):
            member.write(bytes(MEBIBYTE))
    honest = buffer.getvalue()
    assert "would unpack to" in refusal(tmp_path / "a.npz", honest)
    size = struct.pack("<I", 100 * MEBIBYTE)
    assert size in honest
    refusal(tmp_path / "a.npz", honest.replace(size, struct.pack("<I", 1000)))


@pytest.mark.parametrize("names", [("../a.npy",), ("/a.npy",), ("a/../../b.npy",), ("C:a.npy",), ("a.npy", "a.npy")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_impossible_names(names, tmp_path):
    buffer, member = io.BytesIO(), io.BytesIO()
    np.save(member, np.zeros(2))
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, member.getvalue())
    assert "the archive has" in refusal(tmp_path / "a.npz", buffer.getvalue())


def test_arrays_of_objects_are_pickles(tmp_path):
    trace = tmp_path / "trace"
    objects = np.empty(1, object)
    objects[0] = Reduced(os.system, f"touch {trace}")
    np.savez(tmp_path / "a.npz", objects=objects)
    assert "a pickle" in refusal(tmp_path / "a.npz", (tmp_path / "a.npz").read_bytes())
    assert not trace.exists()


@pytest.mark.parametrize("header", [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", "{'descr': '<f4'}", "(" * 3000,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "__import__('os').system('true')",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (1099511627776,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
])
def test_headers_of_numpy_that_lie(header, tmp_path):
    buffer = io.BytesIO()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + bytes(4)
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", data)
    refusal(tmp_path / "a.npz", buffer.getvalue())


@pytest.mark.parametrize("header", [
    {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},  # bytes that belong to no tensor
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
     "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},  # overlap
    {"a": 3}, {"a": {}}, {"__metadata__": {"a": {"b": "c"}}},
])
def test_headers_of_safetensors_that_lie(header, tmp_path):
    content = json.dumps(header).encode()
    refusal(tmp_path / "a.safetensors", struct.pack("<Q", len(content)) + content + bytes(8))
    refusal(tmp_path / "a.safetensors", struct.pack("<Q", 99_000_000) + content + bytes(8))


def test_json_that_is_nested_or_repeated(tmp_path):
    deep = b'{"weightsManifest": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    names = ",".join(f'"{i}": 1' for i in range(50_000))
    for data in (deep, deep[:50_000], b'{"weight_map": 1}', b'{"weightsManifest": [{"paths": [1], "weights": []}]}',
                 b'{"weightsManifest": [{"paths": ["../a"], "weights": []}]}', b"{" + b'"a": ' * 10_000):
        refusal(tmp_path / "model.json", data)
    repeated = refusal(tmp_path / "model.json", f'{{{names}, "49999": 2}}'.encode())
    assert "'49999' occurs twice" in repeated


def packed(shape, kind, data):
    return msgpack.ExtType(1, msgpack.packb((shape, kind, data)))


@pytest.mark.parametrize("content", [
    {"a": packed([2**40], "float32", b"\0" * 4)}, {"a": packed([1], "O", b"\0" * 8)},
    {"a": packed([1], "no such type", b"")}, {"a": packed(["a"], "float32", b"")}, {"a": msgpack.ExtType(9, b"")},
    {"a": msgpack.ExtType(1, b"\xc1")}, {"a": msgpack.ExtType(2, b"\0")},
    {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"0": packed([1], "float32", b"\0" * 4)}},
    {"__msgpack_chunked_array__": True}, {"k" * 10**6: {str(i): 1 for i in range(5_000)}},
])
def test_msgpack_that_lies(content, tmp_path):
    refusal(tmp_path / "model.msgpack", b"\x81\xa1b" + msgpack.packb(content))


def test_msgpack_that_is_nested_without_an_end(tmp_path):
    refusal(tmp_path / "model.msgpack", b"\x81\xa1a" * 100_000)
    refusal(tmp_path / "model.msgpack", b"\xdf\xff\xff\xff\xff" + b"\xa1a" * 10)


def field(number, payload):
    """One length-delimited field of a protocol buffer."""
    length, size = b"", len(payload)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


@pytest.mark.parametrize("tensor", [
    b"\x08\x80\x80\x80\x80\x80\x40\x10\x01" + field(8, b"a") + field(9, bytes(8)),  # 2**41 numbers
    b"\x08" + b"\xff" * 9 + b"\x01\x10\x01" + field(8, b"a") + field(9, bytes(8)),  # -1
    b"\x08\x02\x10\x63" + field(8, b"a") + field(9, bytes(8)),  # an unknown type
    b"\x08\x02\x10\x01" + field(8, b"\xff") + field(9, bytes(8)),  # a name that is no text
    b"\x08\x02\x10\x01" + field(8, b"a") + field(13, field(1, b"location") + field(2, b"../secret")) + b"\x70\x01",
    b"\x08\x02\x10\x01" + field(8, b"a") + field(13, field(1, b"location") + field(2, b"model.onnx"))
    + field(13, field(1, b"offset") + field(2, b"-9")) + b"\x70\x01",
    b"\x0b", b"\x00",
])
def test_onnx_that_lies(tensor, tmp_path):
    refusal(tmp_path / "model.onnx", b"\x08\x07" + field(7, field(5, tensor)))


def test_hdf5_groups_that_contain_themselves(tmp_path):
    h5py = pytest.importorskip("h5py", reason="writes hostile files with h5py, which is not installed here")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("g")
        group["one"] = group["two"] = group
    assert "nested without an end" in refusal(tmp_path / "a.h5", (tmp_path / "a.h5").read_bytes())


def test_hdf5_datasets_that_claim_more_than_there_is(tmp_path):
    """Shapes without values, and zeros that are compressed to a thousandth."""
    h5py = pytest.importorskip("h5py", reason="writes hostile files with h5py, which is not installed here")
    for shape, chunks in (((2**40,), (1024,)), ((2**20, 2**20), (8, 8)), ((2**27,), (2**27,))):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("a", shape, "f4", chunks=chunks, compression="gzip")
        assert "far more values" in refusal(tmp_path / "a.h5", (tmp_path / "a.h5").read_bytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(6):  # each alone would be allowed
            file.create_dataset(str(number), data=np.zeros(2**22, np.float32), chunks=(2**20,), compression="gzip")
    assert "far more values" in refusal(tmp_path / "a.h5", (tmp_path / "a.h5").read_bytes())


def test_configs_of_keras_that_are_no_models():
    layer = {"class_name": "Dense", "config": {"name": "d"}}
    nested = layer
    for _ in range(200):
        nested = {"class_name": "Sequential", "config": {"name": "s", "layers": [nested]}}
    wide = {"class_name": "Sequential", "config": {"name": "m", "layers": [
        {"class_name": "Sequential", "config": {"name": "s" * 10**6, "layers": [layer] * 1000}}]}}
    for config in (nested, wide, {"class_name": 3, "config": []}, {"class_name": "Dense"}, {"layers": [1]},
                   {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": 1}]}}):
        with pytest.raises(UserError, match="a layer is described in an unexpected way|the config has no layer"):
            name_keras_variables({"layers/dense/vars/0": np.zeros(1)}, config)
