"""The command convert from file to file and back; faults are one sentence."""

import json

import numpy as np
import pytest
from tiny_experiment import command, process, read_json

from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import leaf_shapes, published_head, to_foreign
from transfer_jax.pretrained.formats import read_tensors, write_tensors

CLASSES = 5


def random_tensors(kind, layout, classes=CLASSES):
    """Foreign tensors of a random network."""
    module, rng = build_backbone(Component(kind=kind)), np.random.default_rng(0)
    shapes = leaf_shapes(module, published_head(module, classes))
    return to_foreign({path: rng.uniform(0.1, 1, leaf.shape).astype(np.float32) for path, leaf in shapes.items()},
                      module, layout)


@pytest.fixture(scope="module")
def tensors():
    return random_tensors("cifar_resnet8", "akamaster")


@pytest.fixture(scope="module")
def published(tmp_path_factory, tensors):
    """A file as training code leaves it: the parameters below 'state_dict', with the prefix of parallel training."""
    path = tmp_path_factory.mktemp("published") / "resnet8.pth"
    write_tensors(path, {f"module.{name}": tensor for name, tensor in tensors.items()}, {"best_prec1": 87.5})
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, published):
    """The same as a model/ folder, converted by the command."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    done = process("convert", "--source", published, "--model", "cifar_resnet8:form=pytorch", "--check", "--output",
                   folder)
    assert done.returncode == 0, done.stderr
    assert f"written: {folder} (transfer_jax)" in done.stdout
    assert "round trip through the layout akamaster" in done.stdout and "correct `preprocessing`" in done.stdout
    return folder


def convert(*flags):
    """(exit code, stdout, stderr) of the command."""
    done = command("convert", *flags)
    return done.returncode, done.stdout, done.stderr


def same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and np.array_equal(found[name], tensor), name


def test_the_folder_describes_the_model(exported):
    told = read_json(exported / "model.json")
    assert told["model"]["backbones"]["backbone"] == {"kind": "cifar_resnet8", "form": "pytorch"}
    assert told["model"]["heads"]["classify"]["classes"] == CLASSES
    assert told["tasks"]["classify"]["preprocessing"]["image_size"] == [32, 32]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_the_way_back_gives_the_same_tensors(suffix, exported, tensors, tmp_path):
    path = tmp_path / f"back{suffix}"
    code, said, _ = convert("--source", exported, "--layout", "akamaster", "--output", path)
    assert code == 0 and f"written: {path} (akamaster)" in said
    same(read_tensors(path).tensors, tensors)


def test_from_one_foreign_file_to_another(published, tensors, tmp_path):
    """And the second over the first, with --overwrite."""
    path = tmp_path / "[new] folder" / "bare.safetensors"  # brackets are no markup
    for more in ((), ("--overwrite",)):
        code, said, _ = convert("--source", published, "--model", "cifar_resnet8", "--layout", "akamaster", "--output",
                                path, *more)
        assert code == 0 and f"written: {path}" in said
    same(read_tensors(path).tensors, tensors)


def test_class_names_beside_a_network_of_tensorflow_js(tmp_path):
    """A list that goes on with classes unknown to the network is cut, as Darknet's are."""
    source, tensors = tmp_path / "web", random_tensors("doodlenet", "keras", 3)
    source.mkdir()
    entries = [{"name": name, "shape": list(tensor.shape), "dtype": "float32"} for name, tensor in tensors.items()]
    (source / "model.json").write_text(json.dumps(
        {"format": "layers-model", "weightsManifest": [{"paths": ["shard"], "weights": entries}]}))
    (source / "shard").write_bytes(b"".join(tensor.tobytes() for tensor in tensors.values()))
    (source / "class_names.txt").write_text("hat\ncat\nbus\nsun\n")
    code, said, _ = convert("--source", source, "--model", "doodlenet", "--check", "--output", tmp_path / "out")
    assert code == 0 and "images: values in 0..1 of 28 x 28 pixels are assumed" in said
    task = read_json(tmp_path / "out" / "model.json")["tasks"]["classify"]
    assert task["class_names"] == ["hat", "cat", "bus"] and task["preprocessing"]["channels"] == 1
    code, _, _ = convert("--source", tmp_path / "out", "--layout", "keras", "--output", tmp_path / "back.npz")
    assert code == 0
    same(read_tensors(tmp_path / "back.npz").tensors, tensors)


def test_sound_goes_there_and_back(tmp_path):
    tensors = random_tensors("crepe_tiny", "keras")
    write_tensors(tmp_path / "crepe.npz", tensors)
    for flags in (("crepe.npz", "--model", "crepe_tiny", "--output", tmp_path / "model"),
                  ("model", "--layout", "authors", "--output", tmp_path / "authors.npz", "--check"),
                  ("authors.npz", "--model", "crepe_tiny", "--layout", "keras", "--output", tmp_path / "back.npz")):
        assert convert("--source", tmp_path / flags[0], *flags[1:])[0] == 0
    assert "conv6-BN/gamma" in read_tensors(tmp_path / "authors.npz").tensors
    same(read_tensors(tmp_path / "back.npz").tensors, tensors)


FAULTS = {
    "nothing to do": (("{published}", "--model", "cifar_resnet8"), "give --output, --check or both"),
    "no such source": (("{published}x", "--check"), "near it lie: resnet8.pth"),
    "unnamed model": (("{published}", "--check"), "name it with --model"),
    "unknown model": (("{published}", "--model", "cifar_resnet9", "--check"), "did you mean 'cifar_resnet"),
    "strange argument": (("{published}", "--model", "cifar_resnet8:form", "--check"), "not of the form argument=value"),
    "unknown argument": (("{published}", "--model", "cifar_resnet8:from=1", "--check"), "form"),
    "wrong family": (("{published}", "--model", "densenet121", "--check"), "is this the right model?"),
    "no layouts": (("{published}", "--model", "lenet", "--check"), "none is known"),
    "wrong depth": (("{published}", "--model", "cifar_resnet20", "--check"), "akamaster 37%"),
    "wrong width": (("{published}", "--model", "cifar_resnet8:width=2", "--check"), "does not fit CifarResNet"),
    "unknown layout": (("{published}", "--model", "cifar_resnet8", "--layout", "torchvison", "--output", "{new}.pth"),
                       "unknown layout 'torchvison'"),
    "unknown source layout": (("{published}", "--model", "cifar_resnet8", "--from_layout", "timm", "--check"),
                              "unknown layout 'timm'"),
    "output exists": (("{published}", "--model", "cifar_resnet8", "--output", "{exported}"), "--overwrite"),
    "file for a folder": (("{published}", "--model", "cifar_resnet8", "--output", "{new}.pth"), "would be a folder"),
    "folder for a file": (("{published}", "--model", "cifar_resnet8", "--layout", "akamaster", "--output", "{new}"),
                          ".safetensors"),
    "file over a folder": (("{published}", "--model", "cifar_resnet8", "--layout", "akamaster", "--overwrite",
                            "--output", "{folder}.npz"), "is a folder"),
    "folder over a file": (("{published}", "--model", "cifar_resnet8", "--overwrite", "--output", "{file}"),
                           "is a file"),
    "another model of ours": (("{exported}", "--model", "cifar_resnet20", "--check"), "leave out --model"),
    "unknown option": (("{published}", "--modle", "cifar_resnet8"), "did you mean --model?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_sentence(fault, published, exported, tmp_path):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("kept")
    places = {"published": published, "exported": exported, "new": tmp_path / "new", "folder": tmp_path / "folder",
              "file": tmp_path / "file"}
    flags, words = FAULTS[fault]
    code, _, said = convert("--source", *(flag.format(**places) for flag in flags))
    assert code == 2 and words in said
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n")
    assert not list(tmp_path.glob("new*")) and (tmp_path / "file").read_text() == "kept"
