"""A run that was begun by an older version goes on: settings that it does not know have their defaults."""

import json

import pytest
from tiny_experiment import config

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir


def test_settings_that_came_later_are_no_difference_and_those_that_went_are(tmp_path, digits_file):
    spec = build(ExperimentSpec, config(digits_file))
    Workdir(tmp_path).open(spec, allow_config_change=False)
    (tmp_path / "stages").mkdir()  # it has done something
    stored = json.loads((tmp_path / "config.json").read_text())
    for stage in stored["stages"].values():
        del stage["initializer"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    Workdir(tmp_path).open(spec, allow_config_change=False)
    changed = build(ExperimentSpec, config(digits_file, {"stages.head.initializer": {"kind": "he_normal"}}))
    with pytest.raises(UserError, match="stages.head.initializer: None -> "):
        Workdir(tmp_path).open(changed, allow_config_change=False)
    (tmp_path / "config.json").write_text(json.dumps({**stored, "gone": 1}))
    with pytest.raises(UserError, match="gone: 1 -> None"):
        Workdir(tmp_path).open(spec, allow_config_change=False)


def test_a_config_that_came_to_nothing_gives_way_to_the_mended_one(tmp_path, digits_file):
    first, mended = (build(ExperimentSpec, config(digits_file, {"name": name})) for name in ("first", "mended"))
    for spec in (first, mended):
        Workdir(tmp_path).open(spec, allow_config_change=False)
    assert Workdir(tmp_path).spec() == mended
    (tmp_path / "metrics.jsonl").touch()
    Workdir(tmp_path).open(first, allow_config_change=False)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="name: 'first' -> 'mended'"):
        Workdir(tmp_path).open(mended, allow_config_change=False)


def test_what_a_workdir_tells_of_defaults_is_no_choice(tmp_path, digits_file):
    term = {"kind": "task", "task": "digits", "stream": "train"}
    changes = {"stages.head.objective": {"updates": ({"terms": {"digits": term}},)}}
    spec = build(ExperimentSpec, config(digits_file, changes))
    Workdir(tmp_path).open(spec, allow_config_change=False)
    assert Workdir(tmp_path).spec() == spec
    changes["stages.head.objective"]["combine"] = {"kind": "uncertainty"}
    with pytest.raises(UserError, match="combine beside 'updates' would do nothing"):
        build(ExperimentSpec, config(digits_file, changes))
