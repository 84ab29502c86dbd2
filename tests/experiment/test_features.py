"""Features on disk: what they hold, when the cache answers, how a killed pass goes on, how much it holds."""

import json
import os
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
from tiny_experiment import ROOT, config

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment import feature_files, features
from transfer_jax.experiment.feature_files import Features
from transfer_jax.experiment.features import extract, fresh_model
from transfer_jax.experiment.probing import common
from transfer_jax.experiment.spec import ExperimentSpec


def opened(data, changes=None):
    return fresh_model(build(ExperimentSpec, config(data, changes)))


def direct(assembly, variables, data, split="test"):
    """The taps of all images in one pass, by the model itself."""
    images = data[f"{split}_image"].astype(np.float32) / 255 * 2 - 1
    return assembly.model.taps(variables, {"backbone": images})[0]


@pytest.fixture
def arrays(digits_file):
    with np.load(digits_file) as found:
        return dict(found)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_features_are_those_of_the_model(digits_file, arrays, tmp_path, storage):
    assembly, variables = opened(digits_file, {"streams.test.storage": storage, "seeds": (3,)})
    found = extract(assembly, variables, "test", ("pooled", "heads/digits", "stage1"), out=tmp_path / "f", quiet=True)
    taps = direct(assembly, variables, arrays)
    logits, _ = assembly.model.head(variables, "digits", taps, (8, 8))
    assert found.x.shape == (60, found.width) and found.x.dtype == np.float32
    np.testing.assert_allclose(found.tap("pooled"), taps["pooled"], atol=1e-5)
    np.testing.assert_allclose(found.tap("heads/digits"), logits, atol=1e-5)
    np.testing.assert_allclose(found.tap("stage1"), taps["stage1"].mean((1, 2)), atol=1e-5)
    assert found.y.tolist() == arrays["test_label"].tolist() and found.index.tolist() == list(range(60))
    assert found.names[7] == "digits.npz test, row 7" and found.class_names == tuple(map(str, range(10)))
    assert found.columns == {"pooled": (0, 8), "heads/digits": (8, 18), "stage1": (18, found.width)}


def test_pools(digits_file, arrays, tmp_path):
    assembly, variables = opened(digits_file)
    stage = np.asarray(direct(assembly, variables, arrays)["stage1"])
    for pool, expected in {"max": stage.max((1, 2)), "none": stage.reshape(60, -1)}.items():
        found = extract(assembly, variables, "test", ("stage1",), pool, tmp_path, quiet=True)
        np.testing.assert_allclose(found.x, expected, atol=1e-5)
    tokens = np.arange(24.0).reshape(2, 3, 4)
    assert features.pooled(tokens, "cls").tolist() == tokens[:, 0].tolist()


def test_the_cache_answers_only_for_the_same(digits_file, arrays, tmp_path, monkeypatch):
    made = []
    fill = features._fill
    monkeypatch.setattr(features, "_fill", lambda *a: (made.append(1), fill(*a)))

    def passes(changes=None, data=digits_file, taps=("pooled",), pool="mean", weights=None):
        before = len(made)
        assembly, variables = opened(data, changes)
        extract(assembly, weights(variables) if weights else variables, "test", taps, pool, tmp_path, quiet=True)
        return len(made) - before

    assert passes() == 1 and passes() == 0
    free = {"streams.test.batch_size": 4, "eval_batch_size": 7, "streams.test.storage": "host", "seeds": (0, 1),
            "streams.test.augment": ({"kind": "flip"},), "stages.head.lr": 0.5}
    assert passes(free) == 0, "these do not change a feature"
    assert passes({"streams.test.mean": 0.4}) == 1 and passes({"streams.test.image_size": (12, 12)}) == 1
    assert passes({"streams.test.per_class": "[:3]"}) == 1 and passes(taps=("stage1",)) == 1
    assert passes(taps=("stage1",), pool="max") == 1 and passes({"seeds": (1,)}) == 1
    assert passes(weights=lambda v: {**v, "params": jax.tree.map(lambda leaf: np.nextafter(leaf, 9), v["params"])}) == 1
    for name, place in (("image", (5, 0, 0, 0)), ("label", 5)):
        changed = {key: value.copy() for key, value in arrays.items()}
        changed[f"test_{name}"][place] ^= 1
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "digits.npz", **changed)
        assert passes(data=tmp_path / name / "digits.npz") == 1
    assert passes() == 0, "all are kept side by side"


def test_adapters_that_stay_in_the_parameters_are_part_of_the_hash(digits_file):
    assembly, variables = opened(digits_file, {"stages.pretrain.peft": {
        "low": {"kind": "adapter", "targets": ("backbone/stage1.*",), "width": 2}}})
    keys = set()
    for value in (0.0, 1.0):
        new = {"peft": {"low": {"backbone": {"stage1": {"down": np.full(2, value)}}}}}
        described = features.describe(assembly, {**variables, "params": variables["params"] | new}, "test", ("pooled",),
                                      "mean")
        assert described["inserted"]["low"]["kind"] == "adapter"
        keys.add(described["weights"])
    keys.add(features.describe(assembly, variables, "test", ("pooled",), "mean")["weights"])
    assert len(keys) == 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("storage", ["device", "host"])
def test_a_killed_pass_goes_on_and_ends_with_the_same_bits(digits_file, tmp_path, monkeypatch, storage):
    monkeypatch.setattr(features, "SHARD_BYTES", 2 * 16 * 8 * 4)  # two batches a shard
    assembly, variables = opened(digits_file, {"streams.train.storage": storage})
    whole = extract(assembly, variables, "train", out=tmp_path / "whole", quiet=True)
    assert len(whole.manifest["shards"]) == 8
    add, written = feature_files.Writer.add, []

    def failing(writer, rows):
        if len(written) == 3:
            (writer.folder / f"shard-{3:05d}.safetensors").write_bytes(b"half of a shard")
            raise Killed
        written.append(len(rows["x"]))
        add(writer, rows)

    monkeypatch.setattr(feature_files.Writer, "add", failing)
    with pytest.raises(Killed):
        extract(assembly, variables, "train", out=tmp_path / "killed", quiet=True)
    with pytest.raises(UserError, match="not complete"):
        Features(tmp_path / "killed")
    later = []
    monkeypatch.setattr(feature_files.Writer, "add", lambda writer, rows: (later.append(1), add(writer, rows)))
    found = extract(assembly, variables, "train", out=tmp_path / "killed", quiet=True)
    assert written == [32, 32, 32] and len(later) == 5, "what was written is not computed again"
    for item in sorted((tmp_path / "whole").glob("[!.]*")):
        assert item.read_bytes() == (tmp_path / "killed" / item.name).read_bytes(), item.name
    assert found.x.tobytes() == whole.x.tobytes()


def test_no_array_of_the_whole_set_is_held(tmp_path, monkeypatch):
    """16 MB of features pass through; what numpy holds at any time stays far below."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", train_image=rng.integers(0, 255, (2000, 16, 16, 1), np.uint8),
             train_label=rng.integers(10, size=2000), test_image=np.zeros((1, 16, 16, 1), np.uint8),
             test_label=np.zeros(1, int))
    monkeypatch.setattr(features, "SHARD_BYTES", 2**18)
    assembly, variables = opened(tmp_path / "d.npz", {
        "streams.train.storage": "host", "model.backbones.backbone.widths": (8, 4), "eval_batch_size": 50})
    extract(assembly, variables, "test", ("stage1",), "none", tmp_path, quiet=True)
    tracemalloc.start()
    extract(assembly, variables, "train", ("stage1",), "none", out=tmp_path / "f", quiet=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(path.stat().st_size for path in (tmp_path / "f").glob("*.safetensors"))
    assert size > 16e6 and peak < size / 2, (size, peak)
    assert max(len(shard["x"]) for shard in Features(tmp_path / "f").shards()) < 200


SCRIPT = """
import sys
from pathlib import Path
import jax
from test_features import opened
from transfer_jax.experiment.features import extract
assembly, variables = opened(Path(sys.argv[1]), {"streams.train.storage": "host", "eval_batch_size": 10})
assert assembly.mesh.shape["data"] == 4
for stream in ("train", "test"):
    found = extract(assembly, variables, stream, out=Path(sys.argv[2]) / stream, quiet=True)
    assert found.manifest["batch_size"] == 12
"""


def test_four_devices_give_the_features_of_one(digits_file, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/experiment")))}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(digits_file), str(tmp_path)], capture_output=True,
                          text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assembly, variables = opened(digits_file)
    for stream in ("train", "test"):
        ours = extract(assembly, variables, stream, cache_folder=tmp_path / "one", quiet=True)
        np.testing.assert_allclose(Features(tmp_path / stream).x, ours.x, atol=1e-5)
        assert Features(tmp_path / stream).index.tolist() == ours.index.tolist()


def test_mistakes_are_sentences(digits_file, tmp_path):
    assembly, variables = opened(digits_file, {"streams.plain": {
        "data": {"kind": "arrays", "path": str(digits_file)}, "split": "test", "batch_size": 8, "labelled": False}})
    for arguments, message in [(dict(taps=("stage11",)), "unknown tap 'stage11'.*did you mean 'stage1'"),
                               (dict(taps=("heads/digit",)), "unknown head 'digit'.*'digits'"),
                               (dict(taps=("stage1",), pool="cls"), "first token.*'stage1' is a map"),
                               (dict(pool="man"), "unknown pool 'man'; did you mean 'max'|'mean'"),
                               (dict(taps=("pooled", "pooled")), "each once"), (dict(taps=()), "at least one")]:
        with pytest.raises(UserError, match=message):
            extract(assembly, variables, "plain", **arguments, cache_folder=tmp_path, quiet=True)
    with pytest.raises(UserError, match="unknown stream 'tset'.*'test'"):
        extract(assembly, variables, "tset")
    out = tmp_path / "out"
    found = extract(assembly, variables, "plain", out=out, quiet=True)
    with pytest.raises(UserError, match="no labels"):
        _ = found.y
    with pytest.raises(UserError, match="something else .other taps.; give another folder"):
        extract(assembly, variables, "plain", ("stage1",), out=out, quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="something else than features"):
        extract(assembly, variables, "plain", out=tmp_path / "mine", quiet=True)
    shard, = out.glob("shard*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged .*embed again"):
        _ = Features(out).x
    with pytest.raises(UserError, match="holds no features"):
        Features(tmp_path)
    (out / "manifest.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match="not the manifest of features"):
        Features(out)


def test_features_that_are_not_finite_are_an_error(digits_file, tmp_path):
    assembly, variables = opened(digits_file)
    broken = {**variables, "params": jax.tree.map(lambda leaf: leaf * np.nan, variables["params"])}
    with pytest.raises(UserError, match="features of row 0 are not finite"):
        extract(assembly, broken, "test", cache_folder=tmp_path, quiet=True)


def test_common_examples_are_found_by_name_and_contents(digits_file, arrays, tmp_path):
    assembly, variables = opened(digits_file, {"streams.part": {
        "data": {"kind": "arrays", "path": str(digits_file)}, "per_class": "[:2]", "batch_size": 8}})
    train, part, test = (extract(assembly, variables, name, cache_folder=tmp_path, quiet=True)
                         for name in ("train", "part", "test"))
    assert sorted(common(train, part)) == sorted(part.names) and common(train, test) == []
    np.savez(tmp_path / "digits.npz", **{**arrays, "train_image": arrays["train_image"][::-1]})
    other, _ = opened(tmp_path / "digits.npz")
    theirs = extract(other, variables, "train", cache_folder=tmp_path, quiet=True)
    assert theirs.names == train.names and len(common(train, theirs)) < 3, "another file of the same name"
