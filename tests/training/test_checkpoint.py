"""A checkpoint is complete and proven, or it is not there."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import same_leaves

from transfer_jax.core.errors import UserError
from transfer_jax.training.checkpoint import Checkpoints, damage, write_json


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": {"kernel": jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), "count": np.arange(3, dtype=np.int32)},
            "empty": {}, "low": jnp.ones((4,), jnp.bfloat16)}


@pytest.fixture
def saved(tmp_path):
    """(checkpoints of the steps 2 and 4, list of warnings)."""
    warnings = []
    checkpoints = Checkpoints(tmp_path / "stage", keep=2, warn=warnings.append)
    for step in (2, 4):
        checkpoints.save(step, tree(step), {"seconds": step / 2})
    checkpoints.wait()
    return checkpoints, warnings


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"),
               key=lambda path: path.stat().st_size)


def flip(folder):
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-1])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def half_a_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[:len(text) // 2])


DAMAGES = {"flipped byte": flip, "truncated file": truncate, "empty folder": empty,
           "missing manifest": lambda folder: (folder / "manifest.json").unlink(),
           "half a manifest": half_a_manifest, "garbage manifest": lambda folder: (
               folder / "manifest.json").write_bytes(b"\xff\xfe"),
           "manifest of another type": lambda folder: (folder / "manifest.json").write_text("[1]"),
           "empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
           "missing file": lambda folder: largest_file(folder).unlink(),
           "meta changed": lambda folder: (folder / "meta.json").write_text("{}")}


@pytest.mark.parametrize("structured", [True, False])
def test_what_was_saved_comes_back_bit_for_bit(saved, structured):
    checkpoints, warnings = saved
    step, found, meta = checkpoints.restore(tree() if structured else None)
    assert (step, meta["seconds"], warnings) == (4, 2.0, [])
    assert same_leaves(found, tree(4))
    assert found["a"]["count"].dtype == np.int32 and found["low"].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(saved, kind):
    checkpoints, warnings = saved
    DAMAGES[kind](checkpoints.folder / "4")
    step, found, _ = checkpoints.restore(tree())
    assert step == 2 and same_leaves(found, tree(2))
    assert len(warnings) == 1 and "4 is damaged" in warnings[0]


def test_all_damaged_is_an_error_and_so_is_asking_for_a_damaged_or_absent_step(saved):
    checkpoints, _ = saved
    flip(checkpoints.folder / "4")
    with pytest.raises(UserError, match="damaged"):
        checkpoints.restore(tree(), step=4)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .*there are: \[2, 4\]"):
        checkpoints.restore(tree(), step=3)
    empty(checkpoints.folder / "2")
    with pytest.raises(UserError, match="every checkpoint in .* is damaged; remove the folder"):
        checkpoints.restore(tree())


def test_only_the_newest_are_kept_and_a_step_can_be_written_again(saved):
    checkpoints, _ = saved
    checkpoints.save(6, tree(6))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 6]
    checkpoints.save(6, tree(7))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 6]
    assert same_leaves(checkpoints.restore(tree())[1], tree(7))


def test_half_written_folders_are_invisible_and_swept_away(saved):
    checkpoints, warnings = saved
    shutil.copytree(checkpoints.folder / "4", checkpoints.folder / ".writing-6")
    assert checkpoints.steps() == [2, 4] and checkpoints.restore(tree())[0] == 4 and warnings == []
    checkpoints.save(6, tree(6))
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["4", "6"]
    assert damage(checkpoints.folder / "6") is None


def test_nothing_saved_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "absent").restore(tree()) is None


def test_json_is_the_old_file_or_the_whole_new_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("other", [{"a": {"x/y": (2, 4)}}, {"a": {"x/z": (2, 3)}}, {"a": {"x/y": (2, 3), "more": (1,)}},
                                   {"a": {}}])
def test_arrays_of_another_config_are_refused(tmp_path, other):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": {"x/y": np.ones((2, 3), np.float32)}})

    def target(shapes):
        return {"a": {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes["a"].items()}}

    with pytest.raises(UserError, match="saved under another config"):
        checkpoints.restore(target(other))
    assert checkpoints.restore(target({"a": {"x/y": (2, 3)}}))[1]["a"]["x/y"].sum() == 6
